"""Consistent hashing: a key has its endpoint, shares are as wanted, and who comes or goes moves hardly a key."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tproxy.core.address import Endpoint
from tproxy.core.balance import ring as rings
from tproxy.core.balance.ring import MOST, Ring, digest, maglev, ring

POD = st.integers(0, 2**32 - 1).map(lambda number: Endpoint(IPv4Address(number), 8080))
PODS = st.lists(POD, min_size=1, max_size=12, unique=True).map(tuple)
KEYS = [digest(str(number).encode()) for number in range(4000)]


def pods(count: int) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(IPv4Address(f"10.0.{number // 250}.{number % 250}"), 80) for number in range(count))


@settings(deadline=None, max_examples=40)
@given(PODS, POD)
def test_on_a_ring_only_keys_of_the_endpoint_that_comes_or_goes_move(some: tuple[Endpoint, ...], new: Endpoint) -> None:
    without = tuple(pod for pod in some if pod != new)
    if not without:
        return
    fewer, more = ring(without), ring((*without, new))
    for key in KEYS[:500]:
        assert more.first(key) in (fewer.first(key), new)


@settings(deadline=None, max_examples=40)
@given(PODS, st.integers(0, 2**64 - 1), st.data())
def test_whoever_is_left_out_costs_the_others_no_key(some: tuple[Endpoint, ...], key: int, data: st.DataObject) -> None:
    made = ring(some)
    left = data.draw(st.sets(st.sampled_from(some), min_size=1))
    found = made.among(key, left)
    assert found in left
    if made.first(key) in left:
        assert found == made.first(key)
    assert next(made.walk(key)) == made.first(key)
    assert sorted(map(str, made.walk(key))) == sorted(map(str, some))


@settings(deadline=None, max_examples=20)
@given(st.permutations(pods(7)))
def test_replicas_that_list_endpoints_in_another_order_send_a_key_to_the_same(some: list[Endpoint]) -> None:
    weights = tuple(int(str(pod.ip).rpartition(".")[2]) + 1 for pod in some)
    for one, other in (
        (ring(tuple(some)), ring(pods(7))),
        (maglev(tuple(some), (), 1009), maglev(pods(7), (), 1009)),
        (maglev(tuple(some), weights, 1009), maglev(pods(7), (1, 2, 3, 4, 5, 6, 7), 1009)),
    ):
        assert [one.first(key) for key in KEYS[:300]] == [other.first(key) for key in KEYS[:300]]


@pytest.mark.parametrize("count", [2, 3, 10, 40])
def test_shares_of_a_ring_are_even(count: int) -> None:
    made = ring(pods(count))
    shares = Counter(made.first(key) for key in KEYS)
    assert len(shares) == count
    assert max(shares.values()) < 1.45 * len(KEYS) / count, shares


def test_shares_follow_weights() -> None:
    some = pods(3)
    for made in (ring(some, (1, 2, 5)), maglev(some, (1, 2, 5))):
        shares = Counter(made.first(key) for key in KEYS)
        for pod, weight in zip(some, (1, 2, 5), strict=True):
            assert shares[pod] == pytest.approx(len(KEYS) * weight / 8, rel=0.2)


def places(made: Ring, size: int) -> list[Endpoint]:
    return [made.first(place) for place in range(size)]


@pytest.mark.parametrize(("count", "size"), [(3, 1009), (10, 65_537), (50, 65_537)])
def test_a_maglev_table_is_as_even_as_can_be_and_moves_little(count: int, size: int) -> None:
    """NSDI 2016, 5.3: with a table that is large for its endpoints hardly any other key moves."""
    before, after = places(maglev(pods(count), (), size), size), places(maglev(pods(count)[1:], (), size), size)
    shares = Counter(before)
    assert max(shares.values()) - min(shares.values()) <= 1
    gone = shares[pods(count)[0]]
    moved = sum(one != other for one, other in zip(before, after, strict=True))
    assert gone <= moved < gone + size * 0.12


@pytest.mark.parametrize("weights", [(1, 2**32 - 1), (2**32 - 1, 2**32 - 2), (1,) * 2, (1, 70_000)])
def test_no_weight_makes_a_ring_large(weights: tuple[int, ...]) -> None:
    made = ring(pods(2), weights, 2**23)
    assert len(set(map(made.first, KEYS))) in (1, 2)
    assert len(made._owners) <= MOST + 1


def test_a_thousand_endpoints_have_a_ring_of_bounded_size() -> None:
    made = ring(pods(1000))
    assert len(made._owners) <= MOST
    assert len(set(map(made.first, KEYS))) > 900


def test_a_ring_is_made_once_for_all_who_use_it_and_goes_with_the_last() -> None:
    made = ring(pods(5))
    assert ring(pods(5)) is made
    assert maglev(pods(5), (), 101) is not maglev(pods(5), (), 103)
    before = len(rings._MADE)
    del made
    assert len(rings._MADE) == before - 1
