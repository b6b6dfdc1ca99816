"""The one Config: every port, mark, path and default, parsed once from a mapping and passed whole.

>>> Config.parse({"identity": {"cert": "c", "key": "k", "ca": "a"}}, "example").ports.egress
15001
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tproxy.core.address import Address, contains, parse_network
from tproxy.core.capture import Capture
from tproxy.core.egress.config import parse_routes
from tproxy.core.egress.routes import EgressRoutes
from tproxy.core.fields import ConfigError, Fields, parse_port, parse_whole, text_of
from tproxy.core.identity import IdPattern, is_segment, parse_trust_domain
from tproxy.core.identity_config import parse_directory, parse_identity, parse_trust
from tproxy.core.policy.manifest import Manifest, Workload, distinct, parse_policies, parse_workload
from tproxy.core.policy.policy import Policy, Rule
from tproxy.core.settings import (
    Bundle,
    Directory,
    Fast,
    Files,
    Group,
    Identity,
    Limits,
    Marks,
    MeshRule,
    Mode,
    Outside,
    Ports,
    Relay,
    Settled,
    Sockmap,
    Splicer,
    Trust,
)

T = TypeVar("T")
GROUPS = (Group.HYBRID, Group.P256, Group.X25519)  # the order of preference
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")  # RFC 1918, RFC 4193: where pods live


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the sidecar, its rules and its tools know about this pod."""

    trust_domain: str
    identity: Identity | None
    mesh: tuple[MeshRule, ...]  # longest prefix first
    egress: Outside
    mode: Mode
    port_modes: Mapping[int, Mode]
    policy: Policy
    capture: Capture
    ports: Ports = field(default_factory=Ports)
    marks: Marks = field(default_factory=Marks)
    limits: Limits = field(default_factory=Limits)
    trust: Trust = field(default_factory=Trust)
    directory: Directory | None = None
    groups: tuple[Group, ...] = GROUPS
    tls12: bool = False  # TLS 1.2 is accepted, too
    fast: Fast = field(default_factory=Fast)
    uid: int = 1337
    gid: int = 1337
    workload: Workload = field(default_factory=Workload)
    policies: tuple[str, ...] = ()  # files and folders
    follows: bool = False  # the policies that control tells, too
    held: str = ""  # the version of theirs that is among ``manifests``; none: nobody is let in
    manifests: tuple[Manifest, ...] = ()  # all objects; core/effective.py makes mode and policy of them
    mode_said: bool = False  # whether inbound.mode is more than the default
    settled: Settled | None = None
    egress_routes: EgressRoutes = field(default_factory=EgressRoutes)

    @classmethod
    def parse(cls, data: Mapping[str, Any] | None, where: str = "config", manifests: Iterable[Manifest] = ()) -> Config:
        """From YAML and the objects of ``policies``. ConfigError names file, field, value and the nearest valid one."""
        top = Fields(data, where)
        domain = top.parsed("trustDomain", text_of(parse_trust_domain), "cluster.local")
        inbound, ports, tls = top.inner("inbound"), _ports(top.inner("ports")), top.inner("tls")
        trust = parse_trust(top.inner("trust"), domain)
        own = _pattern_of(domain, trust)
        mode = Mode(inbound.choice("mode", Mode.STRICT, list(Mode)))
        port_modes = _port_modes(inbound.inner("ports"))
        policies, follows = parse_policies(top)
        policy = Policy(tuple(_rule(entry, index, domain, own) for index, entry in enumerate(inbound.each("rules"))))
        inbound.finish()
        capture = _capture(top.inner("capture"))
        config = cls(
            trust_domain=domain,
            identity=parse_identity(top.inner("identity")) if top.raw("identity") is not None else None,
            trust=trust,
            directory=parse_directory(top.inner("directory")) if top.raw("directory") is not None else None,
            mesh=_mesh(top, own),
            egress=Outside(top.choice("egress", Outside.DENY, list(Outside))),
            mode=mode,
            port_modes=port_modes,
            policy=policy,
            capture=capture,
            ports=ports,
            limits=_limits(top.inner("limits")),
            groups=_groups(tls),
            tls12=tls.choice("minVersion", "1.3", ("1.2", "1.3")) == "1.2",
            fast=_fast(top.inner("fast")),
            uid=top.integer("uid", 1337, 1, 2**32 - 2),
            gid=top.integer("gid", 1337, 1, 2**32 - 2),
            workload=parse_workload(top.inner("workload")),
            policies=policies,
            follows=follows,
            manifests=distinct(manifests),
            egress_routes=parse_routes(top.inner("egressRoutes"), capture),
            mode_said=inbound.raw("mode") is not None,
        )
        if follows and config.directory is None:
            raise top.error("policies.control", "needs the section directory: control is asked there", True)
        if follows and top.inner("workload").raw("rootNamespace") is not None:
            why = "stands beside policies.control: control says it"
            raise top.error("workload.rootNamespace", why, config.workload.root)
        tls.finish()
        top.finish()
        return config

    def mode_of(self, port: int) -> Mode:
        """The mode of one of the application's ports."""
        return self.port_modes.get(port, self.mode)

    def mode_rule(self, port: int) -> str:
        """As it stands in records: the mode, and the object that sets it."""
        origin = self.settled.origin(port) if self.settled else ""
        return f"mode {self.mode_of(port)}{origin and ' of '}{origin}"

    def mesh_rule(self, address: Address) -> MeshRule | None:
        """The most specific mesh entry for a destination, or None outside the mesh."""
        return next((rule for rule in self.mesh if contains((rule.network,), address)), None)


