"""Which requests an ``http`` rule of a VirtualService is for (HTTPMatchRequest)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tproxy.core.fields import Fields, parse_port
from tproxy.core.http.routes import Kind, Match, Named, Text
from tproxy.gateway.findings import refuse
from tproxy.gateway.http_words import header_name, regex_text

_KINDS = {"exact": Kind.EXACT, "prefix": Kind.PREFIX, "regex": Kind.REGEX}


@dataclass(frozen=True, slots=True)
class Condition:
    """A match, and the listener port and gateways that it is limited to."""

    match: Match
    port: int | None = None
    gateways: tuple[str, ...] = ()


def condition(match: Fields, gateway: Callable[[str], str]) -> Condition:
    """One entry of ``match``. ConfigError as the webhook's."""
    ignore_case = match.flag("ignoreUriCase", False)
    made = Match(
        path=text(match, "uri", ignore_case),
        method=text(match, "method"),
        headers=_named(match, "headers"),
        without=_named(match, "withoutHeaders"),
        query=_named(match, "queryParams"),
        scheme=text(match, "scheme"),
        authority=text(match, "authority"),
    )
    refuse(match, ("sourceLabels", "sourceNamespace"))
    for key in ("name", "statPrefix"):
        match.raw(key)
    port = match.parsed("port", parse_port, None) if match.raw("port") is not None else None
    gateways = tuple(gateway(name) for name in match.items("gateways", str))
    match.finish()
    return Condition(made, port, gateways)


def text(match: Fields, key: str, ignore_case: bool = False) -> Text | None:
    """A StringMatch: exact, prefix or regex; an empty one, and the regex ``*``, is any text that is there."""
    if match.raw(key) is None:
        return None
    return string_match(match.inner(key), ignore_case)


def string_match(given: Fields, ignore_case: bool = False) -> Text:
    """The same, for one that stands in a list."""
    found = [(name, str(given.raw(name))) for name in _KINDS if given.raw(name) is not None]
    given.finish()
    if len(found) > 1:
        raise given.error(found[1][0], "expected one of exact, prefix, regex")
    if not found or found[0] == ("regex", "*"):
        return Text(Kind.PRESENT)
    name, value = found[0]
    if name == "regex":
        return given.parsed("regex", lambda _: regex_text(value), None)
    if name == "prefix" and not value:
        field = given.path.rpartition(".")[2]
        raise given.error("prefix", f'"{field}": prefix string match should not be empty')
    return Text(_KINDS[name], given.text(name).encode().decode("latin-1"), ignore_case)


def _named(match: Fields, key: str) -> Named:
    named = match.inner(key)
    found = []
    for name in named.data:
        if key != "queryParams":
            _refuse_odd(named, name)
        condition_on = text(named, str(name)) or Text(Kind.PRESENT)
        found.append((str(name).lower() if key != "queryParams" else str(name), condition_on))
    return tuple(found)


def _refuse_odd(named: Fields, name: object) -> None:
    if str(name).startswith("@request.auth"):
        raise named.error(name, "matching claims of tokens is not supported by this gateway")
    try:
        header_name(name)
    except ValueError as error:
        raise named.error(name, str(error)) from None
