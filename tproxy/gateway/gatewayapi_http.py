"""HTTPRoute and GRPCRoute to entries of an HttpTable: matches in Gateway API's precedence. Filters are not read yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tproxy.core.fields import Fields
from tproxy.core.hostnames import ANY, HostTable, covers
from tproxy.core.http_routes import Entry, HttpTable, Kind, Match, Rule, Text, gateway_api_order
from tproxy.gateway.gatewayapi_routes import References
from tproxy.gateway.objects import Object

_PATHS = {"Exact": Kind.EXACT, "PathPrefix": Kind.SEGMENTS}


def entries(thing: Object, references: References) -> tuple[Entry, ...]:
    """Every match of every rule."""
    made = []
    for index, rule in enumerate(thing.fields("spec").each("rules")):
        route = references.route(rule, index)
        for match in [_match(each, thing.kind) for each in rule.each("matches")] or [Match()]:
            made.append(Entry(match, Rule(route.name, route.backends, route.where), thing.age))
    return tuple(made)


def _match(match: Fields, kind: str) -> Match:
    headers = tuple((each.text("name").lower(), _text(each)) for each in match.each("headers"))
    if kind == "GRPCRoute":
        return Match(_method(match.inner("method")), headers=headers)
    path, method = match.inner("path"), match.text("method")
    query = tuple((each.text("name"), _text(each)) for each in match.each("queryParams"))
    found = Match(
        path=Text(_PATHS[path.choice("type", "PathPrefix", _PATHS)], path.text("value", "/")),
        method=Text(Kind.EXACT, method) if method else None,
        headers=headers,
        query=query,
    )
    match.finish()
    return found


def _text(each: Fields) -> Text:
    each.choice("type", "Exact", ("Exact",))
    return Text(Kind.EXACT, each.text("value"))


def _method(method: Fields) -> Text | None:
    """gRPC's ``/service/method``."""
    method.choice("type", "Exact", ("Exact",))
    service, name = method.text("service"), method.text("method")
    if service and name:
        return Text(Kind.EXACT, f"/{service}/{name}")
    if name:
        raise method.error("service", "is missing; a method without its service is not supported")
    return Text(Kind.SEGMENTS, f"/{service}") if service else None


def table(listeners: Iterable[tuple[str, Mapping[str, list[Entry]]]]) -> HttpTable:
    """Listeners' host names, and what their routes say for each host. A request stays within its listener."""
    hosts: dict[str, tuple[Entry, ...]] = {}
    for hostname, own in listeners:
        for host in own:
            hosts.setdefault(host, tuple(_falling(host, own)))
        hosts.setdefault(hostname, ())
    return HttpTable(HostTable(hosts.items()))


def _falling(host: str, own: Mapping[str, list[Entry]]) -> Iterator[Entry]:
    """Its own entries before those of wider hosts."""
    for wider in sorted(own, key=lambda other: (other != host, other == ANY, -len(other))):
        if covers(wider, host):
            yield from gateway_api_order(own[wider])
