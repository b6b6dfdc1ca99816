"""Deadlines on one timer: none is met early, none is forgotten, and what was stopped is let go."""

from __future__ import annotations

import asyncio
import gc
import weakref

from hypothesis import given, settings
from hypothesis import strategies as st

from tproxy.gateway.http.wheel import FAR, TICK, Timer, Wheel


class Clock:
    """A loop whose time goes on when told, as far as the wheel uses one."""

    def __init__(self) -> None:
        self.now, self.next = 1000.0, None
        self.next: tuple[float, object] | None

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, turn: object) -> object:
        self.next = (self.now + seconds, turn)
        return self.next

    def until(self, when: float) -> None:
        while self.next is not None and self.next[0] <= when:
            (self.now, turn), self.next = self.next, None
            turn()  # type: ignore[operator]
        self.now = when


@settings(max_examples=200, deadline=None)
@given(
    arms=st.lists(
        st.tuples(st.integers(0, 3), st.floats(0.01, 3 * FAR * TICK), st.floats(0.0, 2.0)), min_size=1, max_size=20
    )
)
def test_the_last_deadline_counts_however_often_it_was_moved(arms: list[tuple[int, float, float]]) -> None:
    clock = Clock()
    wheel = Wheel(clock)  # type: ignore[arg-type]
    met: dict[int, list[float]] = {number: [] for number in range(4)}
    timers = [Timer(lambda number=number: met[number].append(clock.now)) for number in range(4)]  # type: ignore[misc]
    due: dict[int, float] = {}
    for number, seconds, pause in arms:
        met[number].clear()
        wheel.arm(timers[number], seconds)
        due[number] = clock.now + seconds
        clock.until(clock.now + pause)
    clock.until(clock.now + 4 * FAR * TICK)
    for number, when in due.items():
        assert len(met[number]) == 1
        assert when - 2 * TICK <= met[number][0] <= when + 2 * TICK
    assert clock.next is None or not wheel._slots


def test_a_stopped_timer_never_expires_and_is_let_go() -> None:
    loop = asyncio.new_event_loop()
    wheel = Wheel(loop)

    class Thing:
        def expire(self) -> None:
            raise AssertionError

    thing = Thing()
    timer = Timer(thing.expire)
    wheel.arm(timer, 0.1)
    wheel.stop(timer)
    seen = weakref.ref(thing)
    del thing, timer
    gc.collect()
    assert seen() is None
    loop.run_until_complete(asyncio.sleep(0.2))
    loop.close()
