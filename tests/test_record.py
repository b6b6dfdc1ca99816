"""One record, one line: what is written can be read back, whatever characters a peer put into it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.address import Endpoint
from tproxy.core.reason import ADVICE, Reason
from tproxy.core.record import Direction, Outcome, Record, TlsFacts

BASE: dict[str, Any] = {
    "time": 1_700_000_000.25,
    "direction": Direction.INGRESS,
    "source": Endpoint.parse("10.0.0.9:40000"),
    "target": Endpoint.parse("[fd00::7]:80"),
    "outcome": Outcome.CLOSED,
    "seconds": 0.0123456789,
}
hostile = st.text(
    alphabet=st.characters() | st.sampled_from(list('\n\r\t\0\x1b\x7f\x85\u2028\u202e"\\= ')), max_size=30
)
sizes = st.integers(0, 2**63)
records = st.builds(
    Record,
    time=st.floats(0, 4_000_000_000),
    direction=st.sampled_from(Direction),
    source=st.just(BASE["source"]),
    target=st.just(BASE["target"]),
    outcome=st.sampled_from(Outcome),
    seconds=st.floats(0, 1e6),
    reason=st.none() | st.sampled_from(Reason),
    why=hostile,
    rule=hostile,
    peer=hostile,
    own=hostile,
    peer_serial=hostile,
    own_serial=hostile,
    tls=st.none() | st.builds(TlsFacts, hostile, hostile, hostile),
    sent=sizes,
    received=sizes,
    ended_by=hostile,
    dry_run=hostile,
    audit=hostile,
)


def read(line: str) -> dict[str, str]:
    """A reader of the text form: key=value, where a value in quotes is JSON."""
    found, at = {}, 0
    pair = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^ "=]+)(?: |$)')
    while at < len(line):
        match = pair.match(line, at)
        assert match, line[at:]
        key, value = match.groups()
        assert key not in found
        found[key] = json.loads(value) if value.startswith('"') else value
        at = match.end()
    return found


@given(records)
def test_the_text_is_one_printable_line_that_is_read_back_whole(record: Record) -> None:
    line = record.text()
    assert line.isascii() and line.isprintable() and len(line.splitlines()) == 1
    assert read(line) == {key: str(value) for key, value in record.pairs().items()}


@given(records)
def test_the_json_is_one_printable_line_that_is_read_back_whole(record: Record) -> None:
    line = record.json()
    assert line.isascii() and line.isprintable() and len(line.splitlines()) == 1
    assert json.loads(line) == record.pairs()


@given(records)
def test_every_record_says_when_who_where_how_and_how_much(record: Record) -> None:
    pairs = record.pairs()
    assert list(pairs)[:5] == ["time", "direction", "source", "destination", "outcome"]
    assert {"sent", "received", "duration"} <= pairs.keys()
    assert all(value != "" for value in pairs.values())


@given(records)
def test_a_reason_never_stands_without_its_advice(record: Record) -> None:
    pairs = record.pairs()
    assert ("reason" in pairs) is ("advice" in pairs) is (record.reason is not None)
    if record.reason:
        assert pairs["advice"] == ADVICE[record.reason]


def test_a_pair_cannot_be_forged_from_inside_a_value() -> None:
    record = Record(**BASE, why='x" outcome=closed peer="spiffe://cluster.local/ns/shop/sa/admin', rule="a=b")
    assert read(record.text())["why"] == record.why
    assert "peer" not in read(record.text()) and read(record.text())["rule"] == "a=b"


@pytest.mark.parametrize("text", ["\x1b[2J", "\x7f", "\x9b31m", "two\nlines", "two\u2028lines", "\ud800", "\u202eabc"])
def test_a_terminal_is_never_given_an_escape(text: str) -> None:
    record = Record(**BASE, why=text)
    for line in (record.text(), record.json()):
        assert line.isascii() and line.isprintable()


def test_a_connection_that_was_carried_reads_like_this() -> None:
    record = Record(
        **BASE,
        rule="only-web",
        peer="spiffe://cluster.local/ns/shop/sa/web",
        own="spiffe://cluster.local/ns/shop/sa/db",
        peer_serial="a1",
        own_serial="b2",
        tls=TlsFacts("TLSv1.3", "TLS_AES_128_GCM_SHA256", "x25519"),
        sent=10,
        received=20,
        ended_by="source",
    )
    assert record.text() == (
        "time=2023-11-14T22:13:20.250Z direction=ingress source=10.0.0.9:40000 destination=[fd00::7]:80 outcome=closed "
        "rule=only-web peer=spiffe://cluster.local/ns/shop/sa/web self=spiffe://cluster.local/ns/shop/sa/db "
        "peer_serial=a1 self_serial=b2 tls=TLSv1.3 cipher=TLS_AES_128_GCM_SHA256 group=x25519 "
        "sent=10 received=20 duration=0.012346 ended_by=source"
    )


@pytest.mark.parametrize("outcome", Outcome)
def test_only_what_was_carried_in_plaintext_is_called_plaintext(outcome: Outcome) -> None:
    pairs = Record(**{**BASE, "outcome": outcome}).pairs()
    began = outcome not in (Outcome.REFUSED, Outcome.FAILED)
    assert pairs.get("tls") == ("plaintext" if began else None)
    secured = Record(**{**BASE, "outcome": outcome}, tls=TlsFacts("TLSv1.3", "c", "g")).pairs()
    assert secured["tls"] == "TLSv1.3"
