"""What sidecars follow: a call that begins with one request and has no end, for an SVID of our trust domain only.

TLS has verified the caller's chain; whose it is, is seen here. Who is turned away leaves a line.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from tproxy.control.config import Control
from tproxy.control.record import Line, Turned
from tproxy.control.refusal import Refused, Why
from tproxy.control.service import OPTIONS, STATUS, peer
from tproxy.core.certificates.pem import der
from tproxy.core.certificates.x509 import Malformed, leaf_facts
from tproxy.core.identity import SpiffeId, svid_id
from tproxy.core.reason import Deny
from tproxy.kernel.sock import any_host
from tproxy.wire import ACCEPTED

FIRST = 5.0  # seconds that a caller waits for our first whole look
REQUEST = 10.0  # seconds for the request
Context = grpc.aio.ServicerContext[bytes, bytes]
Request = TypeVar("Request")


class Streams(Generic[Request]):
    """All streams of one method. ``tell`` goes on for ever; nobody is told anything before ``open`` was called.

    ``namespaced``: callers must have ids that tell their namespace.
    """

    def __init__(
        self,
        method: str,
        parse: Callable[[bytes], Request],
        tell: Callable[[SpiffeId, Request, Context], Awaitable[None]],
        not_ready: Callable[[], str],
        trust_domain: str,
        finished: Callable[[Line], None],
        namespaced: bool = False,
    ) -> None:
        self._namespaced = namespaced
        self._parse, self._tell, self._not_ready = parse, tell, not_ready
        self._trust_domain, self._finished = trust_domain, finished
        self._opened = asyncio.Event()
        self.running = 0
        service, _, name = method[1:].partition("/")
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._call)
        self.handler = grpc.method_handlers_generic_handler(service, {name: handler})

    @property
    def is_open(self) -> bool:
        """Whether anything is told."""
        return self._opened.is_set()

    def open(self) -> None:
        """From now on there is something to tell."""
        self._opened.set()

    async def _call(self, requests: AsyncIterator[bytes], context: Context) -> None:
        who = self._caller(context.auth_context())
        request = who if isinstance(who, Refused) else await self._request(requests, who)
        if isinstance(who, Refused) or isinstance(request, Refused):
            refused = who if isinstance(who, Refused) else request
            assert isinstance(refused, Refused)
            self._finished(Turned(time.time(), str(peer(context.peer()) or ""), refused))
            await context.abort(STATUS[refused.code], f"{refused.why}; {refused.advice}")
            raise AssertionError("abort raises")
        self.running += 1
        try:
            await self._tell(who, request, context)
        finally:
            self.running -= 1

    async def _request(self, requests: AsyncIterator[bytes], who: SpiffeId) -> Request | Refused:
        try:
            async with asyncio.timeout(REQUEST):
                request = self._parse(await anext(requests, b""))
        except TimeoutError:
            return Refused(Why.SLOW, f"no request within {REQUEST:g} s", str(who))
        except DecodeError:
            return Refused(Why.BAD_REQUEST, "the message is not what begins this call", str(who))
        try:
            async with asyncio.timeout(FIRST):
                await self._opened.wait()
        except TimeoutError:
            return Refused(Why.NOT_SYNCED, f"nothing is known yet: {self._not_ready()}", str(who))
        return request

    def _caller(self, context: Any) -> SpiffeId | Refused:
        block = context.get("x509_pem_cert", [b""])[0]
        facts = leaf_facts(der(block)) if block else None
        if facts is None or isinstance(facts, Malformed):
            return Refused(Why.NO_SVID, "the caller shows no certificate that can be read")
        who = svid_id(facts)
        if isinstance(who, Deny):
            return Refused(Why.NO_SVID, who.why)
        if who.trust_domain != self._trust_domain:
            return Refused(Why.NO_SVID, f"the caller is not of the trust domain {self._trust_domain}", str(who))
        if self._namespaced and who.namespace is None:
            return Refused(Why.NO_SVID, "the caller's id tells no namespace (ns/.../sa/...)", str(who))
        return who


async def accept(context: Context) -> None:
    """Tell the caller that he will be told."""
    await context.send_initial_metadata((ACCEPTED,))


def listen(
    config: Control, port: int, most: int, all_streams: Sequence[Streams[Any]], credentials: grpc.ServerCredentials
) -> grpc.aio.Server:
    """A server that is bound and not yet started; RuntimeError if the port cannot be had. ``most``: sidecars."""
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=most * len(all_streams))
    server.add_generic_rpc_handlers(tuple(one.handler for one in all_streams))
    host = config.address or any_host()
    server.add_secure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", credentials)
    return server
