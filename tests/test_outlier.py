"""Who is left out for failing, for how long, and never more than are allowed to be."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.address import Endpoint
from tproxy.core.balance.outlier import Ejected, Health, Outlier, none_can, status_of

PODS = tuple(Endpoint(IPv4Address(f"10.0.0.{number}"), 80) for number in range(1, 6))
ONE = PODS[0]
ALL = Outlier(errors=3, most=100, interval=10, base=30)


def answers(health: Health, *codes: int, pod: Endpoint = ONE, now: float = 0.0) -> list[Ejected | None]:
    return [health.answered(pod, code, PODS, now) for code in codes]


def test_so_many_failures_in_a_row_and_not_less() -> None:
    health = Health(ALL)
    assert answers(health, 500, 503, 200, 500, 599, 404, 500, 500) == [None] * 8
    assert answers(health, 500) == [Ejected(ONE, "consecutive_5xx", 3, 30)]
    assert health.left(PODS) == list(PODS[1:])


def test_gateway_errors_have_a_count_of_their_own() -> None:
    health = Health(replace(ALL, errors=0, gateway=2))
    assert answers(health, 500, 500, 500, 502, 500, 504) == [None] * 6
    assert answers(health, 503) == [Ejected(ONE, "consecutive_gateway_failure", 2, 30)]


def test_what_fails_here_counts_as_gateway_error_or_by_itself() -> None:
    health = Health(replace(ALL, gateway=2))
    assert health.failed(ONE, False, PODS, 0) is None
    found = health.failed(ONE, True, PODS, 0)
    assert found is not None
    assert found.why == "consecutive_gateway_failure"
    health = Health(replace(ALL, gateway=2, local=2, split=True))
    assert [health.failed(ONE, True, PODS, 0), *answers(health, 503), health.failed(ONE, True, PODS, 0)] == [None] * 3
    found = health.failed(ONE, False, PODS, 0)
    assert found is not None
    assert found.why == "consecutive_local_origin_failure"


def test_it_comes_back_at_the_end_of_an_interval_and_is_out_longer_each_time() -> None:
    health, now = Health(ALL), 0.0
    for times in (1, 2, 3):
        (*_, found) = answers(health, 500, 500, 500, now=now)
        assert found is not None
        assert found.seconds == 30 * times
        assert health.sweep(now + found.seconds - 0.1) == []
        now += found.seconds
        assert health.sweep(now) == [ONE]
        assert health.left(PODS) is PODS
    assert [health.sweep(now) for _ in range(3)] == [[]] * 3
    assert not health.watched  # being well for as many intervals has paid it off
    (*_, found) = answers(health, 500, 500, 500, now=now)
    assert found is not None
    assert found.seconds == 30


def test_nobody_is_out_for_more_than_five_minutes_unless_the_base_is_longer() -> None:
    for base, most in ((120.0, 300.0), (900.0, 900.0)):
        health, seconds = Health(replace(ALL, base=base)), list[float]()
        for _ in range(5):
            (*_, found) = answers(health, 500, 500, 500)
            assert found is not None
            seconds.append(found.seconds)
            health.sweep(10**6)
        assert max(seconds) == seconds[-1] == most


@pytest.mark.parametrize(("most", "out"), [(10, 0), (20, 1), (50, 2), (100, 5)])
def test_no_more_are_out_than_a_share_of_all(most: int, out: int) -> None:
    health = Health(replace(ALL, most=most))
    for pod in PODS:
        answers(health, 500, 500, 500, pod=pod)
    assert len(health.out) == out
    assert health.refused == 5 - out
    assert (none_can(replace(ALL, most=most), 5) > 0) == (out == 0)


def test_where_too_few_are_well_all_are_asked() -> None:
    health = Health(replace(ALL, least=50))
    for number, pod in enumerate(PODS, 1):
        answers(health, 500, 500, 500, pod=pod)
        assert len(health.left(PODS)) == (5 - number if number <= 2 else 5)
    health = Health(ALL)
    for pod in PODS:
        answers(health, 500, 500, 500, pod=pod)
    assert health.left(PODS) == []


def test_an_endpoint_that_is_gone_is_forgotten() -> None:
    health = Health(ALL)
    answers(health, 500, 500, 500)
    health.keep(PODS[1:])
    assert not health.out
    assert health.sweep(0) == []
    assert health.answered(ONE, 500, PODS[1:], 0) is None  # an answer that was under way


@pytest.mark.parametrize(
    ("status", "headers", "end", "counts"),
    [
        (200, [("grpc-status", "14")], True, 503),
        (200, [("grpc-status", "5")], True, 200),
        (200, [("grpc-status", "14")], False, 200),
        (503, [], True, 503),
        (200, [("grpc-status", "x" * 100)], True, 200),
    ],
)
def test_grpc_says_its_status_in_a_head_that_is_all(
    status: int, headers: list[tuple[str, str]], end: bool, counts: int
) -> None:
    assert status_of(status, headers, end) == counts


STEP = st.one_of(
    st.tuples(st.sampled_from(PODS), st.sampled_from([200, 404, 500, 503, -1, -2])),
    st.floats(0, 200),
)
SETTINGS = st.builds(
    Outlier,
    errors=st.integers(0, 3),
    gateway=st.integers(0, 3),
    local=st.integers(0, 3),
    split=st.booleans(),
    base=st.floats(0.1, 400),
    most=st.integers(0, 100),
    least=st.integers(0, 100),
)


@given(SETTINGS, st.lists(STEP, max_size=60))
def test_whatever_happens_limits_hold_and_everybody_comes_back(
    settings: Outlier, steps: list[tuple[Endpoint, int] | float]
) -> None:
    health, now = Health(settings), 0.0
    for step in steps:
        if isinstance(step, float):
            now += step
            before = set(health.out)
            assert before - set(health.sweep(now)) == health.out
            continue
        pod, code = step
        found = health.failed(pod, code == -2, PODS, now) if code < 0 else health.answered(pod, code, PODS, now)
        assert found is None or (found.endpoint == pod and pod in health.out and 0 < found.seconds <= 400)
        assert len(health.out) * 100 <= settings.most * len(PODS)
        left = health.left(PODS)
        assert set(left) == set(PODS) - health.out or len(left) == len(PODS)
        assert len(left) * 100 >= settings.least * len(PODS)
    for _ in range(100):
        now += 10_000
        health.sweep(now)
    assert not health.out
    assert not any(host.times for host in health._hosts.values())
