"""The capture rules of a pod as data: nft rules, ip rules and routes; ``kernel`` installs what stands here.

The bypass needs mark **and** uid (an application can have either alone), decided on the SYN
and remembered in the conntrack mark (late packets of closed sockets have no uid); ``reject`` stands behind every
``tproxy`` (without a listener nft's tproxy falls through to the application: fail open).

Only TCP is captured. Fragments do not arrive here: conntrack puts them together first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import Any

from tproxy.core.address import Network
from tproxy.core.capture import Capture
from tproxy.core.config import Config, Marks

TABLE = "tproxy_capture"  # nft keeps the word tproxy for itself
_RESET = "counter reject with tcp reset"


@dataclass(frozen=True, slots=True)
class Rule:
    """One nft rule and why it is there."""

    text: str
    why: str = ""


_STRAY = Rule("ct state invalid counter drop", "a stray packet must not reset a live connection")


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; ``hook`` is empty for one that others jump to."""

    name: str
    rules: tuple[Rule, ...]
    hook: str = ""


@dataclass(frozen=True, slots=True)
class Routing:
    """What carries marked packets to lo: one ip rule and one local route for each family."""

    mark: int
    mask: int
    table: int
    preference: int


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Everything that ``tproxy init`` installs and ``tproxy cleanup`` removes."""

    chains: tuple[Chain, ...]
    routing: Routing

    @property
    def digest(self) -> str:
        """Names this rule set in the kernel, so that ``tproxy check`` can compare."""
        return hashlib.sha256(repr(self.chains).encode()).hexdigest()[:16]

    def nft(self) -> str:
        """One atomic transaction that replaces whatever table of ours is there."""
        lines = [f"table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
        lines.append(f"  chain digest_{self.digest} {{ }}")
        for chain in self.chains:
            lines.append(f"  chain {chain.name} {{")
            if chain.hook:
                lines.append(f"    {chain.hook}")
            for rule in chain.rules:
                if rule.why:
                    lines.append(f"    # {rule.why}")
                lines.append(f"    {rule.text}")
            lines.append("  }")
        return "\n".join([*lines, "}"]) + "\n"

    @staticmethod
    def removal() -> str:
        """One transaction after which no table of ours is there, whether or not there was one."""
        return f"table inet {TABLE}\ndelete table inet {TABLE}\n"

    def commands(self) -> tuple[str, ...]:
        """The ip rules and routes, as a person would type them."""
        way = self.routing
        return tuple(
            line
            for family in ("-4", "-6")
            for line in (
                f"ip {family} rule add pref {way.preference} fwmark {way.mark:#x}/{way.mask:#x} lookup {way.table}",
                f"ip {family} route add local default dev lo table {way.table}",
            )
        )

    def text(self) -> str:
        """What ``tproxy rules`` prints: nft's input, with the rest as comments."""
        return self.nft() + "".join(f"# {command}\n" for command in self.commands())

    def as_dict(self) -> dict[str, Any]:
        """For ``tproxy rules --json``."""
        chains = [
            {"name": chain.name, "hook": chain.hook, "rules": [{"rule": r.text, "why": r.why} for r in chain.rules]}
            for chain in self.chains
        ]
        return {"table": TABLE, "digest": self.digest, "chains": chains, "commands": list(self.commands())}


def ruleset(config: Config) -> RuleSet:
    """The rules that capture this pod's TCP as the configuration says, and refuse it where no sidecar takes it."""
    marks = config.marks
    routing = Routing(marks.divert, marks.mask, marks.table, marks.preference)
    chains = (
        _prerouting(marks),
        _in_capture(config),
        _out_capture(config),
        _output(config),
        _owner(config),
        _guard(marks),
    )
    return RuleSet(chains, routing)


def _is(field: str, marks: Marks, value: int) -> str:
    return f"{field} & {marks.mask:#x} == {value:#x}"


def _set(field: str, marks: Marks, value: int) -> str:
    """Change our nibble and leave the other bits to whoever uses them."""
    return f"{field} set {field} & {0xFFFFFFFF ^ marks.mask:#x} | {value:#x}"


def _prerouting(marks: Marks) -> Chain:
    own, divert = _is("meta mark", marks, marks.own), _is("meta mark", marks, marks.divert)
    rules = (
        Rule("meta l4proto != tcp return"),
        Rule(
            f'iifname "lo" {own} ct direction original {_set("ct mark", marks, marks.own)} counter return',
            "the sidecar calls the application: remember the flow, so that its answers come back to the sidecar",
        ),
        Rule(f'iifname "lo" {own} counter return'),
        Rule(
            f"socket wildcard 0 socket transparent 1 {_set('meta mark', marks, marks.divert)} counter accept",
            "a connection that the sidecar accepted already",
        ),
        Rule(f'iifname "lo" {divert} counter jump out_capture', "what the application sends, marked in output"),
        Rule('iifname "lo" return', "the application and itself"),
        Rule("ct direction reply return", "answers to connections that were not captured"),
        Rule("jump in_capture"),
    )
    return Chain("prerouting", rules, "type filter hook prerouting priority mangle; policy accept;")


def _in_capture(config: Config) -> Chain:
    ports, capture = config.ports, config.capture
    rules = [
        Rule("fib daddr type != local return", "forwarded through this pod, not for it"),
        Rule(f"tcp dport {_set_of(sorted(ports.private))} {_RESET}", "the sidecar's own ports"),
        Rule(f"tcp dport {_set_of((ports.metrics, ports.ready))} return", "metrics and health"),
        *_skips("dport", "saddr", _inbound(capture)),
        _STRAY,
    ]
    return Chain("in_capture", (*rules, *_tproxy(ports.ingress)))


