"""Istio's objects to listeners: all Gateways merged, ports first, then names; the oldest wins, and says so.

apiVersions v1, v1beta1 and v1alpha3 are one schema. Sources: istio.io reference, pilot/pkg/model/gateway.go (merging).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar, assert_never

from tproxy.core.fields import ConfigError, parse_port
from tproxy.core.hostnames import HostTable, intersection
from tproxy.core.http.routes import HttpTable
from tproxy.core.routes import (
    Bind,
    Chain,
    Closed,
    HttpListener,
    Listener,
    Passthrough,
    Route,
    TcpListener,
    Terminate,
    TlsListener,
)
from tproxy.gateway.findings import Findings, Hints, by_kind
from tproxy.gateway.istio.auto import Auto
from tproxy.gateway.istio.delegates import resolved
from tproxy.gateway.istio.destinations import policies
from tproxy.gateway.istio.gateway import GROUP, Family, Server, servers
from tproxy.gateway.istio.tables import Bound, Virtuals, is_routed, requests, requests_by_tls
from tproxy.gateway.istio.virtual import L4Match, L4Rule, Virtual, virtual
from tproxy.gateway.objects import Object
from tproxy.gateway.registry import Registry
from tproxy.gateway.secrets import Vault

T = TypeVar("T")
_VERSIONS = ("v1", "v1beta1", "v1alpha3")
_READ = ("Gateway", "VirtualService", "DestinationRule", "ServiceEntry")


def listeners(
    objects: Iterable[Object], registry: Registry, labels: Mapping[str, str], findings: Findings, vault: Vault
) -> dict[Bind, Listener]:
    """What a gateway pod with these labels listens to. Faults are findings; who has one is left out."""
    things = list(objects)
    kinds, targets = by_kind(things, GROUP, _READ, _VERSIONS, findings), _targets(things, labels, findings)
    rules = policies(kinds["DestinationRule"], findings, vault)
    virtuals = _each(kinds["VirtualService"], lambda thing: virtual(thing, registry, rules, findings), findings)
    auto = Auto(registry, rules)
    bound = _bound(resolved(virtuals, findings), kinds["Gateway"], findings)
    ports: dict[Bind, list[Server]] = {}
    for found in _each(kinds["Gateway"], lambda thing: servers(thing, labels, registry, findings, vault), findings):
        for server in found:
            _merge(ports.setdefault((server.bind, server.port), []), server, findings)
    served: dict[Bind, Listener] = {}
    for (address, port), found in ports.items():
        bind = address, targets.get(port, port)
        if bind in served:
            why = f"port {port} would be bound at {bind[1]}, where port {served[bind].port} is; it is not served"
            findings.warn(found[0].gateway, found[0].path, why)
        else:
            served[bind] = _listener(port, found, bound, auto, findings)
    return served


def _targets(things: Iterable[Object], labels: Mapping[str, str], findings: Findings) -> dict[int, int]:
    """Ports of the Services that select this pod, and where it must listen for them: 443 may mean 8443."""
    found: dict[int, int] = {}
    for thing in things:
        if (thing.group, thing.kind) != ("", "Service"):
            continue
        try:
            spec = thing.fields("spec")
            selector = {str(key): str(value) for key, value in spec.inner("selector").data.items()}
            if not selector or not selector.items() <= labels.items():
                continue
            for entry in spec.each("ports"):
                port = entry.parsed("port", parse_port, None)
                if isinstance(entry.raw("targetPort"), str):
                    why = "is a name, which this gateway cannot look up; it listens on the port itself"
                    findings.warn(thing, entry.name("targetPort"), why)
                else:
                    found.setdefault(port, entry.parsed("targetPort", parse_port, port))
        except ConfigError as error:
            findings.error(error)
    return found


def _each(things: Iterable[Object], read: Callable[[Object], T], findings: Findings) -> Iterator[T]:
    for thing in things:
        try:
            yield read(thing)
        except ConfigError as error:
            findings.error(error)


def _bound(virtuals: Iterable[Virtual], gateways: Iterable[Object], findings: Findings) -> Bound:
    bound = {f"{thing.namespace}/{thing.name}": Virtuals() for thing in gateways}
    for made in virtuals:
        limited = {name for rule in (*made.tls, *made.tcp) for match in rule.matches for name in match.gateways}
        limited |= {name for rule in made.http for condition in rule.conditions for name in condition.gateways}
        for name in dict.fromkeys((*made.gateways, *sorted(limited))):
            if name in bound:
                bound[name].append(made)
            elif name != "mesh":
                findings.warn(
                    made.thing,
                    "spec.gateways",
                    f"there is no Gateway {name} (IST0101){_meant(name, bound, findings.hints)}",
                )
    return bound


def _meant(name: str, bound: Bound, hints: Hints) -> str:
    """One of this name in another namespace, or one with nearly this name."""
    bare = name.rpartition("/")[2]
    same = [other for other in bound if other.rpartition("/")[2] == bare]
    return hints.near(name, same, 0) or hints.near(name, bound, 0.6)


def _merge(there: list[Server], server: Server, findings: Findings) -> None:
    """One family a port; a TLS server with a host that is taken is skipped whole; a TCP port has one server."""
    taken = {host for other in there for _, host in other.hosts}
    doubled = sorted({host for _, host in server.hosts} & taken)
    skipping = f"skipping server on gateway {server.gateway.namespace}/{server.gateway.name}"
    if there and there[0].family is not server.family:
        why = f"{skipping}: conflict: port {server.port} is {there[0].family} by {there[0].name}"
        findings.warn(server.gateway, server.path, why)
    elif server.family is Family.TLS and doubled:
        findings.warn(server.gateway, server.path, f"{skipping}, duplicate host names: [{' '.join(doubled)}]")
    elif server.family is Family.TCP and there:
        findings.warn(server.gateway, server.path, f"{skipping}: conflict: port {server.port} has {there[0].name}")
    else:
        there.append(server)


def _listener(port: int, found: list[Server], bound: Bound, auto: Auto, findings: Findings) -> Listener:
    match found[0].family:
        case Family.HTTP:
            for server in found:
                _unrouted(server, bound, findings)
            return HttpListener(port, requests(found, bound))
        case Family.TCP:
            route = _tcp(found[0], bound)
            if route is None:
                findings.warn(found[0].gateway, found[0].path, f"no VirtualService tcp route is bound to port {port}")
            return TcpListener(port, found[0].name, route)
        case Family.TLS:
            return TlsListener(port, HostTable(_chains(found, bound, auto, findings).items()))
        case never:
            assert_never(never)


def _unrouted(server: Server, bound: Bound, findings: Findings) -> None:
    if not is_routed(server, bound):
        names = ", ".join(host for _, host in server.hosts)
        why = f"no VirtualService http route is bound to {names}: every request is answered 404"
        findings.warn(server.gateway, server.path, why)


def _chains(found: list[Server], bound: Bound, auto: Auto, findings: Findings) -> dict[str, Chain]:
    chains: dict[str, Chain] = {}
    tables = requests_by_tls(found, bound)
    for server in found:
        if not server.passes:
            chain = _ended(server, bound, tables)
            if server.protocol == "HTTPS":
                _unrouted(server, bound, findings)
            if isinstance(chain, Closed):
                why = f"{chain.why} and its hosts; tls routes are for PASSTHROUGH"
                findings.warn(server.gateway, server.path, why)
            for _, host in server.hosts:
                chains.setdefault(host, chain)
            continue
        if server.auto:
            for name, passed in auto.chains(server):
                chains.setdefault(name, passed)
            continue
        routed = False
        for name, chain, (made, match) in _passed(server, bound):
            routed = True
            other = chains.setdefault(name, chain)
            if other is not chain and not (isinstance(other, Passthrough) and other.route is chain.route):
                by = other.route.name if isinstance(other, Passthrough) else other.server
                why = f"{name} on port {server.port} is taken by {by}; this route does not get it"
                findings.warn(made.thing, match.path, why)
        if not routed:
            names = ", ".join(host for _, host in server.hosts)
            findings.warn(server.gateway, server.path, f"no VirtualService tls route is bound to {names}")
    return chains


def _passed(server: Server, bound: Bound) -> Iterator[tuple[str, Passthrough, tuple[Virtual, L4Match]]]:
    """Every name that a tls route of a bound VirtualService and the server both mean."""
    for made, rule, match in _rules(server, bound, "tls"):
        for name in match.names:
            for where, host in server.hosts:
                both = intersection(name, host)
                if both is not None and where in ("*", made.thing.namespace):
                    yield both, Passthrough(server.name, rule.route), (made, match)


def _ended(server: Server, bound: Bound, tables: Mapping[str, HttpTable]) -> Chain:
    """We end TLS; a TLS server carries bytes on, an HTTPS server requests."""
    assert server.tls is not None
    if server.protocol == "HTTPS":
        return Terminate(server.name, server.tls, tables[server.name], server.acme)
    if (route := _tcp(server, bound)) is None:
        return Closed(server.name, f"no VirtualService tcp route is bound to port {server.port}", server.acme)
    return Terminate(server.name, server.tls, route, server.acme)


def _tcp(server: Server, bound: Bound) -> Route | None:
    """The first tcp route of the first VirtualService that shares a host with the server."""
    for made, rule, _ in _rules(server, bound, "tcp"):
        for where, host in server.hosts:
            if where in ("*", made.thing.namespace) and any(intersection(host, own) for own in made.hosts):
                return rule.route
    return None


def _rules(server: Server, bound: Bound, kind: str) -> Iterator[tuple[Virtual, L4Rule, L4Match]]:
    """What a server's Gateway is given, as far as ports and gateways of the matches go."""
    name = f"{server.gateway.namespace}/{server.gateway.name}"
    for made in bound[name]:
        for rule in made.tls if kind == "tls" else made.tcp:
            for match in rule.matches:
                if match.port in (None, server.port) and name in (match.gateways or made.gateways):
                    yield made, rule, match
