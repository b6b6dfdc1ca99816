"""The ``http`` rules of a VirtualService: matches and destinations. What else a rule does is not read yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tproxy.core.config import parse_port
from tproxy.core.fields import Fields
from tproxy.core.http_routes import Kind, Match, Named, Rule, Text
from tproxy.core.routes import Backend
from tproxy.gateway.findings import refuse
from tproxy.gateway.objects import Object

_KINDS = {"exact": Kind.EXACT, "prefix": Kind.PREFIX, "regex": Kind.REGEX}
_ACTIONS = ("route", "redirect", "directResponse", "delegate")
_LONGEST = 1024  # characters of a regular expression, as Istio's webhook has it


@dataclass(frozen=True, slots=True)
class Condition:
    """A match, and the listener port and gateways that it is limited to."""

    match: Match
    port: int | None
    gateways: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HttpRule:
    """One entry of ``http``."""

    conditions: tuple[Condition, ...]
    rule: Rule


def rules(
    thing: Object, spec: Fields, destination: Callable[[Fields, bool], Backend], gateway: Callable[[str], str]
) -> Iterator[HttpRule]:
    """All of them. ConfigError as the webhook's."""
    for entry in spec.each("http"):
        done = [key for key in _ACTIONS if entry.raw(key) is not None]
        if not done:
            raise entry.error("route", "HTTP route, redirect or direct_response is required")
        if "route" in done and len(done) > 1:
            raise entry.error(done[1], f"HTTP route cannot contain both route and {done[1]}")
        conditions = tuple(_condition(match, gateway) for match in entry.each("match"))
        routes = entry.each("route")
        backends = tuple(destination(route, len(routes) == 1) for route in routes)
        if routes and not sum(backend.weight for backend in backends):
            raise entry.error("route", "total destination weight = 0")
        name = f"{thing} {entry.path.removeprefix('spec.')}"
        yield HttpRule(conditions or (Condition(Match(), None, ()),), Rule(name, backends, entry.place(entry.path)))


def _condition(match: Fields, gateway: Callable[[str], str]) -> Condition:
    ignore_case = match.flag("ignoreUriCase", False)
    made = Match(
        path=_text(match, "uri", ignore_case),
        method=_text(match, "method"),
        headers=_named(match, "headers"),
        without=_named(match, "withoutHeaders"),
        query=_named(match, "queryParams"),
        scheme=_text(match, "scheme"),
        authority=_text(match, "authority"),
    )
    refuse(match, ("sourceLabels", "sourceNamespace"))
    for key in ("name", "statPrefix"):
        match.raw(key)
    port = match.parsed("port", parse_port, None) if match.raw("port") is not None else None
    gateways = tuple(gateway(text) for text in match.items("gateways", str))
    match.finish()
    return Condition(made, port, gateways)


def _text(match: Fields, key: str, ignore_case: bool = False) -> Text | None:
    if match.raw(key) is None:
        return None
    text = match.inner(key)
    given = [(kind, text.text(name)) for name, kind in _KINDS.items() if text.raw(name) is not None]
    text.finish()
    if len(given) > 1:
        raise match.error(key, "expected one of exact, prefix, regex")
    kind, value = given[0] if given else (Kind.PRESENT, "")
    if kind is Kind.PREFIX and not value:
        raise match.error(key, "prefix string match should not be empty")
    if kind is Kind.REGEX and len(value) > _LONGEST:
        raise match.error(key, f"regex is too large, max length allowed is {_LONGEST}")
    return Text(Kind.PRESENT) if (kind, value) == (Kind.REGEX, "*") else Text(kind, value, ignore_case)


def _named(match: Fields, key: str) -> Named:
    named = match.inner(key)
    found = []
    for name in named.data:
        if str(name).startswith(":"):
            raise named.error(name, f'invalid header {str(name)!r}: header cannot have ":" prefix')
        text = _text(named, str(name)) or Text(Kind.PRESENT)
        found.append((str(name).lower() if key != "queryParams" else str(name), text))
    return tuple(found)
