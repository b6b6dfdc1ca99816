"""Deadlines of thousands of connections and requests on one timer of the loop, exact to a tick.

A deadline is moved far more often than it is met: moving one back is writing a number.

    wheel.arm(timer, 10.0)  # timer.expire() in 10 s
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

TICK: Final = 0.05  # seconds
FAR: Final = 160  # ticks after which a timer is looked at again, however late it is


def _nothing() -> None:
    """What the end of a deadline does that is nobody's any more."""


class Timer:
    """One deadline, of one thing."""

    __slots__ = ("expire", "slot", "when")

    def __init__(self, expire: Callable[[], None]) -> None:
        self.expire, self.when, self.slot = expire, math.inf, 0


class Wheel:
    """Slots of ticks to come. ``now`` is the loop's time, at most a tick old while a timer is armed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, set[Timer]] = {}
        self._handle: asyncio.TimerHandle | None = None
        self._at = 0
        self.now = loop.time()

    def arm(self, timer: Timer, seconds: float) -> None:
        """It expires then, unless it is armed again."""
        if self._handle is None:
            self.now = self._loop.time()
            self._at = int(self.now / TICK)
            self._handle = self._loop.call_later(TICK, self._turn)
        timer.when = when = self.now + seconds
        if not timer.slot or when < timer.slot * TICK:
            self._put(timer)

    def stop(self, timer: Timer) -> None:
        """It never expires, and is forgotten; one that will be armed again soon is cheaper kept, see ``rest``."""
        timer.when = math.inf
        if timer.slot:
            self._slots[timer.slot].discard(timer)
            timer.slot = 0

    def end(self, timer: Timer) -> None:
        """It is not armed again, and no longer holds whose deadline it was."""
        self.stop(timer)
        timer.expire = _nothing

    def rest(self, timer: Timer) -> None:
        """It does not expire until it is armed again."""
        timer.when = math.inf

    def _put(self, timer: Timer) -> None:
        slot = max(min(math.ceil(timer.when / TICK), self._at + FAR), self._at + 1)
        if slot == timer.slot:
            return
        if timer.slot:
            self._slots[timer.slot].discard(timer)
        timer.slot = slot
        self._slots.setdefault(slot, set()).add(timer)

    def _turn(self) -> None:
        self.now = self._loop.time()
        until = max(int(self.now / TICK), self._at)
        due = [timer for slot in range(self._at + 1, until + 1) for timer in self._slots.pop(slot, ())]
        self._at = until
        for timer in due:
            timer.slot = 0
        self._handle = self._loop.call_later(TICK, self._turn) if self._slots or due else None
        for timer in due:
            if timer.when <= self.now:
                timer.when = math.inf
                timer.expire()
            elif timer.when < math.inf and not timer.slot:
                self._put(timer)
