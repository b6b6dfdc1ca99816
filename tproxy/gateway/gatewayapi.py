"""Gateway API's objects to listeners and statuses. Precedence is the specification's, conflicts have no winner.

Sources: gateway-api.sigs.k8s.io, apis/v1/*_types.go; every apiVersion that was ever common is read the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tproxy.core import routes as model
from tproxy.core.fields import ConfigError
from tproxy.core.hostnames import HostTable
from tproxy.core.http_routes import Entry
from tproxy.core.routes import Bind, Chain, Closed, Passthrough, Route, Terminate, TlsMode
from tproxy.gateway import gatewayapi_http as http
from tproxy.gateway.conditions import CONTROLLER, Conditions
from tproxy.gateway.findings import Findings, by_kind
from tproxy.gateway.gatewayapi_listeners import FAMILY, Listener, conflicts, read, settle
from tproxy.gateway.gatewayapi_routes import Parent, References, parents
from tproxy.gateway.grants import GROUP, World
from tproxy.gateway.objects import Object
from tproxy.gateway.registry import Registry

_ALL = ("v1", "v1beta1", "v1alpha3", "v1alpha2")
_ROUTES = ("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute")
_READ = ("GatewayClass", "Gateway", "ReferenceGrant", *_ROUTES)
Statuses = dict[str, dict[str, Any]]  # by ``kind namespace/name``


@dataclass(slots=True)
class _Taken:
    """What routes give to one listener."""

    l4: list[tuple[str, Route]] = field(default_factory=list)
    http: dict[str, list[Entry]] = field(default_factory=dict)


def listeners(
    objects: Iterable[Object],
    registry: Registry,
    findings: Findings,
    controllers: frozenset[str] | None = None,
    addresses: Mapping[str, str] | None = None,
) -> tuple[dict[Bind, model.Listener], Statuses]:
    """What is served, and every status. ``controllers``: whose classes are ours (None: all that are there);
    ``addresses``: where a Gateway (``namespace/name``) listens that names no address itself (else everywhere)."""
    things = list(objects)
    kinds, world = by_kind(things, GROUP, _READ, _ALL, findings, " yet"), World.of(things, findings)
    statuses: Statuses = {}
    ours = _classes(kinds["GatewayClass"], controllers, statuses)
    gateways: dict[tuple[str, str], list[Listener]] = {}
    for thing in kinds["Gateway"]:
        try:
            if ours is None or thing.fields("spec").text("gatewayClassName") in ours:
                gateways[thing.key] = read(thing, world, registry)
        except ConfigError as error:
            findings.error(error)
    for found in gateways.values():
        conflicts(found)
        settle(found)
    taken: dict[int, _Taken] = {id(one): _Taken() for found in gateways.values() for one in found}
    for thing in sorted((thing for kind in _ROUTES for thing in kinds[kind]), key=lambda thing: thing.age):
        try:
            _attach(thing, gateways, world, registry, taken, statuses, findings)
        except ConfigError as error:
            findings.error(error)
    for thing in kinds["Gateway"]:
        if thing.key in gateways:
            statuses[str(thing)] = _status(thing, gateways[thing.key], findings)
    return _binds(gateways, taken, addresses or {}, findings), statuses


def _classes(things: list[Object], controllers: frozenset[str] | None, statuses: Statuses) -> set[str] | None:
    for thing in things:
        if controllers is None or thing.fields("spec").text("controllerName") in controllers:
            conditions = Conditions(thing.generation)
            conditions.set("Accepted", True, "Accepted")
            statuses[str(thing)] = {"conditions": conditions.plain()}
    return None if controllers is None else {thing.name for thing in things if str(thing) in statuses}


def _attach(
    thing: Object,
    gateways: Mapping[tuple[str, str], list[Listener]],
    world: World,
    registry: Registry,
    taken: Mapping[int, _Taken],
    statuses: Statuses,
    findings: Findings,
) -> None:
    references = References(thing, world, registry)
    is_http = thing.kind in ("HTTPRoute", "GRPCRoute")
    entries = http.entries(thing, references) if is_http else ()
    rules = thing.fields("spec").each("rules")
    if not is_http and len(rules) != 1:
        raise thing.fields("spec").error("rules", f"{thing}: expected exactly one rule, found {len(rules)}")
    route = None if is_http else references.route(rules[0], 0)
    found = parents(thing, gateways, world, references.faults)
    for parent in found:
        for sentence in parent.conditions.bad():
            findings.warn(thing, parent.path, sentence)
        for listener, names in parent.attached:
            into = taken[id(listener)]
            for name in names:
                if entries:
                    into.http.setdefault(name, []).extend(entries)
            if route is not None:
                into.l4 += [(name, route) for name in names or ("*",)]
    if found:
        statuses[str(thing)] = {"parents": [parent.status() for parent in _once(found)]}
    else:
        findings.warn(thing, "spec.parentRefs", "no parent is a Gateway that is served here")


def _once(found: list[Parent]) -> list[Parent]:
    """One status for each reference, however often it stands there."""
    return [parent for index, parent in enumerate(found) if parent.ref not in [other.ref for other in found[:index]]]


def _status(thing: Object, found: list[Listener], findings: Findings) -> dict[str, Any]:
    for one in found:
        for sentence in one.conditions.bad():
            findings.warn(thing, one.path, sentence)
    conditions = Conditions(thing.generation)
    accepted = [one for one in found if one.conditions.holds("Accepted")]
    whole = len(accepted) == len(found)
    conditions.set("Accepted", bool(accepted), "Accepted" if whole else "ListenersNotValid")
    served = any(one.serves for one in found)
    conditions.set("Programmed", served, "Programmed" if served else "Invalid")
    addresses = sorted({one.address for one in found if one.address})
    return {
        "conditions": conditions.plain(),
        "listeners": [one.status() for one in found],
        "addresses": [{"type": "IPAddress", "value": address} for address in addresses],
    }


def _binds(
    gateways: Mapping[tuple[str, str], list[Listener]],
    taken: Mapping[int, _Taken],
    addresses: Mapping[str, str],
    findings: Findings,
) -> dict[Bind, model.Listener]:
    """Gateways without addresses of their own share the ports of this process; the older one goes first."""
    ports: dict[Bind, list[Listener]] = {}
    for key, found in gateways.items():
        for one in (one for one in found if one.binds):
            there = ports.setdefault((one.address or addresses.get("/".join(key), ""), one.port), [])
            clash = next((other for other in there if _clash(one, other)), None)
            if clash is None:
                there.append(one)
            else:
                why = f"port {one.port} is taken by {clash.title} ({clash.protocol} {clash.hostname}); it is not served"
                findings.warn(one.gateway, one.path, why)
    return {bind: _listener(bind[1], found, taken) for bind, found in ports.items() if found}


def _clash(one: Listener, other: Listener) -> bool:
    return FAMILY[one.protocol] != FAMILY[other.protocol] or one.hostname == other.hostname or one.protocol == "TCP"


def _listener(port: int, found: list[Listener], taken: Mapping[int, _Taken]) -> model.Listener:
    match FAMILY[found[0].protocol]:
        case "HTTP":
            return model.HttpListener(port, http.table((one.hostname, taken[id(one)].http) for one in found))
        case "TCP":
            first = taken[id(found[0])].l4
            return model.TcpListener(port, found[0].title, first[0][1] if first else None)
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
        elif one.tls.mode is not TlsMode.PASSTHROUGH:
            table = http.table([(one.hostname, taken[id(one)].http)], one.title, titles)
            chains[one.hostname] = Terminate(one.title, one.tls, table, one.acme)
        else:
            for name, route in taken[id(one)].l4:
                if owners.owner(name) is one:
                    chains.setdefault(name, Passthrough(one.title, route))
            if one.hostname != "*":
                chains.setdefault(one.hostname, Closed(one.title, f"no TLSRoute of {one.title} is for this name"))
    return chains


__all__ = ["CONTROLLER", "Statuses", "listeners"]
