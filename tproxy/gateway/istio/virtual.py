"""Istio's VirtualService: rules for TLS and TCP, matches, destinations."""

from __future__ import annotations

from dataclasses import dataclass

from tproxy.core.balance.outlier import none_can
from tproxy.core.fields import Fields, parse_port
from tproxy.core.hostnames import covers, is_address, parse_hostname
from tproxy.core.routes import Backend, Route
from tproxy.gateway.findings import Findings, ignore, refuse, then
from tproxy.gateway.istio import http as istio_http
from tproxy.gateway.istio.destinations import Policies, parse_host, policy_of
from tproxy.gateway.istio.http import HttpRule
from tproxy.gateway.objects import Object
from tproxy.gateway.registry import NOT_READY, Registry, full_host

_MESH_ONLY = ("sourceLabels", "sourceNamespace")


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


def virtual(thing: Object, registry: Registry, policies: Policies, findings: Findings) -> Virtual:
    """A VirtualService, checked. ConfigError as the webhook's."""
    spec = thing.fields("spec")
    hosts = spec.items("hosts", parse_host)
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
        host, subset = full_host(target.parsed("host", parse_host, None), self._thing.namespace), target.text("subset")
        number = target.inner("port")
        port = number.parsed("number", parse_port, None) if number.raw("number") is not None else None
        for fields in (number, target):
            fields.finish()
        policy = policy_of(self._policies, host, subset)
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
        made = policy.applied(backend, host, number_of, self._registry.weights(host, port, labels))
        self._watch(made, target)
        return made

    def _watch(self, backend: Backend, target: Fields) -> None:
        """A percentage that is less than one endpoint is hardly meant."""
        outlier, count = backend.care.outlier if backend.care else None, len(backend.endpoints)
        if outlier is not None and count > 1 and (least := none_can(outlier, count)):
            why = f"maxEjectionPercent {outlier.most} of {count} endpoints is less than one: none is ever left out"
            self._findings.warn(self._thing, target.name("host"), f"{backend.name}: {why}; {least} would do")


def _gateway(text: str, namespace: str) -> str:
    return text if "/" in text or text == "mesh" else f"{namespace}/{text}"
