"""What the directory has to say, encoded once for everybody: the last steps, and now and then a snapshot.

A reader owns nothing here but the number that he has reached. Who is further behind than the steps reach gets the
snapshot, however slow he is; steps are forgotten as soon as they weigh more than one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Iterator
from itertools import islice

from tproxy.core.address import Address
from tproxy.core.directory import Delta, Entries, Entry, Kind, Version
from tproxy.wire import directory_pb2 as wire

PIECE = 1000  # entries of one message: some 60 KiB
LEAST = 256 * 1024  # bytes of steps that are always kept
_KINDS = {Kind.POD: wire.POD, Kind.SERVICE: wire.SERVICE}
Messages = tuple[bytes, ...]


class Feed:
    """``entries`` is read when a snapshot is made: it must be what the steps have led to."""

    def __init__(self, entries: Entries, epoch: str = "") -> None:
        self._entries = entries
        self.version = Version(epoch or secrets.token_hex(8), 0)
        self._steps: deque[Messages] = deque()  # the last one leads to ``version``
        self._weight = 0
        self._snapshot: tuple[int, Messages] | None = None
        self._news = asyncio.Event()

    def append(self, delta: Delta) -> int:
        """One step further; its bytes."""
        self.version = Version(self.version.epoch, self.version.number + 1)
        step = tuple(encoded(self.version, False, delta))
        self._steps.append(step)
        self._weight += _weight(step)
        most = max(LEAST, _weight(self._snapshot[1]) if self._snapshot else 0)
        while self._weight > most and len(self._steps) > 1:
            self._weight -= _weight(self._steps.popleft())
        self._news.set()
        self._news = asyncio.Event()
        return _weight(step)

    def start(self, have: Version | None) -> int | None:
        """The number that a reader who has this goes on from; None: he needs a snapshot."""
        return have.number if have and have.epoch == self.version.epoch and self._reaches(have.number) else None

    async def next(self, number: int | None) -> tuple[int, Messages]:
        """What follows, and the number that it leads to; waits while there is nothing."""
        while number == self.version.number:
            await self._news.wait()
        if number is None or not self._reaches(number):
            return self._whole()
        return number + 1, self._steps[number - self.version.number]

    def _reaches(self, number: int) -> bool:
        return 0 <= self.version.number - number <= len(self._steps)

    def _whole(self) -> tuple[int, Messages]:
        """One that is older than the present serves as well, as long as the steps lead on from it."""
        if self._snapshot is None or not self._reaches(self._snapshot[0]):
            self._snapshot = self.version.number, tuple(encoded(self.version, True, Delta(self._entries)))
        return self._snapshot


def encoded(version: Version, snapshot: bool, delta: Delta) -> Iterator[bytes]:
    """The messages of one version; at least one."""
    setting, removing = iter(delta.set.items()), iter(delta.removed)
    left = len(delta.set) + len(delta.removed)
    number = wire.Version(epoch=version.epoch, number=version.number)
    while True:
        entries = [_entry(*item) for item in islice(setting, PIECE)]
        removed = [address.packed for address in islice(removing, PIECE - len(entries))]
        left -= len(entries) + len(removed)
        message = wire.Update(version=number, snapshot=snapshot, set=entries, removed=removed, more=left > 0)
        yield message.SerializeToString()
        snapshot = False
        if not left:
            return


def _entry(address: Address, entry: Entry) -> wire.Entry:
    return wire.Entry(
        address=address.packed, kind=_KINDS[entry.kind], ids=entry.ids, name=entry.name, mixed=entry.mixed
    )


def _weight(messages: Messages) -> int:
    return sum(map(len, messages))
