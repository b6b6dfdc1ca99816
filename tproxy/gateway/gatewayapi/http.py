"""HTTPRoute and GRPCRoute to entries of an HttpTable, in Gateway API's precedence; listeners keep to themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from tproxy.core.fields import ConfigError, Fields
from tproxy.core.hostnames import ANY, HostTable, covers
from tproxy.core.http.filters import Direct, Flavour, PrefixPath
from tproxy.core.http.routes import Entry, HttpTable, Kind, Match, Rule, Text, gateway_api_order
from tproxy.gateway.findings import then
from tproxy.gateway.gatewayapi.filters import filters
from tproxy.gateway.gatewayapi.limits import retry, timeouts
from tproxy.gateway.gatewayapi.matches import grpc_match, http_match
from tproxy.gateway.gatewayapi.routes import References, shown
from tproxy.gateway.gatewayapi.sessions import session
from tproxy.gateway.objects import Object

_EVERYTHING = Match(Text(Kind.SEGMENTS, "/"))


def entries(thing: Object, references: References) -> tuple[tuple[Entry, ...], tuple[ConfigError, ...]]:
    """Every match of every rule, and why rules are dropped. ConfigError as the CRD's schema has it, if no rule is left.

    What a dropped rule matches is answered 500, as far as that can be read: it is not a wider rule's.
    """
    made, dropped = list[Entry](), list[ConfigError]()
    grpc, rules = thing.kind == "GRPCRoute", thing.fields("spec").each("rules")
    for index, fields in enumerate(rules):
        matches: list[Match] | None = None
        try:
            matches = [(grpc_match if grpc else http_match)(each) for each in fields.each("matches")]
            rule = _rule(thing, fields, index, references, grpc)
            _prefixes(fields, rule, matches or [_EVERYTHING])
        except ConfigError as error:
            dropped.append(error)
            why = Direct(500, why=f"its rule is dropped: {error}")
            rule = Rule(f"{thing} rules[{index}]", (), fields.place(fields.path), direct=why)
        if matches is not None:
            made += [Entry(match, rule, thing.age) for match in matches or [Match() if grpc else _EVERYTHING]]
    if dropped and len(dropped) == len(rules):
        raise dropped[0]
    return tuple(made), tuple(dropped)


def as_client(made: Iterable[Entry], client: str) -> Iterator[Entry]:
    """With a Gateway's own certificate towards those that are spoken to by TLS."""
    for entry in made:
        rule = entry.rule
        yield replace(entry, rule=replace(rule, backends=shown(rule.backends, client))) if client else entry


def _rule(thing: Object, fields: Fields, index: int, references: References, grpc: bool) -> Rule:
    named = fields.text("name")
    own, unknown = filters(fields, references, grpc)
    backends, wrong = [], unknown
    for entry in fields.each("backendRefs"):
        theirs, unknown = filters(entry, references, grpc)
        if theirs.cors is not None:
            unknown = "a CORS filter stands at a backend, where it is not supported; it can stand at the rule"
        backend = replace(references.backend(entry), filters=theirs)
        backends.append(replace(backend, fault=backend.fault or unknown))
    limits = timeouts(fields)
    name = f"{thing} rules[{index}]{f' {named}' if named else ''}"
    made = Rule(
        name=name,
        backends=tuple(backends),
        where=fields.place(fields.path),
        filters=own,
        timeouts=limits,
        retry=retry(fields, limits),
        direct=Direct(500, why=wrong) if wrong else None,
        session=session(fields, name, backends, references.world.vault.session_key()[0]),
    )
    if wrong:
        references.remarks.append((fields.path, then(wrong, "its requests are answered 500")))
    fields.finish()
    return made


def _prefixes(fields: Fields, rule: Rule, matches: list[Match]) -> None:
    """What replaces a prefix needs one that is known: HTTPRouteRule's CEL rules."""
    everything = (rule.filters, *(backend.filters for backend in rule.backends))
    changes = [each for given in everything for each in (given.redirect, given.rewrite) if each is not None]
    if not any(isinstance(each.path, PrefixPath) for each in changes):
        return
    if len(matches) != 1 or matches[0].path is None or matches[0].path.kind is not Kind.SEGMENTS:
        why = "when path.replacePrefixMatch is used, exactly one PathPrefix match must be specified"
        raise fields.error("matches", why)


def table(
    listeners: Iterable[tuple[str, Mapping[str, list[Entry]]]], server: str = "", owners: HostTable[str] | None = None
) -> HttpTable:
    """Listeners' host names, and what their routes say for each host. A request stays within its listener: what is
    also another's more specific host name is left to that one."""
    found = list(listeners)
    names = HostTable((hostname, index) for index, (hostname, _) in enumerate(found))
    hosts: dict[str, tuple[Entry, ...]] = {}
    for index, (hostname, own) in enumerate(found):
        for host in own:
            if names.owner(host) == index:
                hosts.setdefault(host, tuple(_falling(host, own)))
        hosts.setdefault(hostname, ())
    return HttpTable(HostTable(hosts.items()), Flavour.GATEWAY_API, server, owners)


def _falling(host: str, own: Mapping[str, list[Entry]]) -> Iterator[Entry]:
    """Its own entries before those of wider hosts."""
    for wider in sorted(own, key=lambda other: (other != host, other == ANY, -len(other))):
        if covers(wider, host):
            yield from gateway_api_order(own[wider])
