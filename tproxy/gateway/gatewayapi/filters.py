"""What a rule of an HTTPRoute or GRPCRoute does besides choosing a backend: filters.

What the CRD's schema and its CEL rules refuse is an error, in their words. A filter that is not known must not be
skipped: who meets its rule gets 500 (HTTPRouteFilterExtensionRef).
"""

from __future__ import annotations

from dataclasses import replace

from tproxy.core.fields import Fields, nearest, parse_port
from tproxy.core.hostnames import parse_hostname
from tproxy.core.http.filters import (
    NO_FILTERS,
    DerivedPort,
    Filters,
    FullPath,
    HeaderChange,
    Mirror,
    PathChange,
    PrefixPath,
    Redirect,
    Rewrite,
)
from tproxy.gateway.gatewayapi.cors import read_cors
from tproxy.gateway.gatewayapi.routes import References
from tproxy.gateway.http_words import changed_header, header_value, path_text

_STATUS = (301, 302, 303, 307, 308)
_FIELDS = {
    "RequestHeaderModifier": "requestHeaderModifier",
    "ResponseHeaderModifier": "responseHeaderModifier",
    "RequestMirror": "requestMirror",
    "RequestRedirect": "requestRedirect",
    "URLRewrite": "urlRewrite",
    "CORS": "cors",
    "ExtensionRef": "extensionRef",
}


def filters(owner: Fields, references: References, grpc: bool = False) -> tuple[Filters, str]:
    """The filters of a rule or of a backendRef; and which one cannot be applied, if one cannot."""
    made, unknown, seen = NO_FILTERS, "", set[str]()
    for entry in owner.each("filters"):
        kind = entry.text("type")
        field = _FIELDS.get(kind)
        if field is None:
            unknown = f"filter {kind!r} is not known to this gateway{nearest(kind, _FIELDS, 0.7)}"
            continue
        if kind in seen and kind not in ("RequestMirror", "ExtensionRef"):
            raise entry.error("type", f"{kind} filter cannot be repeated")
        seen.add(kind)
        if entry.raw(field) is None:
            raise entry.error(field, f"filter.{field} must be specified for {kind} filter.type")
        inner = entry.inner(field)
        entry.finish()
        if kind == "ExtensionRef" or (grpc and kind in ("RequestRedirect", "URLRewrite", "CORS")):
            unknown = f"filter {inner.text('kind') or kind} {inner.text('name')} is not known to this gateway"
        else:
            made = _with(made, kind, inner, references)
    if made.redirect is not None and made.rewrite is not None and "URLRewrite" in seen:
        raise owner.error("filters", "RequestRedirect and URLRewrite cannot stand in one rule")
    return made, unknown


def _with(made: Filters, kind: str, inner: Fields, references: References) -> Filters:
    match kind:
        case "RequestHeaderModifier":
            change, host = _change(inner)
            rewrite = replace(made.rewrite or Rewrite(), host=host) if host else made.rewrite
            made = replace(made, request=change, rewrite=rewrite)
        case "ResponseHeaderModifier":
            made = replace(made, response=_change(inner)[0])
        case "RequestMirror":
            made = replace(made, mirrors=(*made.mirrors, *_mirror(inner, references)))
        case "RequestRedirect":
            made = replace(made, redirect=_redirect(inner))
        case "URLRewrite":
            host = inner.parsed("hostname", _name, None) if inner.raw("hostname") is not None else ""
            made = replace(made, rewrite=Rewrite(host or (made.rewrite.host if made.rewrite else ""), _path(inner)))
        case _:
            made = replace(made, cors=read_cors(inner))
    inner.finish()
    return made


def _change(inner: Fields) -> tuple[HeaderChange, str]:
    """The changes, and the host: as a header it is the request's authority."""
    given = {key: [_pair(each) for each in inner.each(key)] for key in ("set", "add")}
    remove = inner.items("remove", changed_header)
    seen: set[str] = set()
    for key in ("set", "add"):
        for index, (name, _) in enumerate(given[key]):
            if name in seen or name in remove:
                raise inner.error(f"{key}[{index}].name", "stands here twice: set, added or removed", name)
            seen.add(name)
    host = next((value for name, value in given["set"] if name == "host"), "")
    kept = {key: tuple(pair for pair in found if pair[0] != "host") for key, found in given.items()}
    return HeaderChange(kept["set"], kept["add"], remove), host


def _pair(each: Fields) -> tuple[str, str]:
    pair = each.parsed("name", changed_header, None), each.parsed("value", header_value, None)
    each.finish()
    return pair


def _mirror(inner: Fields, references: References) -> list[Mirror]:
    """Who cannot be reached gets no copies; the route's status says why."""
    share = 1.0
    if inner.raw("percent") is not None and inner.raw("fraction") is not None:
        raise inner.error("percent", "Only one of percent or fraction may be specified in HTTPRequestMirrorFilter")
    if inner.raw("percent") is not None:
        share = inner.integer("percent", 100, 0, 100) / 100
    if inner.raw("fraction") is not None:
        fraction = inner.inner("fraction")
        below = fraction.integer("denominator", 100, 1, 2**31 - 1)
        above = fraction.integer("numerator", 0, 0, 2**31 - 1)
        fraction.finish()
        if above > below:
            raise fraction.error("numerator", "numerator must be less than or equal to denominator", above)
        share = above / below
    backend = references.backend(inner.inner("backendRef"))
    return [Mirror(backend, share)] if backend.endpoints and share else []


def _redirect(inner: Fields) -> Redirect:
    scheme = inner.choice("scheme", "", ("", "http", "https"))
    host = inner.parsed("hostname", _name, None) if inner.raw("hostname") is not None else ""
    port = inner.parsed("port", parse_port, None) if inner.raw("port") is not None else None
    status = inner.integer("statusCode", 302, 300, 399)
    if status not in _STATUS:
        raise inner.error("statusCode", f"expected one of {', '.join(map(str, _STATUS))}", status)
    return Redirect(scheme, host, port, _path(inner), status, DerivedPort.SCHEME)


def _path(inner: Fields) -> PathChange | None:
    if inner.raw("path") is None:
        return None
    path = inner.inner("path")
    kind = path.choice("type", "", ("ReplaceFullPath", "ReplacePrefixMatch"))
    key = kind[0].lower() + kind[1:]
    if path.raw(key) is None:
        raise path.error(key, f"{key} must be specified when type is set to '{kind}'")
    value = path.parsed(key, path_text, None)
    path.finish()
    return FullPath(value) if key == "replaceFullPath" else PrefixPath(value)


def _name(value: object) -> str:
    name = parse_hostname(value)
    if name.startswith("*"):
        raise ValueError("expected a host name without wildcard")
    return name
