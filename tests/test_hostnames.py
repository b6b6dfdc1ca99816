"""Host names and their table: the most specific wins, and nothing depends on the order of the file."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.hostnames import ANY, HostTable, covers, intersection, parse_hostname, why_not

LABELS = st.sampled_from(["a", "b", "www", "example", "com"])
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join)
PATTERNS = NAMES | NAMES.map(lambda name: f"*.{name}") | st.just(ANY)


@pytest.mark.parametrize(
    "name", ["a", "a.example.com", "*.example.com", "*", "x_y.z", "xn--bcher-kva.example", "127.0.0.1"]
)
def test_a_name_or_a_pattern_is_taken(name: str) -> None:
    assert parse_hostname(name.upper()) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "*a.b",
        "a.*.b",
        "**",
        "*.",
        "-a",
        "a-",
        "a b",
        "ä.b",
        "a" * 64,
        7,
        None,
        "*.10.0.0.1",
    ],
)
def test_what_is_no_host_name_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"host name|wildcard"):
        parse_hostname(text)


@given(st.lists(PATTERNS, max_size=12), NAMES)
def test_the_most_specific_pattern_wins_whatever_the_order(patterns: list[str], name: str) -> None:
    found = HostTable((pattern, pattern) for pattern in patterns).all(name)
    expected = {pattern for pattern in patterns if covers(pattern, name)}
    assert [pattern for pattern, _ in found] == sorted(expected, key=lambda p: (p != name, p == ANY, -p.count(".")))


@given(st.lists(PATTERNS, max_size=12), PATTERNS)
def test_the_owner_of_a_pattern_covers_all_of_it_and_nobody_narrower_does(patterns: list[str], asked: str) -> None:
    owner = HostTable((pattern, pattern) for pattern in patterns).owner(asked)
    wide = {pattern for pattern in patterns if covers(pattern, asked)}
    assert owner == min(wide, key=lambda p: (p != asked, p == ANY, -p.count(".")), default=None)


@given(PATTERNS, NAMES)
def test_a_pattern_covers_a_name_or_says_why_not(pattern: str, name: str) -> None:
    assert covers(pattern, name) == (not why_not(pattern, name))


@given(PATTERNS, PATTERNS, NAMES)
def test_an_intersection_means_exactly_what_both_mean(one: str, other: str, name: str) -> None:
    both = intersection(one, other)
    assert both == intersection(other, one)
    assert (both is not None and covers(both, name)) == (covers(one, name) and covers(other, name))


@pytest.mark.parametrize(
    "name", [None, "", "a.example.com.", "10.0.0.1", "::1", "a b", "x\x00.example.com", "é.example.com"]
)
def test_what_is_no_host_name_meets_the_catch_all_only(name: str | None) -> None:
    wild = [("*.example.com", 1), ("*.com.", 2), ("a.example.com", 3)]
    assert HostTable(wild).find(name) is None
    assert HostTable([*wild, (ANY, 4)]).find(name) == (ANY, 4)


def test_case_does_not_matter_and_of_equals_the_first_wins() -> None:
    table = HostTable([("a.example.com", 1), ("a.example.com", 2)])
    assert table.find("A.Example.COM") == ("a.example.com", 1)
    assert len(table) == 1


def test_looking_up_one_of_many_thousand_names_costs_what_one_of_ten_costs() -> None:
    def seconds(count: int) -> float:
        table = HostTable((f"*.n{n}.example.com", n) for n in range(count))
        best = 1.0
        for _ in range(5):
            began = time.perf_counter()
            for n in range(2000):
                table.find(f"x.y.n{n % count}.example.com")
            best = min(best, time.perf_counter() - began)
        return best

    assert seconds(20_000) < 5 * seconds(10)
