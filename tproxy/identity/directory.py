"""Who stands at which address, as ``tproxy control`` tells it: a Mirror that is kept up to date by a stream.

What was last known stays while control is away, and the stream goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address

from google.protobuf.message import DecodeError

from tproxy.core.address import Address
from tproxy.core.directory import Absent, Delta, Entry, Found, Kind, Mirror, Part, Version, is_path
from tproxy.core.identity import Snapshot
from tproxy.core.settings import Directory as Settings
from tproxy.identity import stream
from tproxy.wire import WATCH_DIRECTORY
from tproxy.wire import directory_pb2 as wire

_KINDS = {wire.SERVICE: Kind.SERVICE}


@dataclass(slots=True)
class Status(stream.Status):
    """And how much is known."""

    entries: int = 0
    snapshots: int = 0


class Directory:
    """A client; all of it belongs to one loop."""

    what = "directory"

    def __init__(self, settings: Settings, trust_domain: str) -> None:
        self._settings = settings
        self._changed: Callable[[frozenset[Address]], None] = lambda _: None
        self._mirror, self._whole = Mirror(), False  # _whole: ask for everything next time
        self._patience = float("inf")  # monotonic
        self.status: Status = Status(settings.address)
        self._stream = stream.Stream(settings, trust_domain, WATCH_DIRECTORY, self)

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
        if self._stream.renewed(credentials):
            self._patience = time.monotonic() + self._settings.timeout

    async def run(self, changed: Callable[[frozenset[Address]], None]) -> None:
        """For ever, once there are credentials; ``changed`` hears of addresses of which something else is known now."""
        self._changed = changed
        await self._stream.run()

    def request(self) -> bytes:
        """From where on."""
        have = None if self._whole else self._mirror.version
        known = wire.Version(epoch=have.epoch, number=have.number) if have else None
        return wire.WatchRequest(have=known).SerializeToString()

    def take(self, raw: bytes) -> None:
        """A part. ValueError or DecodeError if it does not follow what is known, or is none."""
        try:
            part = parsed(raw)
            changed = self._mirror.take(part)
        except (ValueError, DecodeError):
            self._whole = True
            raise
        if changed is None:
            return
        status, self._whole = self.status, False
        status.version, status.entries = str(part.version), len(self._mirror.entries)
        status.updates += 1
        status.snapshots += part.snapshot
        if changed:
            self._changed(changed)

    def interrupted(self) -> None:
        """Pieces without an end are worth nothing."""
        self._mirror.interrupted()

    def kept(self) -> str:
        """What counts meanwhile."""
        return "the last one counts" if self._mirror.version else "there is none yet, mesh rules alone count"


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
