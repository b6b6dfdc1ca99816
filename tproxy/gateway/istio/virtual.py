"""Istio's VirtualService and DestinationRule: rules for TLS and TCP, matches, destinations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tproxy.core.config import parse_port
from tproxy.core.fields import ConfigError, Fields
from tproxy.core.hostnames import covers, is_address, parse_hostname
from tproxy.core.routes import Backend, BackendTls, Balance, ProxyProtocol, Route
from tproxy.gateway.findings import Findings, ignore, refuse, then
from tproxy.gateway.istio import http as istio_http
from tproxy.gateway.istio.http import HttpRule
from tproxy.gateway.istio.tls import client_tls
from tproxy.gateway.objects import Object
from tproxy.gateway.registry import NOT_READY, Registry, full_host
from tproxy.gateway.secrets import Vault

_MESH_ONLY = ("sourceLabels", "sourceNamespace")
_BALANCE = {
    **dict.fromkeys(("UNSPECIFIED", "LEAST_REQUEST", "LEAST_CONN", "PASSTHROUGH"), Balance.LEAST_REQUEST),
    "ROUND_ROBIN": Balance.ROUND_ROBIN,
    "RANDOM": Balance.RANDOM,
}
_PROXY = {"V1": ProxyProtocol.V1, "V2": ProxyProtocol.V2}


@dataclass(frozen=True, slots=True)
class L4Match:
    """Names (none: a TCP match), a port (None: any) and the gateways that it is limited to (none: the rule's)."""

    names: tuple[str, ...]
    port: int | None
    gateways: tuple[str, ...]
    path: str


@dataclass(frozen=True, slots=True)
class L4Rule:
    """One entry of ``tls`` or ``tcp``."""

    matches: tuple[L4Match, ...]
    route: Route


@dataclass(frozen=True, slots=True)
class Virtual:
    """A VirtualService. Gateways are ``namespace/name``."""

    thing: Object
    hosts: tuple[str, ...]
    gateways: tuple[str, ...]
    tls: tuple[L4Rule, ...]
    tcp: tuple[L4Rule, ...]
    http: tuple[HttpRule, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """What a DestinationRule says of a host or of one subset of it."""

    labels: Mapping[str, str]
    tls: BackendTls | None
    proxy: ProxyProtocol
    ports: Mapping[int, BackendTls | None] = field(default_factory=dict)  # those that have TLS settings of their own
    balance: Balance = Balance.LEAST_REQUEST
    fault: str = ""  # why nobody may be spoken to under it

    def tls_of(self, host: str, port: int | None) -> BackendTls | None:
        """Towards one of the host's ports."""
        tls = self.tls if port is None else self.ports.get(port, self.tls)
        return None if tls is None else replace(tls, host=host)


Policies = dict[tuple[str, str], Policy]  # by host and subset ("" is the host itself)


def virtual(thing: Object, registry: Registry, policies: Policies, findings: Findings) -> Virtual:
    """A VirtualService, checked. ConfigError as the webhook's."""
    spec = thing.fields("spec")
    hosts = spec.items("hosts", _host)
    gateways = tuple(_gateway(text, thing.namespace) for text in spec.items("gateways", str, ["mesh"] if hosts else []))
    if gateways and not hosts:
        raise spec.error("gateways", "delegate virtual service must have no gateways specified")
    ignore(thing, spec, ("exportTo",), findings)
    kinds = [key for key in ("http", "tls", "tcp") if spec.raw(key)]
    if not kinds:
        raise spec.error("http", "http, tcp or tls must be provided in virtual service")
    for index, host in enumerate(hosts):
        if host in hosts[:index]:
            raise spec.error(f"hosts[{index}]", f"duplicate hosts in virtual service: {host} & {host}")
    if "*" in hosts and "mesh" in gateways:
        raise spec.error("hosts", "wildcard host * is not allowed for virtual services bound to the mesh gateway")
    reader = _Reader(thing, hosts, registry, policies, findings)
    tls = tuple(reader.rule(entry, "tls") for entry in spec.each("tls"))
    tcp = tuple(reader.rule(entry, "tcp") for entry in spec.each("tcp"))
    http = tuple(istio_http.rules(thing, spec, reader, lambda text: _gateway(text, thing.namespace), findings))
    spec.finish()
    return Virtual(thing, hosts, gateways, tls, tcp, http)


class _Reader:
    def __init__(
        self, thing: Object, hosts: tuple[str, ...], registry: Registry, policies: Policies, findings: Findings
    ) -> None:
        self._thing, self._hosts, self._findings = thing, hosts, findings
        self._registry, self._policies = registry, policies

    def rule(self, entry: Fields, kind: str) -> L4Rule:
        """One entry of ``tls`` or ``tcp``."""
        matches = tuple(self._match(match, kind) for match in entry.each("match"))
        if kind == "tls" and not matches:
            raise entry.error("match", "TLS match must have at least one SNI host")
        routes = entry.each("route")
        if not routes:
            raise entry.error("route", f"{kind.upper()} route is required")
        backends = tuple(self.destination(route, len(routes) == 1) for route in routes)
        if not sum(backend.weight for backend in backends):
            raise entry.error("route", "total destination weight = 0")
        entry.finish()
        return L4Rule(
            matches or (L4Match((), None, (), entry.path),),
            Route(self._named(entry), backends, entry.place(entry.path)),
        )

    def _named(self, entry: Fields) -> str:
        return f"{self._thing} {entry.path.removeprefix('spec.')}"

    def _match(self, match: Fields, kind: str) -> L4Match:
        names = match.items("sniHosts", parse_hostname) if kind == "tls" else ()
        if kind == "tls" and not names:
            raise match.error("sniHosts", "TLS match must have at least one SNI host")
        for index, name in enumerate(names):
            if is_address(name):
                why = f"using an IP address ({name!r}) goes against SNI spec and most clients do not support this"
                self._findings.warn(self._thing, f"{match.path}.sniHosts[{index}]", why)
            if not any(covers(host, name) for host in self._hosts):
                why = f"SNI host {name!r} is not a compatible subset of any of the virtual service hosts"
                raise match.error(f"sniHosts[{index}]", f"{why}: [{', '.join(self._hosts)}]")
        refuse(match, ("destinationSubnets", "sourceSubnet", *_MESH_ONLY))
        port = match.parsed("port", parse_port, None) if match.raw("port") is not None else None
        gateways = tuple(_gateway(text, self._thing.namespace) for text in match.items("gateways", str))
        match.finish()
        return L4Match(names, port, gateways, match.path)

    def destination(self, route: Fields, alone: bool) -> Backend:
        """One of a rule's destinations; ``alone`` it gets everything."""
        weight = route.integer("weight", 0, 0, 2**31 - 1)
        backend = self.target(route.inner("destination"), 1 if alone else weight)
        route.finish()
        return backend

    def target(self, target: Fields, weight: int) -> Backend:
        """A Destination: a host, its subset, its port."""
        if not target.text("host"):
            raise target.error("host", "is missing")
        host, subset = full_host(target.parsed("host", _host, None), self._thing.namespace), target.text("subset")
        number = target.inner("port")
        port = number.parsed("number", parse_port, None) if number.raw("number") is not None else None
        for fields in (number, target):
            fields.finish()
        policy = _policy_of(self._policies, host, subset)
        labels = policy.labels if policy else {}
        endpoints, fault = self._registry.find(host, port, labels)
        if policy is None:
            endpoints, fault = (), f"no DestinationRule has the subset {subset!r}"
        elif policy.fault:
            endpoints, fault = (), policy.fault
        if fault:
            self._findings.warn(
                self._thing, target.name("host"), then(f"{host}: {fault}", "connections to it are refused")
            )
        number_of = port or self._registry.only_port(host)
        name = "|".join(("outbound", str(number_of or ""), subset, host))  # Envoy's name for it, which people grep
        http2 = self._registry.http2(host, port)
        backend = Backend(name, endpoints, weight, fault="" if fault == NOT_READY else fault, http2=http2)
        if policy is None:
            return backend
        return replace(backend, tls=policy.tls_of(host, number_of), proxy=policy.proxy, balance=policy.balance)


_NOTHING = Policy({}, None, ProxyProtocol.NONE)


def _policy_of(policies: Policies, host: str, subset: str) -> Policy | None:
    """The host's own, or of the longest wildcard; None where a subset is asked for that nobody has."""
    for pattern in (host, *(f"*.{host.split('.', cut)[cut]}" for cut in range(1, host.count(".") + 1)), "*"):
        if (found := policies.get((pattern, subset))) is not None:
            return found
    return None if subset else _NOTHING


def policies(things: Iterable[Object], findings: Findings, vault: Vault) -> Policies:
    """All DestinationRules; of two for one host the first counts."""
    found: Policies = {}
    unread: list[Object] = []
    for thing in things:
        try:
            for key, policy in _policies(thing, findings, vault).items():
                found.setdefault(key, policy)
        except ConfigError as error:
            findings.error(error)
            unread.append(thing)
    for thing in unread:
        _close(thing, found)
    return found


def _close(thing: Object, found: Policies) -> None:
    """A host of TLS is not spoken to in plaintext because its rule cannot be read."""
    spec = thing.body.get("spec")
    host = spec.get("host") if isinstance(spec, Mapping) else None
    if isinstance(host, str) and _asks_for_tls(spec):
        fault = f"{thing} asks for TLS and cannot be read"
        tls = BackendTls("SIMPLE", fault=fault)
        found.setdefault((full_host(host.lower(), thing.namespace), ""), replace(_NOTHING, tls=tls, fault=fault))


def _asks_for_tls(value: object) -> bool:
    if isinstance(value, Mapping):
        return "tls" in value or any(map(_asks_for_tls, value.values()))
    return isinstance(value, list) and any(map(_asks_for_tls, value))


def _policies(thing: Object, findings: Findings, vault: Vault) -> Policies:
    spec = thing.fields("spec")
    host = full_host(spec.parsed("host", _host, None), thing.namespace)
    refuse(spec, ("workloadSelector",))
    ignore(thing, spec, ("exportTo",), findings)
    reader = _Traffic(thing, host, findings, vault)
    base = reader.policy(spec, {}, _NOTHING)
    found = {(host, ""): base}
    for entry in spec.each("subsets"):
        labels = {str(key): str(value) for key, value in entry.inner("labels").data.items()}
        if not (name := entry.text("name")):
            raise entry.error("name", "is missing")
        found[host, name] = reader.policy(entry, labels, base)
        entry.finish()
    spec.finish()
    return found


@dataclass(frozen=True, slots=True)
class _Traffic:
    """Of one DestinationRule."""

    thing: Object
    host: str
    findings: Findings
    vault: Vault

    def policy(self, entry: Fields, labels: Mapping[str, str], base: Policy) -> Policy:
        """A subset's policy takes the host's place where it says something; ports take both their places."""
        traffic = entry.inner("trafficPolicy")
        refuse(traffic, ("tunnel",))
        ignore(self.thing, traffic, ("connectionPool", "outlierDetection"), self.findings)
        tls, proxy, ports = base.tls, base.proxy, dict(base.ports)
        if traffic.raw("tls") is not None:
            tls, ports = self._tls(traffic), {}
        for each in traffic.each("portLevelSettings"):
            ignore(self.thing, each, ("loadBalancer", "connectionPool", "outlierDetection"), self.findings)
            number = each.inner("port").parsed("number", parse_port, None)
            if each.raw("tls") is not None:
                ports[number] = self._tls(each)
            each.raw("port")
            each.finish()
        if traffic.raw("proxyProtocol") is not None:
            version = traffic.inner("proxyProtocol")
            proxy = _PROXY[version.choice("version", "V1", _PROXY)]
            version.finish()
        balance = self._balance(traffic) if traffic.raw("loadBalancer") is not None else base.balance
        traffic.finish()
        return Policy(labels, tls, proxy, ports, balance)

    def _balance(self, traffic: Fields) -> Balance:
        """LoadBalancerSettings.simple; what keeps a client with one endpoint is not there."""
        given = traffic.inner("loadBalancer")
        simple = given.choice("simple", "UNSPECIFIED", _BALANCE)
        ignore(
            self.thing, given, ("consistentHash", "localityLbSetting", "warmupDurationSecs", "warmup"), self.findings
        )
        given.finish()
        if simple == "PASSTHROUGH":
            why = "means the address that a client called; a gateway's clients call the gateway. It is ignored"
            self.findings.warn(self.thing, given.name("simple"), why)
        return _BALANCE[simple]

    def _tls(self, traffic: Fields) -> BackendTls | None:
        return client_tls(self.thing, traffic.inner("tls"), self.host, self.findings, self.vault)


def _gateway(text: str, namespace: str) -> str:
    return text if "/" in text or text == "mesh" else f"{namespace}/{text}"


def _host(text: object) -> str:
    return str(text) if isinstance(text, str) and is_address(text) else parse_hostname(text)
