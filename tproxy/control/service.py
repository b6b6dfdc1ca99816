"""``istio.v1.auth.IstioCertificateService/CreateCertificate`` over gRPC: what istiod's clients and ours call.

The method is registered as a stream of requests of which one is read: on the wire that is the same, and a caller who
opens a call and sends nothing is cut by our deadline instead of holding a place for ever. gRPC offers no limit of
handshakes or connections per address, so there is none: keep strangers away from the port by a NetworkPolicy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from tproxy.control import csr
from tproxy.control.authenticate import Caller, Door
from tproxy.control.config import Control
from tproxy.control.issuer import Issuer, Made
from tproxy.control.record import Issued, Line, Turned
from tproxy.control.refusal import Code, Refused, Why
from tproxy.core.address import Address, Endpoint
from tproxy.kernel.sock import any_host
from tproxy.wire import CREATE_CERTIFICATE
from tproxy.wire.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse

log = logging.getLogger("tproxy")
MESSAGE_LIMIT = 64 * 1024  # bytes of a request
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 24 * 1024),
    ("grpc.max_concurrent_streams", 100),  # on one connection
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 5 * 60_000),
    ("grpc.max_connection_age_ms", 30 * 60_000),
    ("grpc.max_connection_age_grace_ms", 15_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.so_reuseport", 0),  # a second server on this port is a mistake
)
HARD = 4  # times config.concurrency: calls beyond it are refused by gRPC itself, without a record


class Service:
    """Answers calls; every answer is one Line."""

    def __init__(
        self,
        config: Control,
        issuer: Issuer,
        door: Door,
        finished: Callable[[Line], None],
        took: Callable[[float], None],
    ) -> None:
        self._config, self._issuer, self._door = config, issuer, door
        self._finished, self._took = finished, took
        self.open_calls = 0

    def listen(self, credentials: grpc.ServerCredentials) -> grpc.aio.Server:
        """A server that is bound and not yet started; RuntimeError if the port cannot be had."""
        server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=self._config.concurrency * HARD)
        service, _, method = CREATE_CERTIFICATE[1:].partition("/")
        handler: grpc.RpcMethodHandler[bytes, IstioCertificateResponse] = grpc.stream_unary_rpc_method_handler(
            self._call, response_serializer=IstioCertificateResponse.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        host = self._config.address or any_host()
        server.add_secure_port(
            f"[{host}]:{self._config.port}" if ":" in host else f"{host}:{self._config.port}", credentials
        )
        return server

    async def _call(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, IstioCertificateResponse]
    ) -> IstioCertificateResponse:
        begun, address = time.monotonic(), peer(context.peer())
        self.open_calls += 1
        try:
            found = await self._answer(requests, context.invocation_metadata() or (), address)
        except Exception:
            log.exception("a call from %s failed", address)
            found = Refused(Why.INTERNAL, "something unexpected happened")
        finally:
            self.open_calls -= 1
            self._took(time.monotonic() - begun)
        if isinstance(found, Made):
            self._finished(Issued(time.time(), found.entry))
            return IstioCertificateResponse(cert_chain=found.chain())
        self._finished(Turned(time.time(), str(address or ""), found))
        await context.abort(STATUS[found.code], f"{found.why}; {found.advice}")
        raise AssertionError("abort raises")

    async def _answer(
        self, requests: AsyncIterator[bytes], metadata: object, address: Address | None
    ) -> Made | Refused:
        if self.open_calls > self._config.concurrency:
            return Refused(Why.OVERLOAD, f"more than {self._config.concurrency} calls at once")
        try:
            async with asyncio.timeout(self._config.deadline):
                request = _parsed(await anext(requests, b""))
        except TimeoutError:
            return Refused(Why.SLOW, f"no whole request within {self._config.deadline:g} s")
        if isinstance(request, Refused):
            return request
        try:
            async with asyncio.timeout(self._config.deadline):
                return await self._issue(request, _authorization(metadata), address)
        except TimeoutError:
            return Refused(Why.OVERLOAD, f"no answer within {self._config.deadline:g} s")

    async def _issue(
        self, request: IstioCertificateRequest, authorization: str, address: Address | None
    ) -> Made | Refused:
        caller = await self._door.authenticate(authorization, address)
        wanted = request.metadata.fields["ImpersonatedIdentity"].string_value if request.HasField("metadata") else ""
        if isinstance(caller, Caller) and wanted:
            caller = await self._door.impersonate(caller, wanted)
        if isinstance(caller, Refused):
            return caller
        key = csr.public_key(request.csr)
        if isinstance(key, Refused):
            return Refused(key.reason, key.why, str(caller.id))
        return await self._issuer.issue(caller, key, request.validity_duration, str(address or ""))


STATUS = {code: grpc.StatusCode[code.value] for code in Code}


def peer(text: str) -> Address | None:
    """The address in gRPC's name of a peer: ``ipv4:10.0.0.7:5000``, ``ipv6:%5Bfd00::7%5D:5000``."""
    try:
        return Endpoint.parse(unquote(text).partition(":")[2]).ip
    except ValueError:
        return None


def _parsed(data: bytes) -> IstioCertificateRequest | Refused:
    if not data:
        return Refused(Why.BAD_CSR, f"the call carries no request, or one of more than {MESSAGE_LIMIT} bytes")
    try:
        return IstioCertificateRequest.FromString(data)
    except DecodeError:
        return Refused(Why.BAD_CSR, "the message is not an IstioCertificateRequest")


def _authorization(metadata: object) -> str:
    """The one value of that name; two of them prove nothing."""
    pairs = metadata if isinstance(metadata, tuple | list) else tuple(metadata)  # type: ignore[arg-type]
    found = [value for key, value in pairs if key == "authorization" and isinstance(value, str)]
    return found[0] if len(found) == 1 else ""