def _out_capture(config: Config) -> Chain:
    late = Rule(f"ct direction reply {_RESET}", "an answer whose connection the sidecar no longer has")
    return Chain("out_capture", (late, *_tproxy(config.ports.egress)))


def _tproxy(port: int) -> tuple[Rule, ...]:
    """Hand over, and behind it the rule that makes the capture fail closed."""
    return (
        Rule(f"meta nfproto ipv4 meta l4proto tcp tproxy ip to :{port} counter accept"),
        Rule(f"meta nfproto ipv6 meta l4proto tcp tproxy ip6 to :{port} counter accept"),
        Rule(f"meta l4proto tcp {_RESET}", "no sidecar listens: refuse, never let through"),
    )


def _output(config: Config) -> Chain:
    marks = config.marks
    outward, own = _is("ct mark", marks, marks.outward), _is("ct mark", marks, marks.own)
    divert = _set("meta mark", marks, marks.divert)
    rules = (
        Rule("meta l4proto != tcp return"),
        Rule("tcp flags & (syn | ack) == syn jump out_owner", "whose connection it is shows on the SYN only"),
        Rule("ct state new jump out_owner", "a connection older than its conntrack entry"),
        Rule(f"{outward} return"),
        Rule(f"{own} ct direction reply fib daddr type local return", "answers to a proxy that called from here"),
        Rule(
            f"{own} ct direction reply {divert} counter return",
            "the application answers the sidecar, which stands at a foreign address",
        ),
        Rule(f"{own} return"),
        Rule('oifname "lo" return', "the application and itself"),
        Rule("ct direction reply return", "answers to connections that were not captured"),
        *_skips("dport", "daddr", _outbound(config.capture)),
        _STRAY,
        Rule(f"{divert} counter", "everything else goes to the sidecar"),
    )
    return Chain("output", rules, "type route hook output priority mangle; policy accept;")


def _owner(config: Config) -> Chain:
    """Who may leave as it is. Written to the conntrack mark, because later packets do not show it."""
    marks, capture = config.marks, config.capture
    outward = f'oifname != "lo" {_set("ct mark", marks, marks.outward)} counter'
    rules = [
        Rule(
            f"ct mark set ct mark & {0xFFFFFFFF ^ marks.mask:#x}",
            "what an older connection with these ports was allowed is void",
        ),
        Rule(
            f"{_is('meta mark', marks, marks.own)} meta skuid {config.uid} {outward}",
            "the sidecar calls out: mark and uid",
        ),
    ]
    if capture.exclude_outbound_uids:
        users = _set_of(sorted(capture.exclude_outbound_uids))
        rules.append(Rule(f"meta skuid {users} {outward}", "excludeOutboundUIDs"))
    return Chain("out_owner", tuple(rules))


def _guard(marks: Marks) -> Chain:
    """In postrouting, because only there the device is the one that the packet really leaves by."""
    text = f'meta l4proto tcp oifname != "lo" {_is("meta mark", marks, marks.divert)} counter drop'
    why = "meant for the sidecar, but routed away: the ip rule is missing, or the address is link-local"
    return Chain("guard", (Rule(text, why),), "type filter hook postrouting priority 200; policy accept;")


@dataclass(frozen=True, slots=True)
class _Lists:
    """Include and exclude lists of one direction, with their names in YAML."""

    include_ports: frozenset[int] | None
    exclude_ports: frozenset[int]
    include_networks: tuple[Network, ...] | None
    exclude_networks: tuple[Network, ...]
    name: str


def _inbound(capture: Capture) -> _Lists:
    return _Lists(
        capture.include_inbound_ports,
        capture.exclude_inbound_ports,
        capture.include_inbound_networks,
        capture.exclude_inbound_networks,
        "Inbound",
    )


def _outbound(capture: Capture) -> _Lists:
    return _Lists(
        capture.include_outbound_ports,
        capture.exclude_outbound_ports,
        capture.include_outbound_networks,
        capture.exclude_outbound_networks,
        "Outbound",
    )


def _skips(port: str, address: str, lists: _Lists) -> Iterator[Rule]:
    """Rules that return for what is not to be captured; the packet decides, so a whole flow has one answer."""
    if lists.exclude_ports:
        yield Rule(f"tcp {port} {_set_of(sorted(lists.exclude_ports))} return", f"exclude{lists.name}Ports")
    if lists.include_ports is not None:
        text = f"tcp {port} != {_set_of(sorted(lists.include_ports))} return" if lists.include_ports else "return"
        yield Rule(text, f"include{lists.name}Ports")
    for version, family in ((4, "ip"), (6, "ip6")):
        every = f"meta nfproto ipv{version} return"
        excluded = _networks(lists.exclude_networks, version)
        if excluded:
            everything = excluded[0].prefixlen == 0
            text = every if everything else f"{family} {address} {_set_of(excluded)} return"
            yield Rule(text, f"exclude{lists.name}IPRanges")
        included = None if lists.include_networks is None else _networks(lists.include_networks, version)
        if included is not None and not (included and included[0].prefixlen == 0):
            text = f"{family} {address} != {_set_of(included)} return" if included else every
            yield Rule(text, f"include{lists.name}IPRanges")


def _networks(networks: tuple[Network, ...], version: int) -> list[Network]:
    """One family's, merged: older nft refuses elements that overlap."""
    if version == 4:
        return list(collapse_addresses(network for network in networks if isinstance(network, IPv4Network)))
    return list(collapse_addresses(network for network in networks if isinstance(network, IPv6Network)))


def _set_of(values: Iterable[object]) -> str:
    return "{ " + ", ".join(map(str, values)) + " }"
