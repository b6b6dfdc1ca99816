"""Matches of HTTPRoute and GRPCRoute."""

from __future__ import annotations

from collections.abc import Callable

from tproxy.core.fields import Fields
from tproxy.core.http.routes import Kind, Match, Named, Text
from tproxy.gateway.http_words import header_name, header_value, regex_text

_PATHS = {"Exact": Kind.EXACT, "PathPrefix": Kind.SEGMENTS, "RegularExpression": Kind.REGEX}
_TYPES = ("Exact", "RegularExpression")
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
_ODD = ("//", "/./", "/../", "%2f", "%2F", "#")  # HTTPPathMatch's CEL rules: such a path never comes
_ODD_ENDS = ("/..", "/.")


def http_match(match: Fields) -> Match:
    """One of an HTTPRoute's. ConfigError in the words of the CRD."""
    method = match.choice("method", "", ("", *_METHODS))
    found = Match(
        path=_path(match.inner("path")),
        method=Text(Kind.EXACT, method) if method else None,
        headers=_named(match, "headers", header_name),
        query=_named(match, "queryParams", _plain),
    )
    match.finish()
    return found


def grpc_match(match: Fields) -> Match:
    """One of a GRPCRoute's: gRPC's paths are ``/service/method``."""
    found = Match(path=_method(match.inner("method")), headers=_named(match, "headers", header_name))
    match.finish()
    return found


def _path(path: Fields) -> Text:
    kind, value = path.choice("type", "PathPrefix", _PATHS), path.text("value", "/")
    path.finish()
    if kind == "RegularExpression":
        return path.parsed("value", regex_text, "/")
    if not value.startswith("/"):
        why = "value must be an absolute path and start with '/' when type one of ['Exact', 'PathPrefix']"
        raise path.error("value", why, value)
    for odd in _ODD:
        if odd in value:
            raise path.error("value", f"must not contain '{odd}' when type one of ['Exact', 'PathPrefix']", value)
    for odd in _ODD_ENDS:
        if value.endswith(odd):
            raise path.error("value", f"cannot end with '{odd}' when type one of ['Exact', 'PathPrefix']", value)
    return Text(_PATHS[kind], value.encode().decode("latin-1"))


def _named(match: Fields, key: str, parse: Callable[[object], str]) -> Named:
    """Of several conditions on one name the first counts (HTTPHeaderMatch.name)."""
    found: dict[str, Text] = {}
    for each in match.each(key):
        name, text = each.parsed("name", parse, None), _text(each, key)
        each.finish()
        found.setdefault(name, text)
    return tuple(found.items())


def _text(each: Fields, key: str) -> Text:
    if each.raw("value") is None:
        raise each.error("value", "is missing")
    if each.choice("type", "Exact", _TYPES) == "RegularExpression":
        return each.parsed("value", regex_text, None)
    return Text(Kind.EXACT, each.text("value") if key == "queryParams" else each.parsed("value", header_value, None))


def _method(method: Fields) -> Text | None:
    kind, service, name = method.choice("type", "Exact", _TYPES), method.text("service"), method.text("method")
    method.finish()
    if not service and not name:
        if method.data:
            raise method.error("service", "one or both of 'service' or 'method' must be specified")
        return None
    if kind == "RegularExpression":
        return _regex(method, f"/{service or '[^/]+'}/{name or '[^/]+'}")
    if service and name:
        return Text(Kind.EXACT, f"/{service}/{name}")
    return Text(Kind.PREFIX, f"/{service}/") if service else _regex(method, rf"/[^/]+/\Q{name}\E")


def _regex(method: Fields, pattern: str) -> Text:
    try:
        return regex_text(pattern)
    except ValueError as error:
        raise method.error("method", str(error), pattern) from None


def _plain(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or not value:
        raise ValueError("expected the name of a query parameter")
    return value
