"""What an ``http`` rule does with a request: headers, redirect, rewrite, directResponse, mirrors."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter

from tproxy.core.fields import Fields, parse_port
from tproxy.core.http.filters import (
    DerivedPort,
    Direct,
    FullPath,
    HeaderChange,
    Mirror,
    Pairs,
    PathChange,
    PrefixPath,
    Redirect,
    RegexPath,
    Rewrite,
)
from tproxy.core.http.operators import Format
from tproxy.core.routes import Backend
from tproxy.gateway.http_words import authority, changed_header, formatted, pairs, path_text
from tproxy.gateway.regex import substitution

_DERIVED = {"FROM_PROTOCOL_DEFAULT": DerivedPort.KEPT, "FROM_REQUEST_PORT": DerivedPort.LISTENER}
_STATUS = (301, 302, 303, 307, 308)
_LARGEST = 1 << 20  # bytes of a body, as in Istio


@dataclass(frozen=True, slots=True)
class Changes:
    """``headers`` of a rule or of a destination; the host is no header to HTTP/2."""

    request: HeaderChange
    response: HeaderChange
    host: str

    @property
    def given(self) -> bool:
        """Whether it changes anything."""
        return bool(self.request or self.response or self.host)


def headers(entry: Fields) -> Changes:
    """Set, add, remove, for requests and responses."""
    given = entry.inner("headers")
    request, host = _change(given.inner("request"))
    response, lost = _change(given.inner("response"))
    given.finish()
    if lost:
        raise given.error("response", "a response has no host")
    return Changes(request, response, host)


def _change(fields: Fields) -> tuple[HeaderChange, str]:
    changed, added = (sorted(pairs(fields, key, formatted), key=itemgetter(0)) for key in ("set", "add"))
    remove = fields.items("remove", changed_header)
    fields.finish()
    hosts = [value for name, value in (*changed, *added) if name == "host"]
    if len(hosts) > 1:
        why = f"authority header cannot be set multiple times: have {hosts[0]!r}, attempting to set {hosts[1]!r}"
        raise fields.error("set", why)
    host = hosts[0] if hosts else ""
    if not isinstance(host, str):
        raise fields.error("set", "a host cannot be made of command operators", str(host))
    made = tuple(
        (name, value, adds)
        for found, adds in ((changed, False), (added, True))
        for name, value in found
        if not isinstance(value, str)
    )
    return HeaderChange(_texts(changed), _texts(added), remove, made), host


def _texts(found: Iterable[tuple[str, str | Format]]) -> Pairs:
    return tuple((name, value) for name, value in found if name != "host" and isinstance(value, str))


def redirect(entry: Fields) -> Redirect | None:
    """HTTPRedirect; where it names no port, the one in the request's Host stays."""
    if entry.raw("redirect") is None:
        return None
    given = entry.inner("redirect")
    uri, prefix = (given.parsed(key, path_text, "") for key in ("uri", "prefixRewrite"))
    host = given.parsed("authority", authority, "")
    scheme = given.choice("scheme", "", ("", "http", "https"))
    port = given.parsed("port", parse_port, None) if given.raw("port") else None
    derived = given.choice("derivePort", "FROM_PROTOCOL_DEFAULT", _DERIVED)
    status = given.integer("redirectCode", 301, 0, 2**31) or 301
    given.finish()
    if not (uri or prefix or host or scheme or port or given.raw("derivePort")):
        raise entry.error("redirect", "redirect must specify URI, authority, scheme, or port")
    if uri and prefix:
        raise given.error("prefixRewrite", "redirect may only contain one of URI or prefix rewrite")
    if status not in _STATUS:
        why = f"{status} is not a valid redirect code, must be 3xx: one of {', '.join(map(str, _STATUS))}"
        raise given.error("redirectCode", why)
    path: PathChange | None = FullPath(uri) if uri else PrefixPath(prefix) if prefix else None
    return Redirect(scheme, host, port, path, status, _DERIVED[derived])


