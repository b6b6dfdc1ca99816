"""ip rules and routes in a real namespace: adding twice adds once, removing twice is no fault, others stay."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scratch import Netns, netns
from tproxy.core.config import Config
from tproxy.core.ruleset import ruleset
from tproxy.kernel import netns as kernel_netns
from tproxy.kernel import route

ITEMS = route.items(ruleset(Config.parse({}, "defaults")).routing)


@pytest.fixture
def namespace() -> Iterator[Netns]:
    with netns() as made:
        yield made


def ours(namespace: Netns, family: int) -> list[str]:
    shown = namespace.run("ip", f"-{family}", "rule").stdout.splitlines()
    return [line for line in shown if "lookup 133" in line]


def test_both_families_get_a_rule_and_a_route(namespace: Netns) -> None:
    with kernel_netns.inside(namespace.name):
        assert route.missing(ITEMS) == ITEMS
        assert route.add(ITEMS).added == ITEMS
        assert route.missing(ITEMS) == ()
    for family in (4, 6):
        assert ours(namespace, family) == ["100:\tfrom all fwmark 0x1/0xf lookup 133"]
        assert "local default dev lo" in namespace.run("ip", f"-{family}", "route", "show", "table", "133").stdout


def test_adding_twice_adds_once(namespace: Netns) -> None:
    with kernel_netns.inside(namespace.name):
        route.add(ITEMS)
        assert route.add(ITEMS).added == ()
    assert [len(ours(namespace, family)) for family in (4, 6)] == [1, 1]


def test_what_a_person_added_with_iproute2_is_not_added_again(namespace: Netns) -> None:
    for command in ruleset(Config.parse({}, "defaults")).commands():
        namespace.run(*command.split())
    with kernel_netns.inside(namespace.name):
        assert route.add(ITEMS).added == ()
        assert route.missing(ITEMS) == ()
    assert [len(ours(namespace, family)) for family in (4, 6)] == [1, 1]


def test_removing_leaves_nothing_and_may_be_said_twice(namespace: Netns) -> None:
    before = namespace.rules()
    with kernel_netns.inside(namespace.name):
        route.add(ITEMS)
        assert route.remove(ITEMS) == ITEMS
        assert route.remove(ITEMS) == ()
    assert namespace.rules() == before


def test_rules_of_others_are_neither_taken_for_ours_nor_removed(namespace: Netns) -> None:
    namespace.run("ip", "rule", "add", "pref", "101", "fwmark", "0x1/0xf", "iif", "lo", "lookup", "133")
    namespace.run("ip", "rule", "add", "pref", "99", "fwmark", "0x1/0xf", "lookup", "133")
    namespace.run("ip", "route", "add", "local", "10.0.0.0/8", "dev", "lo", "table", "133")
    before = namespace.rules()
    with kernel_netns.inside(namespace.name):
        assert route.add(ITEMS).added == ITEMS
        route.remove(ITEMS)
    assert namespace.rules() == before


def test_without_ipv6_there_is_a_note_and_ipv4_works(namespace: Netns) -> None:
    namespace.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    with kernel_netns.inside(namespace.name):
        done = route.add(ITEMS)
        assert done.notes == (route.NO_IPV6,)
        assert route.missing(ITEMS) == ()
        assert route.add(ITEMS).added == ()
    assert "local default dev lo" in namespace.run("ip", "route", "show", "table", "133").stdout
