"""A stream that ``tproxy control`` sends for as long as it lives: opened again whenever it ends, over gRPC.

We show our SVID, and believe only a server whose certificate leads to the bundle of our own trust domain and has the
name that we dialled: the CA issues names to itself alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode

from tproxy.core.certificates.renewal import UNREACHED, pause
from tproxy.core.identity import Snapshot
from tproxy.core.settings import Directory as Settings
from tproxy.identity import rpc
from tproxy.identity.repeat import repeat
from tproxy.identity.source import SourceError, UnreachedError
from tproxy.wire import ACCEPTED

log = logging.getLogger("tproxy")
Method: TypeAlias = grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
DEADLINE = 15.0  # seconds until the server accepts us
MESSAGE_LIMIT = 8 * 1024 * 1024  # bytes; an object of 1.5 MiB (etcd's limit) may have some more in ASCII
KEEPALIVE = (("grpc.keepalive_time_ms", 60_000), ("grpc.keepalive_timeout_ms", 20_000))
_ADVICE = {
    StatusCode.PERMISSION_DENIED: "it does not take our SVID",
    StatusCode.UNIMPLEMENTED: "the server does not tell this: has control's configuration the section of that name?",
    StatusCode.UNAVAILABLE: "nobody answers, the connection broke, or our SVID was refused",
}


@dataclass(slots=True)
class Status:
    """What ``/config_dump`` tells; times are unix seconds, 0 for never."""

    address: str
    connected: bool = False
    version: str = ""
    updates: int = 0
    updated: float = 0.0
    failures: int = 0  # in a row
    error: str = ""


class Reader(Protocol):
    """Who understands what comes."""

    what: str  # in words: directory

    @property
    def status(self) -> Status:
        """How it goes; kept up to date here."""
        ...

    def request(self) -> bytes:
        """What the stream begins with."""
        ...

    def take(self, raw: bytes) -> None:
        """A message. ValueError or DecodeError if it cannot be used; then the stream begins anew."""
        ...

    def interrupted(self) -> None:
        """The stream has ended; what came in pieces without an end is worth nothing."""
        ...

    def kept(self) -> str:
        """What counts meanwhile, for the log."""
        ...


class Stream:
    """All of it belongs to one loop."""

    def __init__(self, settings: Settings, trust_domain: str, method: str, reader: Reader) -> None:
        self._settings, self._trust_domain, self._method, self._reader = settings, trust_domain, method, reader
        self._name = f"{reader.what} {settings.address}"
        self._credentials: Snapshot | None = None
        self._again = asyncio.Event()
        self._unreached = 0  # how many of the failures in a row there were when nobody answered last

    def renewed(self, credentials: Snapshot) -> bool:
        """Go on with these, at once; whether they are the first ones."""
        first = self._credentials is None
        if credentials != self._credentials:
            self._credentials = credentials
            self._again.set()
        return first

    async def run(self) -> None:
        """For ever, once there are credentials."""
        await self._again.wait()
        await repeat(self._follow, self._again)

    async def _follow(self) -> None:
        """Until it fails or ends, and the pause after that."""
        status, unreached = self._reader.status, False
        try:
            await self._stream()
        except SourceError as error:
            unreached = isinstance(error, UnreachedError)
            self._failed(str(error))
        except Exception as error:  # it must go on whatever a server made us stumble over
            log.exception("a defect in the client of the %s", self._reader.what)
            self._failed(f"{self._name}: a defect of the sidecar: {type(error).__name__}")
        finally:
            status.connected = False
            self._reader.interrupted()
        await asyncio.sleep(self._pause(unreached))

    def _pause(self, unreached: bool) -> float:
        """While nobody answers it stays short; who answers and has no time for us is given more of it each time."""
        failures = self._reader.status.failures
        if unreached:
            self._unreached = failures
            return pause(failures, random.random(), UNREACHED)
        return pause(failures - self._unreached, random.random())

    async def _stream(self) -> None:
        known = self._credentials
        assert known is not None
        svid, roots = known.svid, known.bundles[self._trust_domain]
        credentials = grpc.ssl_channel_credentials(roots, svid.key_pem, svid.chain_pem)
        address = self._settings.address
        named = self._settings.server_name or address.rpartition(":")[0].strip("[]")
        options = [*rpc.options(MESSAGE_LIMIT, named), *KEEPALIVE]
        async with (
            rpc.way(self._name, address, DEADLINE) as target,
            grpc.aio.secure_channel(target, credentials, options=options) as channel,
        ):
            method: Method = channel.unary_stream(self._method)
            call = method(self._reader.request())
            try:
                async with asyncio.timeout(DEADLINE):
                    told = await call.initial_metadata()
                self._accepted(told.get(ACCEPTED[0]) == ACCEPTED[1])
                while isinstance(raw := await call.read(), bytes):
                    self._take(raw)
            except TimeoutError:
                raise SourceError(self._name, f"no answer within {DEADLINE:g} s") from None
            except grpc.aio.AioRpcError as error:
                raise rpc.failure(self._name, error, _ADVICE, field="directory") from error
        raise SourceError(self._name, "it ended the stream")

    def _take(self, raw: bytes) -> None:
        try:
            self._reader.take(raw)
        except (ValueError, DecodeError) as error:
            raise SourceError(self._name, f"its message cannot be used: {error}") from error
        self._reader.status.updated = time.time()

    def _accepted(self, connected: bool) -> None:
        status = self._reader.status
        if connected:
            log.info("%s: connected, version %s", self._name, status.version or "none yet")
            status.connected, status.failures, status.error = True, 0, ""
            self._unreached = 0

    def _failed(self, why: str) -> None:
        status = self._reader.status
        known = status.failures and status.error == why
        level = logging.DEBUG if known else logging.INFO if status.connected else logging.WARNING  # servers move on
        status.failures, status.error = status.failures + 1, why
        log.log(level, "no %s now, %s: %s", self._reader.what, self._reader.kept(), why)