def rewrite(entry: Fields, host: str) -> Rewrite | None:
    """HTTPRewrite, and the host that ``headers`` set."""
    given = entry.inner("rewrite")
    uri, own = given.parsed("uri", path_text, ""), given.parsed("authority", authority, "")
    path: PathChange | None = PrefixPath(uri) if uri else None
    if given.raw("uriRegexRewrite") is not None:
        if uri:
            raise given.error("uriRegexRewrite", "rewrite may only contain one of URI or UriRegexRewrite")
        path = _regex(given.inner("uriRegexRewrite"))
    given.finish()
    if own and host:
        why = f"authority header cannot be set multiple times: have {own!r}, attempting to set {host!r}"
        raise given.error("authority", why)
    if entry.raw("rewrite") is not None and not (path or own):
        raise entry.error("rewrite", "rewrite must specify URI, UriRegexRewrite, or authority")
    return Rewrite(own or host, path) if own or host or path else None


def _regex(given: Fields) -> RegexPath:
    pattern, replacement = given.text("match"), given.text("rewrite")
    given.finish()
    if not pattern or not replacement:
        raise given.error("match", "UriRegexRewrite requires both Rewrite and Match fields to be specified")
    made = given.parsed("match", lambda _: substitution(pattern, replacement), pattern)
    return RegexPath(pattern, replacement, made)


def direct_response(entry: Fields) -> Direct | None:
    """HTTPDirectResponse, with its body as text or base64."""
    if entry.raw("directResponse") is None:
        return None
    given = entry.inner("directResponse")
    status = given.integer("status", 0, 0, 2**31)
    if not 200 <= status <= 599:
        raise given.error("status", f"HTTP status {status} is not in range 200-599")
    body, made = given.inner("body"), b""
    if body.raw("string") is not None and body.raw("bytes") is not None:
        raise body.error("bytes", "expected one of string, bytes")
    if body.raw("string") is not None:
        made = str(body.raw("string")).encode()
    elif body.raw("bytes") is not None:
        made = body.parsed("bytes", _base64, None)
    body.finish()
    given.finish()
    if len(made) > _LARGEST:
        raise given.error("body", f"response body size {len(made)} exceeds max allowed body size {_LARGEST}")
    return Direct(status, made)


def _base64(text: object) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("expected base64") from None


def mirrors(entry: Fields, target: Callable[[Fields, int], Backend]) -> tuple[Mirror, ...]:
    """``mirror`` with its percentage, or ``mirrors``; nobody is sent copies where nobody is."""
    if entry.raw("mirror") is not None and entry.raw("mirrors"):
        raise entry.error("mirrors", "HTTP route cannot contain both mirror and mirrors")
    old = entry.integer("mirrorPercent", 100, 0, 100)
    share = percentage(entry, "mirrorPercentage", "mirror_percentage", old)
    found = [Mirror(target(entry.inner("mirror"), 1), share)] if entry.raw("mirror") is not None else []
    for each in entry.each("mirrors"):
        if each.raw("destination") is None:
            raise each.error("destination", "destination is required")
        found.append(Mirror(target(each.inner("destination"), 1), percentage(each, "percentage", "mirror_percentage")))
        each.finish()
    return tuple(mirror for mirror in found if mirror.share and mirror.backend.endpoints)


def percentage(entry: Fields, key: str, called: str, default: float = 100.0) -> float:
    """A Percent, as a share."""
    if entry.raw(key) is None:
        return default / 100
    given = entry.inner(key)
    value = given.number("value", 0.0, -1e300, 1e300)
    given.finish()
    if value > 100:
        raise given.error("value", f"{called} must have a max value of 100 (it has {value:f})")
    if value < 0:
        raise given.error("value", f"{called} must have a min value of 0 (it has {value:f})")
    return value / 100
