"""Entries, deltas, versions: whoever applies what is sent, however it is cut and resumed, ends where the sender is."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.control import feed as feeds
from tproxy.control.feed import Feed
from tproxy.core.address import Address, Endpoint, parse_address
from tproxy.core.config import Config
from tproxy.core.decide import Mtls, Plain, egress, expected
from tproxy.core.directory import Absent, Delta, Entries, Entry, Kind, Mirror, Part, Version, difference
from tproxy.core.identity import SpiffeId
from tproxy.core.policy.policy import Allow
from tproxy.core.policy.recheck import egress as recheck
from tproxy.core.policy.recheck import is_left
from tproxy.core.reason import Deny, Reason
from tproxy.identity.directory import parsed

TARGET = Endpoint.parse("10.0.0.7:80")
WEB = Entry(Kind.POD, "shop/web-0", ("ns/shop/sa/web",))
BARE = Entry(Kind.POD, "shop/bare-0")
DB = SpiffeId.workload("cluster.local", "shop", "db")

addresses = st.integers(1, 30).map(lambda n: parse_address(f"10.0.0.{n}" if n % 3 else f"fd00::{n}"))
paths = st.sampled_from(("ns/shop/sa/web", "ns/shop/sa/db", "ns/pay/sa/x"))
rows = st.builds(
    Entry, st.sampled_from(list(Kind)), st.sampled_from(("shop/a", "shop/b")), st.lists(paths, max_size=2).map(tuple)
)
states = st.dictionaries(addresses, rows, max_size=12)


def config(**data: Any) -> Config:
    return Config.parse({"mesh": [], **data})


# what egress makes of an entry


def test_an_entry_that_speaks_mtls_names_the_ids_and_the_rule() -> None:
    found = egress(TARGET, False, config(mesh=[{"cidr": "10.0.0.7", "mtls": False}]), WEB)
    assert isinstance(found, Mtls)
    assert ([str(one) for one in found.expect], found.rule) == (
        ["spiffe://cluster.local/ns/shop/sa/web"],
        "directory: shop/web-0",
    )
    assert isinstance(expected(DB, found.expect, config(), found.rule), Deny)


def test_an_entry_outside_the_mesh_is_the_policys_business() -> None:
    refused = egress(TARGET, False, config(), BARE)
    assert isinstance(refused, Deny)
    assert refused.reason is Reason.EGRESS_DENIED and "shop/bare-0" in refused.why
    passed = egress(TARGET, False, config(egress="passthrough"), BARE)
    assert passed == Plain(TARGET, "egress: passthrough (directory: shop/bare-0)")
    anyone = config(mesh=[{"cidr": "10.0.0.0/8"}], egress="passthrough")
    assert isinstance(egress(TARGET, False, anyone, BARE), Plain)


def test_no_entry_makes_plaintext_of_what_a_rule_wants_an_id_for() -> None:
    asked = config(mesh=[{"cidr": "10.0.0.0/8", "ids": ["ns/shop/sa/db"]}], egress="passthrough")
    assert isinstance(egress(TARGET, False, asked, BARE), Mtls)


@given(st.sampled_from(("passthrough", "deny")))
def test_while_nothing_is_known_only_mesh_rules_open_a_way(outside: str) -> None:
    refused = egress(TARGET, False, config(egress=outside), Absent.UNKNOWN)
    assert isinstance(refused, Deny) and refused.reason is Reason.DIRECTORY_AWAY
    assert isinstance(
        egress(TARGET, False, config(mesh=[{"cidr": "10.0.0.0/8"}], egress=outside), Absent.UNKNOWN), Mtls
    )


def test_an_address_that_nobody_lists_is_decided_as_without_a_directory() -> None:
    for outside in ("passthrough", "deny"):
        for rules in ([], [{"cidr": "10.0.0.0/8"}], [{"cidr": "10.0.0.7", "mtls": False}]):
            asked = config(mesh=rules, egress=outside)
            assert egress(TARGET, False, asked, Absent.UNLISTED) == egress(TARGET, False, asked)


MIXED = Entry(Kind.SERVICE, "shop/web", ("ns/shop/sa/web",), mixed=True)
WHOLE = Entry(Kind.SERVICE, "shop/web", ("ns/shop/sa/web",))
MIGRATING = {"address": "control:15013", "mixed": "plain"}


def test_a_service_that_is_half_in_the_mesh_is_reached_by_mtls_unless_a_migration_says_otherwise() -> None:
    for said in ({}, {"directory": {"address": "control:15013"}}):
        assert isinstance(egress(TARGET, False, config(egress="passthrough", **said), MIXED), Mtls)
    moving = config(egress="passthrough", directory=MIGRATING)
    passed = egress(TARGET, False, moving, MIXED)
    rule = "egress: passthrough (directory: service shop/web (mixed: not every endpoint is in the mesh))"
    assert passed == Plain(TARGET, rule)
    assert isinstance(egress(TARGET, False, moving, WHOLE), Mtls)


@given(rows, st.booleans(), st.sampled_from(("passthrough", "deny")), st.booleans())
def test_ids_are_proven_unless_the_service_is_mixed_and_a_migration_and_passthrough_say_otherwise(
    row: Entry, mixed: bool, outside: str, migrates: bool
) -> None:
    found = replace(row, mixed=mixed)
    said = {"directory": MIGRATING} if migrates else {}
    answer = egress(TARGET, False, config(egress=outside, **said), found)
    if found.ids and not (mixed and migrates):
        assert isinstance(answer, Mtls) and len(answer.expect) == len(found.ids)
    else:
        assert isinstance(answer, Plain if outside == "passthrough" else Deny)


def test_no_migration_opens_what_is_closed_otherwise() -> None:
    refused = egress(TARGET, False, config(directory=MIGRATING), MIXED)
    assert isinstance(refused, Deny) and refused.reason is Reason.EGRESS_DENIED and "mixed" in refused.why
    asked = config(mesh=[{"cidr": "10.0.0.0/8", "ids": ["ns/shop/sa/web"]}], egress="passthrough", directory=MIGRATING)
    assert isinstance(egress(TARGET, False, asked, MIXED), Mtls)


def test_plaintext_to_a_service_that_comes_into_the_mesh_goes_on_while_the_migration_lasts() -> None:
    moving = config(egress="passthrough", directory=MIGRATING)
    bare = Entry(Kind.SERVICE, "shop/web")
    for was in (bare, MIXED):
        assert is_left(was, WHOLE, None, moving)
        assert not is_left(was, WHOLE, None, config(egress="passthrough"))
        assert not is_left(was, Entry(Kind.SERVICE, "shop/db", ("ns/shop/sa/db",)), None, moving)
        assert not is_left(was, WHOLE, SpiffeId.workload("cluster.local", "shop", "web"), moving)
    assert not is_left(BARE, WEB, None, moving)  # a pod's address has another owner now
    assert not is_left(Absent.UNLISTED, WHOLE, None, moving)


def test_a_live_connection_ends_when_its_entry_expects_somebody_else() -> None:
    web = SpiffeId.workload("cluster.local", "shop", "web")
    other = Entry(Kind.POD, "shop/db-0", ("ns/shop/sa/db",))
    assert recheck(TARGET, False, web, config(), WEB) is None
    assert recheck(TARGET, False, web, config(), other) is not None
    assert recheck(TARGET, False, None, config(), WEB) is not None  # plaintext where mTLS is spoken now
    assert recheck(TARGET, False, web, config(egress="passthrough"), BARE) is None


@given(states, addresses, rows)
def test_an_unexpected_id_is_never_let_in_by_an_entry(state: Entries, address: Address, row: Entry) -> None:
    entry = {**state, address: row}[address]
    found = egress(Endpoint(address, 80), False, config(egress="passthrough"), entry)
    if isinstance(found, Mtls):
        assert found.expect
        answer = expected(DB, found.expect, config(), found.rule)
        assert isinstance(answer, Allow) == ("ns/shop/sa/db" in entry.ids)
    else:
        assert not entry.ids


# deltas


@given(states, states)
def test_the_difference_applied_to_the_old_state_is_the_new_one(old: Entries, new: Entries) -> None:
    mirror = Mirror()
    mirror.take(Part(Version("e", 1), True, Delta(old)))
    delta = difference(old, new)
    changed = mirror.take(Part(Version("e", 2), False, delta))
    assert mirror.entries == new
    assert changed == {one for one in {*old, *new} if old.get(one) != new.get(one)}
    assert bool(delta) == (old != new)


@given(states, states)
def test_a_snapshot_says_what_it_changed(old: Entries, new: Entries) -> None:
    mirror = Mirror()
    mirror.take(Part(Version("e", 1), True, Delta(old)))
    changed = mirror.take(Part(Version("other", 7), True, Delta(new)))
    assert mirror.entries == new and mirror.version == Version("other", 7)
    assert changed == {one for one in {*old, *new} if old.get(one) != new.get(one)}


PART = Part(Version("e", 2), False, Delta())


@pytest.mark.parametrize(
    "part",
    [
        Part(Version("e", 3), False, Delta()),
        Part(Version("e", 1), False, Delta()),
        Part(Version("f", 2), False, Delta()),
    ],
)
def test_a_step_that_does_not_follow_is_refused_and_changes_nothing(part: Part) -> None:
    mirror = Mirror()
    mirror.take(Part(Version("e", 1), True, Delta({TARGET.ip: WEB})))
    with pytest.raises(ValueError, match="does not follow e/1"):
        mirror.take(part)
    assert mirror.entries == {TARGET.ip: WEB} and mirror.version == Version("e", 1)


def test_a_step_before_any_snapshot_is_refused() -> None:
    with pytest.raises(ValueError, match="does not follow None"):
        Mirror().take(PART)


def test_pieces_count_when_the_last_is_there_and_are_nothing_after_an_interruption() -> None:
    mirror = Mirror()
    first = Part(Version("e", 1), True, Delta({TARGET.ip: WEB}), more=True)
    assert mirror.take(first) is None
    assert mirror.entries == {} and mirror.version is None
    with pytest.raises(ValueError, match="in the middle of version e/1"):
        mirror.take(PART)
    mirror.interrupted()
    assert mirror.take(first) is None
    other = parse_address("10.0.0.8")
    assert mirror.take(Part(Version("e", 1), False, Delta({other: BARE}))) == {TARGET.ip, other}
    assert mirror.entries == {TARGET.ip: WEB, other: BARE}


# the feed, and readers of any speed


@given(st.data(), st.lists(states, min_size=1, max_size=8), st.integers(1, 5), st.integers(0, 2000))
def test_whoever_reads_ends_where_the_writer_is_however_often_he_starts_again(
    data: st.DataObject, history: list[Entries], piece: int, least: int
) -> None:
    """Restarts of the reader (in the middle of pieces, too) and of the server, steps that are forgotten."""
    before = feeds.PIECE, feeds.LEAST
    feeds.PIECE, feeds.LEAST = piece, least
    try:
        asyncio.run(_follow(data, history))
    finally:
        feeds.PIECE, feeds.LEAST = before


async def _follow(data: st.DataObject, history: list[Entries]) -> None:
    present: dict[Address, Entry] = {}
    feed, mirror = Feed(present), Mirror()
    number = feed.start(mirror.version)
    for state in history:
        delta = difference(present, state)
        present.clear()
        present.update(state)
        feed.append(delta)
        event = data.draw(st.sampled_from(("read", "lag", "again", "break", "server")))
        if event == "lag":
            continue
        if event == "server":
            feed = Feed(present)
        if event != "read":
            mirror.interrupted()
            number = feed.start(mirror.version)
        while number != feed.version.number:
            number, messages = await feed.next(number)
            if event == "break" and len(messages) > 1:
                for raw in messages[: data.draw(st.integers(1, len(messages) - 1))]:
                    assert mirror.take(parsed(raw)) is None
                mirror.interrupted()
                number, event = feed.start(mirror.version), "again"
                continue
            for raw in messages:
                mirror.take(parsed(raw))
        assert mirror.entries == state
    number = feed.start(mirror.version)
    while number != feed.version.number:
        number, messages = await feed.next(number)
        for raw in messages:
            mirror.take(parsed(raw))
    assert mirror.entries == present and mirror.version == feed.version


def test_a_reader_waits_until_there_is_something_and_then_gets_only_that() -> None:
    async def scene() -> None:
        feed = Feed({TARGET.ip: WEB})
        number, (snapshot,) = await feed.next(None)
        waiting = asyncio.create_task(feed.next(number))
        await asyncio.sleep(0)
        assert not waiting.done()
        feed.append(Delta(removed=frozenset((TARGET.ip,))))
        number, (step,) = await waiting
        assert parsed(snapshot).snapshot and not parsed(step).snapshot
        assert parsed(step).delta == Delta(removed=frozenset((TARGET.ip,)))
        assert number == 1 and len(step) < 60

    asyncio.run(scene())


def test_every_reader_is_given_the_same_bytes() -> None:
    async def scene() -> None:
        feed = Feed({TARGET.ip: WEB})
        feed.append(Delta({TARGET.ip: WEB}))
        for number in (None, 0):
            assert (await feed.next(number))[1][0] is (await feed.next(number))[1][0]

    asyncio.run(scene())


def test_steps_that_weigh_more_than_a_snapshot_are_forgotten() -> None:
    feed = Feed({})
    many = {parse_address(f"10.1.{n >> 8}.{n & 255}"): WEB for n in range(2000)}
    for _ in range(50):
        feed.append(Delta(many))
    assert feed.start(Version(feed.version.epoch, 0)) is None
    assert feed.start(feed.version) == 50
    assert feed.start(Version(feed.version.epoch, 51)) is None
    assert feed.start(Version("another", 50)) is None


# what arrives is not believed before it is read


@pytest.mark.parametrize(
    "entry",
    [
        {"address": b"123"},
        {"address": b"\1\2\3\4", "ids": ["ns/*/sa/web"]},
        {"address": b"\1\2\3\4", "ids": ["ns/shop/../sa"]},
        {"address": b"\1\2\3\4", "ids": [""]},
        {"address": b"\1\2\3\4", "name": "a\nb"},
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(entry: dict[str, Any]) -> None:
    from tproxy.wire import directory_pb2 as wire

    with pytest.raises(ValueError):
        parsed(wire.Update(set=[wire.Entry(**entry)]).SerializeToString())
