"""Gateway API's objects to listeners and statuses. Precedence is the specification's, conflicts have no winner.

Sources: gateway-api.sigs.k8s.io, apis/v1/*_types.go; every apiVersion that was ever common is read the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tproxy.core import routes as model
from tproxy.core.fields import ConfigError
from tproxy.core.hostnames import HostTable
from tproxy.core.http.routes import Entry
from tproxy.core.routes import Bind, Chain, Closed, Passthrough, Route, Table, Terminate, TlsMode
from tproxy.gateway.findings import Findings, by_kind
from tproxy.gateway.gatewayapi import gateways, http
from tproxy.gateway.gatewayapi.backend_policies import Policies
from tproxy.gateway.gatewayapi.conditions import CONTROLLER, Conditions
from tproxy.gateway.gatewayapi.features import SUPPORTED, unknown_bundles
from tproxy.gateway.gatewayapi.gateways import Served
from tproxy.gateway.gatewayapi.grants import GROUP, Ref, World
from tproxy.gateway.gatewayapi.listeners import FAMILY, Listener
from tproxy.gateway.gatewayapi.ports import Ports
from tproxy.gateway.gatewayapi.routes import Parent, References, hostnames, parents, shown
from tproxy.gateway.objects import Object
from tproxy.gateway.registry import Registry
from tproxy.gateway.secrets import Vault
from tproxy.gateway.site import ANYWHERE, Site

_ALL = ("v1", "v1beta1", "v1alpha3", "v1alpha2")
_ROUTES = ("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute")
_READ = ("GatewayClass", "Gateway", "ListenerSet", "ReferenceGrant", "BackendTLSPolicy", *_ROUTES)
Statuses = dict[str, dict[str, Any]]  # by ``kind namespace/name``
Owners = dict[Bind, tuple[Object, ...]]  # the Gateways that a port belongs to
_Key = tuple[str, str]


@dataclass(slots=True)
class _Taken:
    """What routes give to one listener."""

    l4: list[tuple[str, Route]] = field(default_factory=list)
    http: dict[str, list[Entry]] = field(default_factory=dict)


@dataclass(slots=True)
class _Reading:
    """What routes are read against, and what they leave behind."""

    world: World
    registry: Registry
    policies: Policies
    served: Mapping[_Key, Served]
    statuses: Statuses
    findings: Findings
    parents: dict[tuple[str, str, str], list[Listener]] = field(default_factory=dict)
    gateways: dict[int, Served] = field(default_factory=dict)  # by listener
    taken: dict[int, _Taken] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, made in self.served.items():
            self.parents["Gateway", *key] = made.own
            for each in made.sets:
                self.parents["ListenerSet", *each.thing.key] = each.listeners if each.attached else []
            for one in made.listeners:
                self.gateways[id(one)], self.taken[id(one)] = made, _Taken()


def tables(
    objects: Iterable[Object], registry: Registry, findings: Findings, vault: Vault, site: Site = ANYWHERE
) -> tuple[Table, Owners, Statuses]:
    """What is served, for which Gateways, and every status."""
    things = list(objects)
    kinds, world = by_kind(things, GROUP, _READ, _ALL, findings, " yet"), World.of(things, findings, vault)
    statuses: Statuses = {}
    ours = _classes(kinds["GatewayClass"], site, statuses, findings)
    served = _served(kinds, ours, world, registry, site, statuses, findings)
    ports = Ports.of(served.values(), findings)
    for made in served.values():
        gateways.finish(made)
    policies = Policies.of(kinds["BackendTLSPolicy"], world, findings)
    reading = _Reading(world, registry, policies, served, statuses, findings)
    for thing in sorted((thing for kind in _ROUTES for thing in kinds[kind]), key=lambda thing: thing.age):
        try:
            _attach(thing, reading)
        except ConfigError as error:
            findings.error(error)
    for made in served.values():
        statuses[str(made.thing)] = made.status()
        statuses |= {str(each.thing): each.status() for each in made.sets}
    statuses |= {str(each.thing): each.status() for each in policies.every if each.ancestors}
    gateways.warn(served, findings)
    owners = {
        bind: tuple({id(made := reading.gateways[id(one)]): made.thing for one in found}.values())
        for bind, found in (*ports.streams.items(), *ports.datagrams.items())
    }
    return _table(ports, reading.taken), owners, statuses


def _classes(things: list[Object], site: Site, statuses: Statuses, findings: Findings) -> set[str] | None:
    for thing in things:
        if site.classes and thing.name not in site.classes:
            continue
        try:
            spec = thing.fields("spec")
            controller = spec.text("controllerName")
        except ConfigError as error:
            findings.error(error)
            continue
        if site.controllers is None or controller in site.controllers:
            conditions = Conditions(thing.generation)
            if spec.raw("parametersRef") is None:
                conditions.set("Accepted", True, "Accepted")
            else:
                conditions.set("Accepted", False, "InvalidParameters", "no kind of parameters is supported")
            if foreign := unknown_bundles(site.bundles):
                conditions.set("SupportedVersion", False, "UnsupportedVersion", foreign)
                findings.warn(thing, "", foreign)
            else:
                conditions.set("SupportedVersion", True, "SupportedVersion")
            features = [{"name": name} for name in SUPPORTED]
            statuses[str(thing)] = {"conditions": conditions.plain(), "supportedFeatures": features}
    return None if site.controllers is None else {thing.name for thing in things if str(thing) in statuses}


def _served(
    kinds: Mapping[str, list[Object]],
    ours: set[str] | None,
    world: World,
    registry: Registry,
    site: Site,
    statuses: Statuses,
    findings: Findings,
) -> dict[_Key, Served]:
    sets: dict[_Key, list[Object]] = {}
    for thing in kinds["ListenerSet"]:
        try:
            ref = Ref.read(thing.fields("spec").inner("parentRef"), "Gateway", thing.namespace, GROUP)
            if (ref.group, ref.kind) == (GROUP, "Gateway"):
                sets.setdefault((ref.namespace, ref.name), []).append(thing)
        except ConfigError as error:
            findings.error(error)
    made: dict[_Key, Served] = {}
    for thing in kinds["Gateway"]:
        try:
            name = thing.fields("spec").text("gatewayClassName")
            if ours is None:
                gateways.unknown_class(thing, name, kinds["GatewayClass"], findings)
            if ours is None or name in ours:
                made[thing.key] = gateways.gateway(thing, sets.get(thing.key, []), world, registry, site)
        except ConfigError as error:
            findings.error(error)
            statuses[str(thing)] = gateways.refused(thing, error)
    return made


def _attach(thing: Object, reading: _Reading) -> None:
    references = References(thing, reading.world, reading.registry, reading.policies)
    entries: tuple[Entry, ...] = ()
    dropped: tuple[ConfigError, ...] = ()
    route, refused = None, None
    try:
        entries, dropped, route = _read(thing, references)
    except ConfigError as error:
        refused = error
    for fault in (refused, *dropped) if refused is not None else dropped:
        reading.findings.error(fault)
    found = parents(thing, reading.parents, reading.world, references.faults, refused, dropped)
    _sessions(thing, entries, reading)
    for parent in found:
        if refused is None:
            _warn(thing, parent, references, reading.findings)
        for listener, names in parent.attached:
            for service in references.services:
                reading.policies.leads(reading.gateways[id(listener)].thing.key, service)
            _give(listener, names, entries, route, reading)
    for path, why in references.remarks:
        reading.findings.warn(thing, path, why)
    if found:
        reading.statuses[str(thing)] = {"parents": [parent.status() for parent in _once(found)]}
    else:
        why = f"no parent is a Gateway that is served here{_meant(thing, reading)}"
        reading.findings.warn(thing, "spec.parentRefs", why)


def _give(
    listener: Listener, names: tuple[str, ...], entries: tuple[Entry, ...], route: Route | None, reading: _Reading
) -> None:
    """What a route says, to a listener that it attached to under these names."""
    into, client = reading.taken[id(listener)], reading.gateways[id(listener)].client
    for name in names if entries else ():
        into.http.setdefault(name, []).extend(http.as_client(entries, client))
    if route is not None:
        own = replace(route, backends=shown(route.backends, client))
        into.l4 += [(name, own) for name in names or ("*",)]


def _warn(thing: Object, parent: Parent, references: References, findings: Findings) -> None:
    """What a status says that should be otherwise, where it is written: a fault of a backend stands at the backend."""
    for sentence in parent.conditions.bad():
        of_backend = sentence.startswith("ResolvedRefs") and references.places
        findings.warn(thing, references.places[0] if of_backend else parent.path, sentence)


def _meant(thing: Object, reading: _Reading) -> str:
    """Which Gateways it names, and which one it means perhaps: of this name elsewhere, or with nearly this name."""
    refs = [Ref.read(each, "Gateway", thing.namespace, GROUP) for each in thing.fields("spec").each("parentRefs")]
    if not refs:
        return ""
    there = {f"{kind} {namespace}/{name}": name for kind, namespace, name in reading.parents}
    same = [title for title, name in there.items() if name == refs[0].name]
    near = reading.findings.hints.near
    meant = near(str(refs[0]), same, 0) or near(str(refs[0]), there, 0.7)
    return f": {', '.join(map(str, refs))}{meant}"


def _read(thing: Object, references: References) -> tuple[tuple[Entry, ...], tuple[ConfigError, ...], Route | None]:
    """Its rules of HTTP and those that are dropped, or its one route."""
    hostnames(thing)
    if thing.kind in ("HTTPRoute", "GRPCRoute"):
        return *http.entries(thing, references), None
    return (), (), _only(thing, references)


def _sessions(thing: Object, entries: Iterable[Entry], reading: _Reading) -> None:
    if any(entry.rule.session for entry in entries) and (why := reading.world.vault.session_key()[1]):
        why = f"sessions end with this process, and other replicas do not know them: {why}"
        reading.findings.warn(thing, "spec.rules", why)


def _only(thing: Object, references: References) -> Route:
    rules = thing.fields("spec").each("rules")
    if len(rules) != 1:
        raise thing.fields("spec").error("rules", f"{thing}: expected exactly one rule, found {len(rules)}")
    return references.route(rules[0], 0)


def _once(found: list[Parent]) -> list[Parent]:
    """One status for each reference, however often it stands there."""
    return [parent for index, parent in enumerate(found) if parent.ref not in [other.ref for other in found[:index]]]


def _table(ports: Ports, taken: Mapping[int, _Taken]) -> Table:
    datagrams = {
        bind: model.UdpListener(bind[1], found[0].title, _first(taken[id(found[0])]))
        for bind, found in ports.datagrams.items()
    }
    return Table({bind: _listener(bind[1], found, taken) for bind, found in ports.streams.items()}, datagrams)


def _first(taken: _Taken) -> Route | None:
    return taken.l4[0][1] if taken.l4 else None


def _listener(port: int, found: list[Listener], taken: Mapping[int, _Taken]) -> model.Listener:
    match FAMILY[found[0].protocol]:
        case "HTTP":
            return model.HttpListener(port, http.table((one.hostname, taken[id(one)].http) for one in found))
        case "TCP":
            return model.TcpListener(port, found[0].title, _first(taken[id(found[0])]))
        case _:
            return model.TlsListener(port, HostTable(_chains(found, taken).items()))


def _chains(found: list[Listener], taken: Mapping[int, _Taken]) -> dict[str, Chain]:
    """Names of routes that no more specific listener owns; a listener's own name is never left to a wider one."""
    owners = HostTable((one.hostname, one) for one in found)
    titles = HostTable((one.hostname, one.title) for one in found)
    chains: dict[str, Chain] = {}
    for one in found:
        assert one.tls is not None
        if not one.serves:
            chains[one.hostname] = Closed(one.title, "; ".join(one.conditions.bad()), one.acme)
        elif one.protocol == "HTTPS":
            table = http.table([(one.hostname, taken[id(one)].http)], one.title, titles)
            chains[one.hostname] = Terminate(one.title, one.tls, table, one.acme)
        else:
            for name, route in taken[id(one)].l4:
                if owners.owner(name) is one:
                    chains.setdefault(name, _chain(one, one.tls, route))
            if one.hostname != "*":
                why = f"no TLSRoute of {one.title} is for this name"
                chains.setdefault(one.hostname, Closed(one.title, why, one.acme))
    return chains


def _chain(one: Listener, tls: model.ServerTls, route: Route) -> Chain:
    if tls.mode is TlsMode.PASSTHROUGH:
        return Passthrough(one.title, route)
    return Terminate(one.title, tls, route, one.acme)


__all__ = ["CONTROLLER", "Owners", "Statuses", "tables"]
