"""Who stands at which address, as ``tproxy control`` tells it: a Mirror that is kept up to date over gRPC.

What was last known stays while control is away, and the stream goes on where it stopped. We show our SVID, and believe
only a server whose certificate leads to the bundle of our own trust domain and has the name that we dialled: the CA
issues names to itself alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode

from tproxy.core.address import Address
from tproxy.core.directory import Absent, Delta, Entry, Found, Kind, Mirror, Part, Version, is_path
from tproxy.core.identity import Snapshot
from tproxy.core.renewal import pause
from tproxy.core.settings import Directory as Settings
from tproxy.identity import rpc
from tproxy.identity.source import SourceError
from tproxy.wire import ACCEPTED, WATCH_DIRECTORY
from tproxy.wire import directory_pb2 as wire

log = logging.getLogger("tproxy")
Method: TypeAlias = grpc.aio.UnaryStreamMultiCallable[wire.WatchRequest, bytes]
DEADLINE = 15.0  # seconds until the server accepts us
MESSAGE_LIMIT = 4 * 1024 * 1024  # bytes
KEEPALIVE = (("grpc.keepalive_time_ms", 60_000), ("grpc.keepalive_timeout_ms", 20_000))
_KINDS = {wire.SERVICE: Kind.SERVICE}
_ADVICE = {
    StatusCode.PERMISSION_DENIED: "it does not take our SVID",
    StatusCode.UNAVAILABLE: "nobody answers, the connection broke, or our SVID was refused",
}


@dataclass(slots=True)
class Status:
    """What ``/config_dump`` tells; times are unix seconds, 0 for never."""

    address: str
    connected: bool = False
    version: str = ""
    entries: int = 0
    updates: int = 0
    snapshots: int = 0
    updated: float = 0.0
    failures: int = 0  # in a row
    error: str = ""


class Directory:
    """A client; all of it belongs to one loop."""

    def __init__(self, settings: Settings, trust_domain: str) -> None:
        self._settings, self._trust_domain = settings, trust_domain
        self._name = f"directory {settings.address}"
        self._mirror, self._whole = Mirror(), False  # _whole: ask for everything next time
        self._credentials: Snapshot | None = None
        self._again = asyncio.Event()
        self._patience = float("inf")  # monotonic
        self.status = Status(settings.address)

    def find(self, address: Address) -> Found:
        """What is known of an address now."""
        if self._mirror.version is None:
            return Absent.UNKNOWN
        return self._mirror.entries.get(address, Absent.UNLISTED)

    @property
    def entries(self) -> dict[Address, Entry]:
        """All of them; not to be kept."""
        return self._mirror.entries

    def not_ready(self) -> str:
        """What is waited for, but not for ever: mesh rules alone decide meanwhile."""
        if self._mirror.version is not None or time.monotonic() > self._patience:
            return ""
        return f"waiting for the directory {self._settings.address}: {self.status.error or 'nothing came yet'}"

    def renewed(self, credentials: Snapshot) -> None:
        """Go on with these, at once."""
        if self._credentials is None:
            self._patience = time.monotonic() + self._settings.timeout
        if credentials != self._credentials:
            self._credentials = credentials
            self._again.set()

    async def run(self, changed: Callable[[frozenset[Address]], None]) -> None:
        """For ever, once there are credentials; ``changed`` hears of addresses of which something else is known now."""
        await self._again.wait()
        while True:
            self._again.clear()
            following, asked = asyncio.create_task(self._follow(changed)), asyncio.create_task(self._again.wait())
            try:
                await asyncio.wait((following, asked), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (following, asked):
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task

    async def _follow(self, changed: Callable[[frozenset[Address]], None]) -> None:
        """Until it fails or ends, and the pause after that."""
        try:
            await self._stream(changed)
        except SourceError as error:
            self._failed(str(error))
        except Exception as error:  # the directory must go on whatever a server made us stumble over
            log.exception("a defect in the directory's client")
            self._failed(f"{self._name}: a defect of the sidecar: {type(error).__name__}")
        finally:
            self.status.connected = False
            self._mirror.interrupted()
        await asyncio.sleep(pause(self.status.failures, random.random()))

    async def _stream(self, changed: Callable[[frozenset[Address]], None]) -> None:
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
            method: Method = channel.unary_stream(WATCH_DIRECTORY, wire.WatchRequest.SerializeToString)
            call = method(self._request())
            try:
                async with asyncio.timeout(DEADLINE):
                    told = await call.initial_metadata()
                self._accepted(told.get(ACCEPTED[0]) == ACCEPTED[1])
                while isinstance(raw := await call.read(), bytes):
                    if moved := self._take(raw):
                        changed(moved)
            except TimeoutError:
                raise SourceError(self._name, f"no answer within {DEADLINE:g} s") from None
            except grpc.aio.AioRpcError as error:
                raise rpc.failure(self._name, error, _ADVICE, field="directory") from error
        raise SourceError(self._name, "it ended the stream")

    def _request(self) -> wire.WatchRequest:
        have = None if self._whole else self._mirror.version
        return wire.WatchRequest(have=wire.Version(epoch=have.epoch, number=have.number) if have else None)

    def _accepted(self, connected: bool) -> None:
        status = self.status
        if connected:
            log.info("%s: connected, version %s", self._name, status.version or "none yet")
            status.connected, status.failures, status.error = True, 0, ""

    def _take(self, raw: bytes) -> frozenset[Address] | None:
        try:
            part = parsed(raw)
            changed = self._mirror.take(part)
        except (ValueError, DecodeError) as error:
            self._whole = True
            raise SourceError(self._name, f"its message cannot be used: {error}") from error
        if changed is None:
            return None
        status, self._whole = self.status, False
        status.version, status.entries = str(part.version), len(self._mirror.entries)
        status.updates, status.updated = status.updates + 1, time.time()
        status.snapshots += part.snapshot
        return changed

    def _failed(self, why: str) -> None:
        status = self.status
        known = status.failures and status.error == why
        level = logging.DEBUG if known else logging.INFO if status.connected else logging.WARNING  # servers move on
        status.failures, status.error = status.failures + 1, why
        kept = "the last one counts" if self._mirror.version else "there is none yet, mesh rules alone count"
        log.log(level, "no directory now, %s: %s", kept, why)


def parsed(raw: bytes) -> Part:
    """A message. ValueError or DecodeError if it is none."""
    message = wire.Update.FromString(raw)
    delta = Delta(
        {ip_address(one.address): _entry(one) for one in message.set}, frozenset(map(ip_address, message.removed))
    )
    return Part(Version(message.version.epoch, message.version.number), message.snapshot, delta, message.more)


def _entry(one: wire.Entry) -> Entry:
    if len(one.name) > 512 or not one.name.isprintable():
        raise ValueError(f"a name of {len(one.name)} characters, or with others than printable ones")
    return Entry(_KINDS.get(one.kind, Kind.POD), one.name, _ids(tuple(one.ids)), one.mixed)


@lru_cache(maxsize=8192)
def _ids(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The same value for all who have the same ids."""
    for path in paths:
        if not is_path(path):
            raise ValueError(f"{path!r:.200} is not the path of a SPIFFE id")
    return paths
