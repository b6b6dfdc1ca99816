"""Deadlines of thousands of connections and requests on one timer of the loop, exact to a tick.

A deadline is moved far more often than it is met: moving one back is writing a number.

    wheel.arm(timer, 10.0)  # timer.expire() in 10 s
    timer.when = math.inf   # or never
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

TICK = 0.05  # seconds
FAR = 160  # ticks after which a timer is looked at again, so that what moved it forward leaves no litter behind


class Timer:
    """One deadline, of one thing."""

    __slots__ = ("expire", "slot", "when")

    def __init__(self, expire: Callable[[], None]) -> None:
        self.expire, self.when, self.slot = expire, math.inf, 0

    def stop(self) -> None:
        """Never."""
        self.when = math.inf


class Wheel:
    """Slots of ticks to come. ``now`` is the loop's time, at most a tick old."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._slots, self._handle = loop, dict[int, list[Timer]](), None
        self._handle: asyncio.TimerHandle | None
        self._at = int(loop.time() / TICK)
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

    def _put(self, timer: Timer) -> None:
        slot = max(min(math.ceil(timer.when / TICK), self._at + FAR), self._at + 1)
        if slot != timer.slot:
            timer.slot = slot
            self._slots.setdefault(slot, []).append(timer)

    def _turn(self) -> None:
        self.now = self._loop.time()
        until = int(self.now / TICK)
        self._handle = None
        due = [timer for slot in range(self._at + 1, until + 1) for timer in self._slots.pop(slot, ()) if timer.slot == slot]
        self._at = max(until, self._at)
        for timer in due:
            timer.slot = 0
        if self._slots or due:
            self._handle = self._loop.call_later(TICK, self._turn)
        for timer in due:
            if timer.when <= self.now:
                timer.when = math.inf
                timer.expire()
            elif timer.when < math.inf and not timer.slot:
                self._put(timer)
