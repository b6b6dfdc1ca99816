"""The directory: follows pods, services and endpoint slices, and streams entries to sidecars (tproxy.v1.Directory).

Only an SVID of our trust domain may read. Nothing is said before all three collections have been seen whole, because
what is missing from a snapshot would be forgotten by everyone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from tproxy.control.config import Control
from tproxy.control.feed import Feed
from tproxy.control.record import Line, Turned
from tproxy.control.refusal import Refused, Why
from tproxy.control.service import OPTIONS, STATUS, peer
from tproxy.control.watch import Put, Watch
from tproxy.core import workloads
from tproxy.core.directory import Version
from tproxy.core.identity import SpiffeId, svid_id
from tproxy.core.pem import der
from tproxy.core.reason import Deny
from tproxy.core.x509 import Malformed, leaf_facts
from tproxy.kernel.sock import any_host
from tproxy.wire import ACCEPTED, WATCH_DIRECTORY
from tproxy.wire.directory_pb2 import WatchRequest

log = logging.getLogger("tproxy")
PACE = 0.1  # seconds between two steps, at least: what happens meanwhile is one
SHARE = 0.0004  # seconds more for each stream: telling it takes a third of that, so we use a third of a CPU at most
FIRST = 5.0  # seconds that a caller waits for our first whole look
REQUEST = 10.0  # seconds for the request
Context = grpc.aio.ServicerContext[bytes, bytes]


class Directory:
    """Watches, feed and server."""

    def __init__(self, config: Control, trust_domain: str, finished: Callable[[Line], None]) -> None:
        assert config.directory is not None and config.kubernetes is not None
        self._config, self._settings = config, config.directory
        self._trust_domain, self._finished = trust_domain, finished
        self._book = workloads.Book()
        self.feed = Feed(self._book.entries)
        self._synced = asyncio.Event()
        self.open_streams = 0
        book, where = self._book, config.kubernetes
        self.watches = (
            Watch(where, "/api/v1/pods", _sink(book.pod, workloads.pod)),
            Watch(where, "/api/v1/services", _sink(book.service, workloads.service)),
            Watch(where, "/apis/discovery.k8s.io/v1/endpointslices", _sink(book.slice, workloads.endpoint_slice)),
        )

    @property
    def entries(self) -> int:
        """How many addresses are known."""
        return len(self._book.entries)

    def not_ready(self) -> str:
        """Why nobody is told anything yet, or nothing."""
        if self._synced.is_set():
            return ""
        return next((one.status.error for one in self.watches if one.status.error), "pods have not been listed yet")

    def failures(self) -> int:
        """Failed questions to the API server, in a row, of the watch that fares worst."""
        return max(one.status.failures for one in self.watches)

    async def run(self) -> None:
        """Follow the cluster for ever."""
        async with asyncio.TaskGroup() as group:
            for one in self.watches:
                group.create_task(one.run())
            group.create_task(self._publish())

    async def _publish(self) -> None:
        rest = PACE
        while True:
            await asyncio.sleep(rest)
            rest = PACE
            if not all(one.status.synced for one in self.watches):
                continue
            if delta := self._book.flush():
                size, rest = self.feed.append(delta), max(PACE, SHARE * self.open_streams)
                log.debug(
                    "directory %s: %d set, %d gone, %d bytes",
                    self.feed.version,
                    len(delta.set),
                    len(delta.removed),
                    size,
                )
            if not self._synced.is_set():
                log.info("directory: %d addresses, port %d", self.entries, self._settings.port)
                self._synced.set()

    def listen(self, credentials: grpc.ServerCredentials) -> grpc.aio.Server:
        """A server that is bound and not yet started; RuntimeError if the port cannot be had."""
        server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=self._settings.streams)
        service, _, method = WATCH_DIRECTORY[1:].partition("/")
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._call)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        host = self._config.address or any_host()
        server.add_secure_port(
            f"[{host}]:{self._settings.port}" if ":" in host else f"{host}:{self._settings.port}", credentials
        )
        return server

    async def _call(self, requests: AsyncIterator[bytes], context: Context) -> None:
        who = self._caller(context.auth_context())
        have = who if isinstance(who, Refused) else await self._request(requests, who)
        if isinstance(have, Refused):
            self._finished(Turned(time.time(), str(peer(context.peer()) or ""), have))
            await context.abort(STATUS[have.code], f"{have.why}; {have.advice}")
            raise AssertionError("abort raises")
        self.open_streams += 1
        try:
            await self._tell(have, context)
        finally:
            self.open_streams -= 1

    async def _tell(self, have: Version | None, context: Context) -> None:
        await context.send_initial_metadata((ACCEPTED,))
        number = self.feed.start(have)
        while True:
            number, messages = await self.feed.next(number)
            for message in messages:
                await context.write(message)

    async def _request(self, requests: AsyncIterator[bytes], who: SpiffeId) -> Version | Refused | None:
        try:
            async with asyncio.timeout(REQUEST):
                request = WatchRequest.FromString(await anext(requests, b""))
        except TimeoutError:
            return Refused(Why.SLOW, f"no request within {REQUEST:g} s", str(who))
        except DecodeError:
            return Refused(Why.BAD_REQUEST, "the message is not a WatchRequest", str(who))
        try:
            async with asyncio.timeout(FIRST):
                await self._synced.wait()
        except TimeoutError:
            return Refused(Why.NOT_SYNCED, f"nothing is known yet: {self.not_ready()}", str(who))
        return Version(request.have.epoch, request.have.number) if request.HasField("have") else None

    def _caller(self, context: Any) -> SpiffeId | Refused:
        """TLS has verified the chain; whose it is, is seen here."""
        block = context.get("x509_pem_cert", [b""])[0]
        facts = leaf_facts(der(block)) if block else None
        if facts is None or isinstance(facts, Malformed):
            return Refused(Why.NO_SVID, "the caller shows no certificate that can be read")
        who = svid_id(facts)
        if isinstance(who, Deny):
            return Refused(Why.NO_SVID, who.why)
        if who.trust_domain != self._trust_domain:
            return Refused(Why.NO_SVID, f"the caller is not of the trust domain {self._trust_domain}", str(who))
        return who


def _sink(put: Callable[[str, Any], None], parse: Callable[[Any], object]) -> Put:
    def sink(key: str, document: dict[str, Any] | None) -> None:
        put(key, parse(document) if document is not None else None)

    return sink
