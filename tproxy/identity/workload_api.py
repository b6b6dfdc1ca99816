"""SVIDs from a SPIFFE Workload API: SPIRE's agent, or any other that keeps to the specification (spiffe.io).

The other side decides when there is something new. Each message replaces all that came before. Who is denied after he
had an SVID keeps it to its end, where 5.2.1 would rather have him drop it: an agent that has just started denies, too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from difflib import get_close_matches
from typing import TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode

from tproxy.core.certificates.der import sequences
from tproxy.core.certificates.pem import encoded
from tproxy.core.identity import Snapshot
from tproxy.core.protobuf import count_fields
from tproxy.core.settings import WorkloadApi
from tproxy.identity import rpc
from tproxy.identity.proof import BUNDLE_LIMIT, Part, UnusableError, checked_bundle, proven
from tproxy.identity.source import SourceError
from tproxy.identity.trust import CHAIN_LIMIT
from tproxy.wire import FETCH_X509_SVID, WORKLOAD_HEADER
from tproxy.wire.workload_pb2 import X509SVID, X509SVIDRequest, X509SVIDResponse

log = logging.getLogger("tproxy")
Method: TypeAlias = grpc.aio.UnaryStreamMultiCallable[X509SVIDRequest, bytes]
Call: TypeAlias = grpc.aio.UnaryStreamCall[X509SVIDRequest, bytes]
DEADLINE = 10.0  # seconds until the first message
MESSAGE_LIMIT = 4 * 1024 * 1024  # bytes
FIELD_LIMIT = 1000  # SVIDs, CRLs and federated bundles of one message
SHORT = 64 * 1024  # bytes of a message that is read in some milliseconds
PACE = 0.2  # seconds between two messages, at least; what comes faster waits in the sender (HTTP/2 flow control)
KEEPALIVE = 360_000  # milliseconds, over TCP only: servers of gRPC tolerate a ping every five minutes
_SHOWN = 10  # SVIDs that an error names
_ADVICE = {
    StatusCode.PERMISSION_DENIED: "it has no SVID for this workload yet: is it registered, with selectors that fit it?",
    StatusCode.INVALID_ARGUMENT: "it refuses our request: is it a Workload API?",
    StatusCode.RESOURCE_EXHAUSTED: f"the answer is larger than {MESSAGE_LIMIT} bytes, or the server is overloaded",
}


class WorkloadApiSource:
    """Follows the stream of SVIDs; of other trust domains' bundles only the ``federated`` are kept."""

    def __init__(
        self, settings: WorkloadApi, trust_domain: str, federated: Sequence[str] = (), deadline: float = DEADLINE
    ) -> None:
        self.name = f"Workload API {settings.socket}"
        self._settings, self._trust_domain, self._deadline = settings, trust_domain, deadline
        self._federated = frozenset(federated)
        self._warned: dict[str, str] = {}  # trust domain -> what was last said of its bundle

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """See ``source.Source``."""
        target, more = _target(self._settings.socket)
        async with grpc.aio.insecure_channel(target, options=[*rpc.options(MESSAGE_LIMIT), *more]) as channel:
            method: Method = channel.unary_stream(FETCH_X509_SVID, X509SVIDRequest.SerializeToString)
            call = method(X509SVIDRequest(), metadata=(WORKLOAD_HEADER,))
            yield await self._checked(await self._first(call))
            while True:
                await asyncio.sleep(PACE)
                yield await self._checked(await self._next(call))

    async def _first(self, call: Call) -> bytes:
        try:
            async with asyncio.timeout(self._deadline):
                return await self._next(call)
        except TimeoutError:
            raise SourceError(self.name, f"no answer within {self._deadline:g} s") from None

    async def _next(self, call: Call) -> bytes:
        try:
            found = await call.read()
        except grpc.aio.AioRpcError as error:
            raise rpc.failure(self.name, error, _ADVICE) from error
        if not isinstance(found, bytes):
            raise SourceError(self.name, "it ended the stream")
        return found

    async def _checked(self, raw: bytes) -> Snapshot:
        """Off the loop if it is long: thousands of revoked certificates take long to read."""
        return self._snapshot(raw) if len(raw) <= SHORT else await asyncio.to_thread(self._snapshot, raw)

    def _snapshot(self, raw: bytes) -> Snapshot:
        try:
            count_fields(raw, FIELD_LIMIT)
            message = X509SVIDResponse.FromString(raw)
        except (ValueError, DecodeError) as error:
            raise SourceError(self.name, f"its message {error}") from error
        chosen = self._chosen(message.svids)
        try:
            found = self._proven(chosen, message)
        except UnusableError as error:
            raise SourceError(self.name, f"{chosen.spiffe_id!r:.200}: {error}") from error
        if str(found.svid.id) != chosen.spiffe_id:
            raise SourceError(self.name, f"the SVID {chosen.spiffe_id!r:.200} holds a certificate of {found.svid.id}")
        return found

    def _chosen(self, offered: Sequence[X509SVID]) -> X509SVID:
        """The one with our id, else the one with our hint, else the first (Workload API, 5.2.1 and 5.3)."""
        wanted = self._settings.id or self._settings.hint
        field = "id" if self._settings.id else "hint"
        names = [(one.spiffe_id if field == "id" else one.hint) for one in offered]
        if not offered:
            raise SourceError(self.name, "it offers no SVID")
        if not wanted:
            return offered[0]
        if wanted in names:
            return offered[names.index(wanted)]
        near = get_close_matches(wanted, [name[:200] for name in names[:_SHOWN]], 1)
        advice = f"; is {near[0]!r} meant?" if near else ""
        shown = ", ".join(f"{one.spiffe_id!r:.200} (hint {one.hint!r:.80})" for one in offered[:_SHOWN])
        rest = f" and {len(offered) - _SHOWN} more" if len(offered) > _SHOWN else ""
        raise SourceError(
            self.name, f"no SVID has identity.workloadApi.{field} {wanted}: it offers {shown}{rest}{advice}"
        )

    def _proven(self, chosen: X509SVID, message: X509SVIDResponse) -> Snapshot:
        chain = _pem(chosen.x509_svid, Part.CHAIN, CHAIN_LIMIT)
        key = encoded("PRIVATE KEY", chosen.x509_svid_key)
        bundles = {**self._others(message), self._trust_domain: _pem(chosen.bundle, Part.BUNDLE, BUNDLE_LIMIT)}
        return proven(chain, key, bundles, self._trust_domain, time.time(), self._crls(message))

    def _others(self, message: X509SVIDResponse) -> dict[str, bytes]:
        """Bundles of the trust domains that the configuration names; a bad one costs nobody else his credentials."""
        found = {}
        for name, bundle in message.federated_bundles.items():
            domain, why = name.removeprefix("spiffe://").rstrip("/"), ""
            if domain not in self._federated:
                continue
            try:
                found[domain] = checked_bundle(_pem(bundle, Part.BUNDLE, BUNDLE_LIMIT))
            except UnusableError as error:
                why = str(error)
            if why and why != self._warned.get(domain):
                log.warning("%s: nobody of trust domain %s is believed: %s", self.name, domain, why)
            self._warned[domain] = why
        return found

    def _crls(self, message: X509SVIDResponse) -> tuple[bytes, ...]:
        for crl in message.crl:
            try:
                whole = len(sequences(crl, 1)) == 1
            except ValueError as error:
                raise SourceError(self.name, f"its CRL {error}") from error
            if not whole:
                raise SourceError(self.name, "its CRL is empty")
        return tuple(message.crl)


def _target(socket: str) -> tuple[str, list[tuple[str, int]]]:
    """The endpoint in gRPC's words, and what else its channel needs."""
    if not socket.startswith("tcp://"):
        return socket, []
    return f"dns:///{socket.removeprefix('tcp://')}", [("grpc.keepalive_time_ms", KEEPALIVE)]


def _pem(der: bytes, part: Part, limit: int) -> bytes:
    try:
        return b"".join(encoded("CERTIFICATE", one) for one in sequences(der, limit))
    except ValueError as error:
        raise UnusableError(part, str(error)) from error
