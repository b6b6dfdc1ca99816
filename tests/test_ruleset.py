"""The rule set as a value: whatever the configuration, what is captured and finds no sidecar is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.scratch import Netns, netns
from tproxy.core.address import Network
from tproxy.core.capture import Capture
from tproxy.core.config import Config
from tproxy.core.ruleset import RuleSet, ruleset

GOLDEN = Path(__file__).parent / "golden" / "default.nft"
DEFAULT = Config.parse({}, "defaults")

ports = st.frozensets(st.integers(1, 65535), max_size=6)
uids = st.frozensets(st.integers(0, 2**32 - 2), max_size=4)
v4 = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda it: IPv4Network(it, strict=False))
v6 = st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(lambda it: IPv6Network(it, strict=False))
networks = st.lists(st.one_of(v4, v6), max_size=5).map(tuple)
captures = st.builds(
    Capture,
    include_outbound_networks=st.none() | networks,
    exclude_outbound_networks=networks,
    include_outbound_ports=st.none() | ports,
    exclude_outbound_ports=ports,
    exclude_outbound_uids=uids,
    include_inbound_ports=st.none() | ports,
    exclude_inbound_ports=ports,
    include_inbound_networks=st.none() | networks,
    exclude_inbound_networks=networks,
)
configs = captures.map(lambda capture: replace(DEFAULT, capture=capture))


@pytest.fixture(scope="module")
def namespace() -> Iterator[Netns]:
    with netns() as made:
        yield made


def texts(rules: RuleSet, chain: str) -> list[str]:
    return next([rule.text for rule in found.rules] for found in rules.chains if found.name == chain)


def with_capture(**fields: object) -> RuleSet:
    return ruleset(replace(DEFAULT, capture=replace(Capture(), **fields)))  # type: ignore[arg-type]


def whole(key: str, nets: tuple[Network, ...] | None, rows: list[str], version: int) -> bool:
    """Whether a rule, or for an include list the absence of one, stands for the whole family."""
    if not any(net.version == version for net in nets or ()):
        return False
    if "!=" in key:
        protocol = "ip6" if version == 6 else "ip"
        return not any(row.startswith(f"{protocol} {key}") for row in rows)
    return f"meta nfproto ipv{version} return" in rows


def members(text: str) -> list[str]:
    found = re.search(r"\{ (.*) \}", text)
    return found[1].split(", ") if found else []


@given(configs)
def test_every_chain_that_hands_over_ends_in_a_reset(config: Config) -> None:
    chains = [chain for chain in ruleset(config).chains if any(" tproxy " in rule.text for rule in chain.rules)]
    assert {chain.name for chain in chains} == {"in_capture", "out_capture"}
    for chain in chains:
        last = chain.rules[-1].text
        assert last.endswith("reject with tcp reset")
        assert not re.search(r"daddr|saddr|dport|sport|mark|\bct ", last), "the last rule takes everything"


@given(configs)
def test_between_handing_over_and_the_reset_nothing_lets_a_packet_through(config: Config) -> None:
    for chain in ("in_capture", "out_capture"):
        rules = texts(ruleset(config), chain)
        first = next(index for index, text in enumerate(rules) if " tproxy " in text)
        assert all(" tproxy " in text for text in rules[first:-1])


@given(configs)
def test_flows_of_the_sidecar_are_let_go_before_anything_is_marked(config: Config) -> None:
    rules, marks = texts(ruleset(config), "output"), config.marks
    own = rules.index(f"ct mark & {marks.mask:#x} == {marks.outward:#x} return")
    marking = [index for index, text in enumerate(rules) if text.startswith("meta mark set")]
    assert marking == [len(rules) - 1]
    assert own < marking[0]


@given(configs)
def test_the_bypass_needs_both_mark_and_uid_of_the_sidecar(config: Config) -> None:
    remember = f"| {config.marks.outward:#x}"
    for chain in ruleset(config).chains:
        for rule in chain.rules:
            if "ct mark set" in rule.text and remember in rule.text:
                own = f"meta mark & 0xf == {config.marks.own:#x} meta skuid {config.uid} " in rule.text
                assert own or re.search(r"meta skuid \{ ", rule.text)


@given(configs)
def test_ports_of_the_sidecar_are_refused_before_any_exception(config: Config) -> None:
    rules = texts(ruleset(config), "in_capture")
    assert rules[0] == "fib daddr type != local return"
    assert rules[1].startswith("tcp dport { 15000, 15001, 15006 }")
    assert rules[1].endswith("reject with tcp reset")


@given(configs)
def test_the_other_bits_of_both_marks_are_kept(config: Config) -> None:
    for chain in ruleset(config).chains:
        for rule in chain.rules:
            for kind, kept in re.findall(r"(meta|ct) mark set (\S+ mark & \S+)", rule.text):
                assert kept == f"{kind} mark & 0xfffffff0"


@given(captures)
def test_every_entry_of_every_list_stands_in_a_rule(capture: Capture) -> None:
    rules = ruleset(replace(DEFAULT, capture=capture))
    inbound, outbound = texts(rules, "in_capture"), texts(rules, "output")
    everything_of = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
    everything = [rule.text for chain in rules.chains for rule in chain.rules]
    for numbers, rows, key in (
        (capture.include_inbound_ports, inbound, "tcp dport != "),
        (capture.exclude_inbound_ports, inbound, "tcp dport { "),
        (capture.include_outbound_ports, outbound, "tcp dport != "),
        (capture.exclude_outbound_ports, outbound, "tcp dport { "),
        (capture.exclude_outbound_uids, everything, "meta skuid { "),
    ):
        found = {member for row in rows if key in row and "reject" not in row for member in members(row)}
        assert {str(number) for number in numbers or ()} <= found
    for nets, rows, key in (
        (capture.include_inbound_networks, inbound, "saddr != "),
        (capture.exclude_inbound_networks, inbound, "saddr { "),
        (capture.include_outbound_networks, outbound, "daddr != "),
        (capture.exclude_outbound_networks, outbound, "daddr { "),
    ):
        covering = [ip_network(member) for row in rows if key in row for member in members(row)]
        covering += [everything_of[version] for version in (4, 6) if whole(key, nets, rows, version)]
        for net in nets or ():
            same = [other for other in covering if other.version == net.version]
            assert any(net.subnet_of(other) for other in same)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["include_inbound_ports", "include_outbound_ports"])
def test_an_empty_include_list_of_ports_captures_nothing(field: str) -> None:
    chain = "in_capture" if "inbound" in field else "output"
    assert "return" in texts(with_capture(**{field: frozenset()}), chain)


@pytest.mark.parametrize("field", ["include_inbound_networks", "include_outbound_networks"])
def test_an_empty_include_list_of_networks_captures_nothing(field: str) -> None:
    rules = texts(with_capture(**{field: ()}), "in_capture" if "inbound" in field else "output")
    assert {"meta nfproto ipv4 return", "meta nfproto ipv6 return"} <= set(rules)


def test_a_family_that_no_included_network_has_is_not_captured() -> None:
    rules = texts(with_capture(include_outbound_networks=(IPv4Network("10.0.0.0/8"),)), "output")
    assert "ip daddr != { 10.0.0.0/8 } return" in rules
    assert "meta nfproto ipv6 return" in rules


def test_only_tcp_is_touched() -> None:
    for chain in ("prerouting", "output"):
        assert texts(ruleset(DEFAULT), chain)[0] == "meta l4proto != tcp return"


@given(configs)
def test_the_text_replaces_the_table_in_one_transaction(config: Config) -> None:
    lines = ruleset(config).nft().splitlines()
    table = lines[0]
    assert lines[:3] == [table, f"delete {table}", f"{table} {{"]
    assert lines[-1] == "}"


@given(configs, configs)
def test_the_digest_names_the_rules(one: Config, other: Config) -> None:
    first, second = ruleset(one), ruleset(other)
    assert first.digest in first.nft()
    assert (first.digest == second.digest) == (first.chains == second.chains)


@given(configs)
def test_equal_configurations_give_equal_rules(config: Config) -> None:
    assert ruleset(config) == ruleset(replace(config))
    assert ruleset(config).text() == ruleset(replace(config)).text()


def test_the_default_rules_are_the_ones_that_were_reviewed() -> None:
    """After a wanted change: ``tproxy rules > tests/golden/default.nft``, and read the difference."""
    assert ruleset(DEFAULT).text() == GOLDEN.read_text()


@given(configs)
def test_the_json_says_the_same(config: Config) -> None:
    rules = ruleset(config)
    data = json.loads(json.dumps(rules.as_dict()))
    assert data["digest"] == rules.digest
    shown = [[rule["rule"] for rule in chain["rules"]] for chain in data["chains"]]
    assert shown == [[rule.text for rule in chain.rules] for chain in rules.chains]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configs)
def test_nft_and_this_kernel_accept_every_rule_set(namespace: Netns, config: Config) -> None:
    namespace.run("nft", "-c", "-f", "-", text=ruleset(config).text())


def test_removal_is_accepted_whether_or_not_there_is_a_table(namespace: Netns) -> None:
    rules = ruleset(DEFAULT)
    for text in (rules.removal(), rules.text(), rules.removal(), rules.removal()):
        namespace.run("nft", "-f", "-", text=text)
    assert namespace.run("nft", "list", "ruleset").stdout == ""