def _parse_uid(value: Any) -> int:
    return parse_whole(value, "a user id", 0, 2**32 - 2)


def _ports(fields: Fields) -> Ports:
    default = Ports()
    names = ("egress", "ingress", "admin", "metrics", "ready")
    ports = Ports(**{name: fields.parsed(name, parse_port, getattr(default, name)) for name in names})
    fields.finish()
    seen: dict[int, str] = {}
    for name in names:
        if (other := seen.setdefault(getattr(ports, name), name)) != name:
            raise fields.error(name, f"the port is taken by ports.{other}", getattr(ports, name))
    return ports


def _port_modes(fields: Fields) -> dict[int, Mode]:
    modes: dict[int, Mode] = {}
    for key in fields.data:
        try:
            port = parse_port(key)
        except ValueError as error:
            raise fields.error(key, str(error)) from error
        if port in modes:
            raise fields.error(key, f"port {port} stands here twice")
        modes[port] = Mode(fields.choice(key, Mode.STRICT, list(Mode)))
    return modes


def _pattern_of(domain: str, trust: Trust) -> Callable[[Any], IdPattern]:
    """A parser of patterns, in which an alias of our trust domain means our own."""
    return text_of(lambda text: IdPattern.parse(text, domain).canonical(domain, trust.aliases))


def _rule(fields: Fields, index: int, domain: str, pattern: Callable[[Any], IdPattern]) -> Rule:
    namespaces = frozenset(fields.some("namespaces", text_of(_namespace)))
    rule = Rule(
        name=fields.text("name", f"rule-{index + 1}"),
        ports=frozenset(fields.some("ports", parse_port)),
        ids=fields.some("ids", pattern),
        namespaces=namespaces,
        sources=fields.some("sources", text_of(parse_network)),
        domain=domain if namespaces else "",
    )
    fields.finish()
    return rule


def _namespace(text: str) -> str:
    if not is_segment(text):
        raise ValueError("expected a namespace: letters, digits, '.', '-', '_' only")
    return text


