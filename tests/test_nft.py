"""The rules in a real kernel, with real packets, and no sidecar: what should be captured is refused, the rest flows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scratch import MEGABYTE, NO_ADMIN, Answer, Netns, Pair, config, linklocal, netns, pair
from tproxy.core.config import Config
from tproxy.core.ruleset import TABLE, ruleset
from tproxy.kernel import netns as kernel_netns
from tproxy.kernel import nft
from tproxy.kernel.errors import KernelError

REFUSED = "ConnectionRefusedError"
AT_ONCE = 1.0  # seconds; a black hole takes minutes
SIDECAR = {"mark": 2, "uid": 1337, "caps": "net_raw"}
RULES = ruleset(Config.parse({}, "defaults"))

VANISH = """
import socket, sys
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 2)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("", 40001))
sock.connect((sys.argv[1], 7))
sock.setsockopt(socket.IPPROTO_TCP, 19, 1)  # linux/tcp.h: TCP_REPAIR, so that close says nothing to the network
sock.close()
"""


@pytest.fixture(scope="module")
def plain() -> Iterator[Pair]:
    with pair() as made:
        yield made


@pytest.fixture
def wire(plain: Pair) -> Iterator[Pair]:
    """A pod without rules, before and after."""
    plain.pod.tproxy("cleanup")
    yield plain
    plain.pod.tproxy("cleanup")


@pytest.fixture
def captured(wire: Pair) -> Pair:
    """A pod with the default rules."""
    wire.pod.tproxy("init")
    return wire


@pytest.fixture
def namespace() -> Iterator[Netns]:
    with netns() as made:
        yield made


def refused_at_once(answer: Answer) -> bool:
    return answer.error == REFUSED and answer.seconds < AT_ONCE


def flows(answer: Answer) -> bool:
    return answer.error == "" and answer.got == MEGABYTE


@pytest.mark.parametrize("family", ["4", "6"])
def test_without_rules_everything_flows(wire: Pair, family: str) -> None:
    assert flows(wire.pod.call(getattr(wire, f"outside{family}"), 7, size=MEGABYTE))
    assert flows(wire.outside.call(getattr(wire, f"pod{family}"), 7, size=MEGABYTE))


@pytest.mark.parametrize("family", ["4", "6"])
def test_outbound_is_refused_at_once_where_no_sidecar_listens(captured: Pair, family: str) -> None:
    assert refused_at_once(captured.pod.call(getattr(captured, f"outside{family}"), 7))


@pytest.mark.parametrize("family", ["4", "6"])
def test_inbound_is_refused_at_once_where_no_sidecar_listens(captured: Pair, family: str) -> None:
    assert refused_at_once(captured.outside.call(getattr(captured, f"pod{family}"), 7))


def test_inbound_to_a_link_local_address_is_refused(captured: Pair) -> None:
    assert refused_at_once(captured.outside.call(f"{linklocal(captured.pod)}%eth0", 7))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "10.66.0.1", "fd66::1"])
def test_the_application_reaches_itself(captured: Pair, host: str) -> None:
    assert flows(captured.pod.call(host, 7, size=MEGABYTE))


@pytest.mark.parametrize("port", [15000, 15001, 15006])
def test_ports_of_the_sidecar_are_closed_to_the_outside(wire: Pair, port: int, tmp_path: Path) -> None:
    everything = {"excludeInboundIPRanges": ["0.0.0.0/0", "::/0"]}
    wire.pod.tproxy("init", "--config", config(tmp_path, capture=everything))
    wire.pod.echo(port)
    assert refused_at_once(wire.outside.call(wire.pod4, port))
    assert refused_at_once(wire.outside.call(wire.pod6, port))


@pytest.mark.parametrize("port", [15020, 15021])
def test_metrics_and_health_are_not_captured(captured: Pair, port: int) -> None:
    captured.pod.echo(port)
    assert flows(captured.outside.call(captured.pod4, port, size=MEGABYTE))


@pytest.mark.parametrize("family", ["4", "6"])
def test_mark_and_uid_together_pass(captured: Pair, family: str) -> None:
    assert flows(captured.pod.call(getattr(captured, f"outside{family}"), 7, size=MEGABYTE, **SIDECAR))  # type: ignore[arg-type]


def test_the_mark_without_the_uid_is_captured(captured: Pair) -> None:
    assert refused_at_once(captured.pod.call(captured.outside4, 7, mark=2))
    assert refused_at_once(captured.pod.call(captured.outside4, 7, mark=2, uid=2000, caps="net_raw"))
    assert refused_at_once(captured.pod.call(captured.outside6, 7, mark=2, uid=2000, caps="net_raw"))


def test_the_uid_without_the_mark_is_captured(captured: Pair) -> None:
    assert refused_at_once(captured.pod.call(captured.outside4, 7, uid=1337))
    assert refused_at_once(captured.pod.call(captured.outside6, 7, uid=1337))


@pytest.mark.parametrize("mark", [0x1, 0x4, 0x8, 0xF, 0x20, 0x12])
def test_no_other_mark_gets_out(captured: Pair, mark: int) -> None:
    assert captured.pod.call(captured.outside4, 7, mark=mark).error
    assert captured.pod.call(captured.outside4, 7, mark=mark, uid=2000, caps="net_raw").error


@pytest.mark.parametrize(
    "capture",
    [
        {"excludeOutboundPorts": [7]},
        {"excludeOutboundIPRanges": ["10.66.0.0/24", "fd66::/64"]},
        {"excludeOutboundUIDs": [4242]},
        {"includeOutboundPorts": [8]},
        {"includeOutboundPorts": []},
        {"includeOutboundIPRanges": ["192.0.2.0/24", "2001:db8::/32"]},
        {"includeOutboundIPRanges": []},
    ],
    ids=str,
)
def test_what_is_excluded_leaves_in_full_and_nothing_enters(
    wire: Pair, tmp_path: Path, capture: dict[str, list[object]]
) -> None:
    wire.pod.tproxy("init", "--config", config(tmp_path, capture=capture))
    for host in (wire.outside4, wire.outside6):
        assert flows(wire.pod.call(host, 7, size=MEGABYTE, uid=4242))
    assert refused_at_once(wire.outside.call(wire.pod4, 7))
    assert refused_at_once(wire.outside.call(wire.pod6, 7))


@pytest.mark.parametrize(
    "capture",
    [
        {"excludeInboundPorts": [7]},
        {"excludeInboundIPRanges": ["10.66.0.2/32", "fd66::2/128"]},
        {"includeInboundPorts": [8]},
        {"includeInboundPorts": []},
        {"includeInboundIPRanges": ["192.0.2.0/24", "2001:db8::/32"]},
        {"includeInboundIPRanges": []},
    ],
    ids=str,
)
def test_what_is_excluded_enters_in_full_and_nothing_leaves(
    wire: Pair, tmp_path: Path, capture: dict[str, list[object]]
) -> None:
    wire.pod.tproxy("init", "--config", config(tmp_path, capture=capture))
    for host in (wire.pod4, wire.pod6):
        assert flows(wire.outside.call(host, 7, size=MEGABYTE))
    assert refused_at_once(wire.pod.call(wire.outside4, 7))
    assert refused_at_once(wire.pod.call(wire.outside6, 7))


def test_exclusions_are_for_what_they_name_only(wire: Pair, tmp_path: Path) -> None:
    narrow = {"excludeOutboundUIDs": [4242], "excludeInboundIPRanges": ["10.66.0.3/32"], "excludeOutboundPorts": [8]}
    wire.pod.tproxy("init", "--config", config(tmp_path, capture=narrow))
    assert refused_at_once(wire.pod.call(wire.outside4, 7, uid=4243))
    assert refused_at_once(wire.outside.call(wire.pod4, 7))


def test_outbound_to_a_link_local_address_does_not_get_out(captured: Pair) -> None:
    """The kernel routes it by its interface, past our ip rule."""
    assert captured.pod.call(f"{linklocal(captured.outside)}%eth0", 7, timeout=1).error


@pytest.mark.parametrize("family", ["4", "6"])
def test_nothing_gets_out_when_somebody_removed_the_ip_rule(captured: Pair, family: str) -> None:
    captured.pod.run("ip", f"-{family}", "rule", "del", "pref", "100")
    assert captured.pod.call(getattr(captured, f"outside{family}"), 7, timeout=1).error


def test_a_dead_flow_of_the_sidecar_lets_nobody_else_out_from_its_port(captured: Pair) -> None:
    who = ("setpriv", "--reuid", "1337", "--clear-groups")
    caps = ("--inh-caps=-all,+net_raw,+net_admin", "--ambient-caps=-all,+net_raw,+net_admin")
    captured.pod.run(*who, *caps, sys.executable, "-c", VANISH, captured.outside4)
    assert captured.pod.call(captured.outside4, 7, source_port=40001, timeout=1).error


@pytest.mark.parametrize("family", ["4", "6"])
def test_where_a_sidecar_listens_it_gets_what_leaves_and_what_enters(family: str) -> None:
    """Without this a rule that refuses everything would pass all the tests above."""
    with pair() as live:
        live.pod.tproxy("init")
        for port in (15001, 15006):
            live.pod.take(port)
        inside, outside = getattr(live, f"pod{family}"), getattr(live, f"outside{family}")
        assert live.pod.call(outside, 7).start in (f"{outside}:7", f"[{outside}]:7")
        assert live.outside.call(inside, 7).start in (f"{inside}:7", f"[{inside}]:7")


def test_check_changes_nothing(namespace: Netns) -> None:
    before = namespace.rules()
    with kernel_netns.inside(namespace.name):
        nft.check(RULES.nft())
    assert namespace.rules() == before


def test_check_says_what_the_kernel_or_nft_would_not_take(namespace: Netns) -> None:
    with kernel_netns.inside(namespace.name), pytest.raises(KernelError, match="syntax error"):
        nft.check("table inet tproxy { }")


def test_a_table_is_read_back_as_it_was_applied(namespace: Netns) -> None:
    with kernel_netns.inside(namespace.name):
        assert nft.table_json(TABLE) is None
        nft.apply(RULES.nft())
        table = nft.table_json(TABLE)
    assert table is not None
    chains = {entry["chain"]["name"] for entry in table["nftables"] if "chain" in entry}
    assert chains == {f"digest_{RULES.digest}", *(chain.name for chain in RULES.chains)}


def test_a_transaction_holds_in_full_or_not_at_all(namespace: Netns) -> None:
    with kernel_netns.inside(namespace.name):
        nft.apply(RULES.nft())
        before = namespace.rules()
        with pytest.raises(KernelError):
            nft.apply(f"{RULES.removal()}add rule inet nowhere nothing accept\n")
    assert namespace.rules() == before


def test_without_net_admin_the_error_says_what_to_grant(namespace: Netns) -> None:
    done = namespace.tproxy("init", prefix=NO_ADMIN, check=False)
    assert "NET_ADMIN is missing: grant it to the init container" in done.stderr
