"""The torture test's short profile, and that it would notice. ``make torture`` is the long one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.torture import run
from tests.torture.plan import PATTERN, difference, piece, plan


@given(st.integers(0, 2**63))
def test_a_plan_is_the_same_for_both_ends(number: int) -> None:
    assert plan(number) == plan(number)


@given(st.integers(0, len(PATTERN) - 1), st.integers(0, 1 << 30), st.integers(0, 3 << 19))
def test_a_stream_agrees_with_itself(start: int, at: int, size: int) -> None:
    whole = b"".join(bytes(piece(start, at + done, min(1000, size - done))) for done in range(0, size, 1000))
    assert difference(start, at, whole) == ""


@pytest.mark.parametrize("what", ["lost", "doubled", "foreign"])
def test_a_byte_that_is_lost_doubled_or_changed_is_located(what: str) -> None:
    whole = bytes(piece(123, 0, 100_000))
    damaged = {
        "lost": whole[:5000] + whole[5010:],
        "doubled": whole[:5000] + whole[4990:],
        "foreign": whole[:5000] + bytes(byte ^ 1 for byte in whole[5000:6000]) + whole[6000:],
    }[what]
    found = difference(123, 0, damaged)
    assert found.startswith("at byte 5000: ") and what in found


@pytest.mark.timeout(400)  # six ways with processes of their own, on a machine that may be busy
def test_nothing_is_lost_doubled_or_moved_whatever_happens() -> None:
    made = run.torture(9, 1, 20, ("compiled", "python"), ("both",))
    assert not [wrong for way in made for wrong in way.wrong], "\n".join(map(run.line, made))
    assert sum(way.seen["messages"] for way in made) > 1000
    if skipped := [way.skipped for way in made if way.skipped]:
        pytest.skip(f"without the short cut: {skipped[0]}")
