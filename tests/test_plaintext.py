"""Who still talks plaintext: the book that counts, the page, the metric, and the command's words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.admin.dump import plaintext_dump
from tproxy.admin.metrics import PEERS, Metrics
from tproxy.cli import main
from tproxy.cli.plaintext import table
from tproxy.core.address import parse_address
from tproxy.core.config import Config
from tproxy.core.plaintext import LIMIT, Plaintext, Talk
from tproxy.core.record import Direction

CONFIG = Config.parse({"inbound": {"mode": "permissive", "ports": {9090: "disable"}}, "egress": "passthrough"})
talks = st.builds(
    Talk, st.sampled_from((Direction.INGRESS, Direction.EGRESS)), st.ip_addresses(), st.integers(1, 65535)
)


def caller(number: int, port: int = 80) -> Talk:
    return Talk(Direction.INGRESS, parse_address(f"10.0.{number // 256}.{number % 256}"), port)


@given(st.lists(talks, max_size=60), st.integers(1, 20))
def test_the_newest_are_kept_each_is_counted_and_the_others_are_said_to_be_forgotten(
    many: list[Talk], limit: int
) -> None:
    book = Plaintext(limit)
    for moment, talk in enumerate(many):
        book.add(talk, "", moment)
    rows = book.rows()
    assert len(rows) <= limit
    assert [seen.last for _, seen in rows] == sorted((seen.last for _, seen in rows), reverse=True)
    assert bool(book.forgotten) == (len(set(many)) > limit)
    if not book.forgotten:
        assert {talk: seen.connections for talk, seen in rows} == {talk: many.count(talk) for talk in many}


def test_addresses_from_the_network_cost_no_more_than_the_limit() -> None:
    book = Plaintext()
    for number in range(LIMIT * 3):
        book.add(caller(number), "", 1.0)
    assert (len(book.rows()), book.forgotten) == (LIMIT, 2 * LIMIT)


def test_the_command_names_the_caller_its_port_and_the_mode() -> None:
    book = Plaintext()
    book.add(caller(7), "shop/legacy-1", 990.0)
    book.add(caller(8, 9090), "", 995.0)
    book.add(Talk(Direction.EGRESS, parse_address("10.96.0.1"), 443), "default/kubernetes", 999.0)
    found = plaintext_dump(book, {caller(7): 2}, CONFIG)
    assert table(found, found["rows"], 1000.0) == [
        "calls this pod in plaintext               port connections  open  last         mode",
        "10.0.0.8 (not in the directory)           9090           1     0  5 s ago      disable",
        "10.0.0.7 shop/legacy-1                      80           1     2  10 s ago     permissive",
        "is called in plaintext                    port connections  open  last",
        "10.96.0.1 default/kubernetes               443           1     0  1 s ago",
    ]
    assert table({}, [], 0.0) == ["the sidecar waits for credentials, and lets nobody in"]


def test_pods_that_come_and_go_make_only_so_many_series() -> None:
    metrics = Metrics()
    for number in range(PEERS + 50):
        metrics.bare(Direction.INGRESS, f"shop/pod-{number}")
    page = metrics.page().body.decode()
    series = [line for line in page.splitlines() if line.startswith("tproxy_plaintext_connections_total")]
    assert len(series) == PEERS + 1
    assert 'tproxy_plaintext_connections_total{direction="ingress",peer="others"} 50.0' in series


def test_without_a_sidecar_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plaintext", "--port", "1"]) == 2
    assert "no sidecar answers there" in capsys.readouterr().err