def _mesh(top: Fields, pattern: Callable[[Any], IdPattern]) -> tuple[MeshRule, ...]:
    if top.raw("mesh") is None:
        entries = [MeshRule(parse_network(network)) for network in PRIVATE]
    else:
        entries = [_mesh_rule(entry, pattern) for entry in top.each("mesh")]
    return tuple(sorted(entries, key=lambda rule: -rule.network.prefixlen))


def _mesh_rule(fields: Fields, pattern: Callable[[Any], IdPattern]) -> MeshRule:
    if fields.raw("cidr") is None:
        raise fields.error("cidr", "is missing: a CIDR or an address")
    rule = MeshRule(
        network=fields.parsed("cidr", text_of(parse_network), None),
        ids=fields.some("ids", pattern),
        mtls=fields.flag("mtls", True),
    )
    if rule.ids and not rule.mtls:
        raise fields.error("ids", "cannot be proven without TLS: leave out ids or mtls: false")
    fields.finish()
    return rule


def _capture(fields: Fields) -> Capture:
    network = text_of(parse_network)
    include_outbound_ports = _included(fields, "includeOutboundPorts", parse_port)
    include_inbound_ports = _included(fields, "includeInboundPorts", parse_port)
    capture = Capture(
        include_outbound_networks=_included(fields, "includeOutboundIPRanges", network),
        exclude_outbound_networks=fields.items("excludeOutboundIPRanges", network),
        include_outbound_ports=None if include_outbound_ports is None else frozenset(include_outbound_ports),
        exclude_outbound_ports=frozenset(fields.items("excludeOutboundPorts", parse_port)),
        exclude_outbound_uids=frozenset(fields.items("excludeOutboundUIDs", _parse_uid)),
        include_inbound_ports=None if include_inbound_ports is None else frozenset(include_inbound_ports),
        exclude_inbound_ports=frozenset(fields.items("excludeInboundPorts", parse_port)),
        include_inbound_networks=_included(fields, "includeInboundIPRanges", network),
        exclude_inbound_networks=fields.items("excludeInboundIPRanges", network),
    )
    fields.finish()
    return capture


def _included(fields: Fields, key: str, parse: Callable[[Any], T]) -> tuple[T, ...] | None:
    """``*``, like no word at all, means everything (None); an empty list means nothing."""
    return None if fields.raw(key, "*") in ("*", ["*"]) else fields.items(key, parse)


_SECONDS = ("peek", "silence", "handshake", "connect", "drain")
_TEN_YEARS = 3650 * 86400


def _limits(fields: Fields) -> Limits:
    base = Limits()
    seconds = {name: fields.number(name, getattr(base, name), 0.01, 86400) for name in _SECONDS}
    counts = {name: fields.integer(name, getattr(base, name), 1, 1_000_000) for name in ("handshakes", "connections")}
    limits = Limits(**seconds, **counts, grace=fields.number("grace", base.grace, 0, _TEN_YEARS))  # type: ignore[arg-type]
    fields.finish()
    return limits


def _groups(fields: Fields) -> tuple[Group, ...]:
    return fields.some("groups", text_of(_group)) or GROUPS


def _group(text: str) -> Group:
    if text not in list(Group):
        raise ValueError(f"expected one of {', '.join(Group)}")
    return Group(text)


def _fast(fields: Fields) -> Fast:
    base = Fast()
    fast = Fast(
        relay=Relay(fields.choice("relay", base.relay, list(Relay))),
        sockmap=Sockmap(fields.choice("sockmap", base.sockmap, list(Sockmap))),
        splicer=Splicer(fields.choice("splicer", base.splicer, list(Splicer))),
        resumption=fields.flag("resumption", base.resumption),
    )
    fields.finish()
    return fast


__all__ = [
    "Bundle",
    "Config",
    "ConfigError",
    "Fast",
    "Files",
    "Identity",
    "Limits",
    "Marks",
    "MeshRule",
    "Mode",
    "Outside",
    "Ports",
    "Relay",
    "Sockmap",
    "Splicer",
    "Trust",
    "parse_port",
]
