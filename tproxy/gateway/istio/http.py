"""The ``http`` rules of a VirtualService: matches, destinations, and what else is done with a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from tproxy.core.fields import Fields
from tproxy.core.http.filters import NO_FILTERS, Filters, Timeouts
from tproxy.core.http.routes import Kind, Match, Rule
from tproxy.core.routes import Backend
from tproxy.gateway.findings import Findings
from tproxy.gateway.http_words import seconds
from tproxy.gateway.istio.actions import direct_response, headers, mirrors, redirect, rewrite
from tproxy.gateway.istio.faults import cors, fault, retries
from tproxy.gateway.istio.matches import Condition, condition
from tproxy.gateway.objects import Object

ACTIONS = ("route", "redirect", "directResponse", "delegate")


class Destinations(Protocol):
    """Where a rule's destinations are found."""

    def destination(self, route: Fields, alone: bool) -> Backend:
        """One entry of ``route``."""

    def target(self, target: Fields, weight: int) -> Backend:
        """A Destination."""


@dataclass(frozen=True, slots=True)
class HttpRule:
    """One entry of ``http``; with ``delegate`` its rules stand in another VirtualService (namespace/name)."""

    conditions: tuple[Condition, ...]
    rule: Rule
    delegate: str = ""
    path: str = ""


def rules(
    thing: Object, spec: Fields, where: Destinations, gateway: Callable[[str], str], findings: Findings
) -> Iterator[HttpRule]:
    """All of them. ConfigError as the webhook's."""
    everything = ""
    for entry in spec.each("http"):
        if everything:
            findings.warn(thing, entry.path, f"is never reached: {everything} takes everything (IST0130)")
        _conflicts(entry)
        conditions = tuple(condition(match, gateway) for match in entry.each("match")) or (Condition(Match()),)
        delegate = _delegate(thing, entry)
        rule = _rule(thing, entry, where, findings)
        if not delegate:
            rule = replace(rule, decorator=_operation(thing, rule, conditions[0].match))
        entry.finish()
        if not everything and any(one == Condition(one.match) and one.match.is_catch_all for one in conditions):
            everything = entry.path.removeprefix("spec.")
        yield HttpRule(conditions, rule, delegate, entry.path)


def _conflicts(entry: Fields) -> None:
    done = [key for key in ACTIONS if entry.raw(key) is not None]
    if not done or (done == ["route"] and not entry.each("route")):
        raise entry.error("route", "HTTP route, redirect or direct_response is required")
    if len(done) > 1:
        one, other = (_words(key) for key in done[:2])
        raise entry.error(done[1], f"HTTP route cannot contain both {one} and {other}")
    for key in ("fault", "rewrite") if done[0] in ("redirect", "directResponse") else ():
        if entry.raw(key) is not None:
            rule = " rule" if key == "rewrite" else ""
            raise entry.error(key, f"HTTP route{rule} cannot contain both {key} and {_words(done[0])}")


def _words(key: str) -> str:
    return "direct_response" if key == "directResponse" else key


def _rule(thing: Object, entry: Fields, where: Destinations, findings: Findings) -> Rule:
    change = headers(entry)
    rewritten = rewrite(entry, change.host)
    filters = Filters(
        request=change.request,
        response=change.response,
        redirect=redirect(entry),
        rewrite=rewritten,
        mirrors=mirrors(entry, where.target),
        cors=cors(entry),
    )
    timeout = entry.parsed("timeout", seconds, "0s") or None
    named = entry.text("name")
    return Rule(
        name=f"{thing} {entry.path.removeprefix('spec.')}{f' {named}' if named else ''}",
        backends=_backends(entry, where),
        where=entry.place(entry.path),
        filters=filters if filters != NO_FILTERS else NO_FILTERS,
        timeouts=Timeouts(timeout),
        retry=retries(entry),
        direct=direct_response(entry),
        fault=fault(entry, findings, thing),
    )


def _backends(entry: Fields, where: Destinations) -> tuple[Backend, ...]:
    routes = entry.each("route")
    found = []
    for route in routes:
        change = headers(route)
        backend = where.destination(route, len(routes) == 1)
        if change.given:
            own = Filters(
                request=change.request, response=change.response, rewrite=rewrite(Fields({}, ""), change.host)
            )
            backend = replace(backend, filters=own)
        found.append(backend)
    if routes and not sum(backend.weight for backend in found):
        raise entry.error("route", "total destination weight = 0")
    return tuple(found)


def _delegate(thing: Object, entry: Fields) -> str:
    if entry.raw("delegate") is None:
        return ""
    delegate = entry.inner("delegate")
    name, namespace = delegate.text("name"), delegate.text("namespace") or thing.namespace
    delegate.finish()
    if not name:
        raise delegate.error("name", "is missing: the VirtualService that has the rules")
    return f"{namespace}/{name}"


def _operation(thing: Object, rule: Rule, match: Match) -> str:
    """What Istio calls a route in traces and in x-envoy-decorator-operation."""
    path = match.path
    text = "/*" if path is None else f"{path.value}*" if path.kind is Kind.PREFIX else path.value
    if len(rule.backends) == 1:
        _, port, _, host = rule.backends[0].name.split("|")
        return f"{host}:{port}{text}"
    return f"{thing.name}:80{text}"
