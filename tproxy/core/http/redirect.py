"""Where a redirect sends a client: RFC 9110, 10.2.2; what a rule does not name stays as it was asked for.

PURE. The location is always whole, with scheme and host, so that no path can be read as a host.
"""

from __future__ import annotations

from tproxy.core.http.facts import port_of
from tproxy.core.http.filters import DerivedPort, Redirect
from tproxy.core.http.forwarded import Client
from tproxy.core.http.head import Head
from tproxy.core.http.path import changed
from tproxy.core.http.routes import Entry, Kind

_OWN = {"http": "80", "https": "443"}


def location(redirect: Redirect, head: Head, target: str, matched: str, client: Client) -> str:
    """The URL; ``target`` is the request's path, made normal, with its query."""
    scheme = redirect.scheme or client.scheme
    asked = head.authority
    host = redirect.host or (asked[: -len(port) - 1] if (port := port_of(asked)) else asked.rstrip(":"))
    number = _port(redirect, scheme, head, client)
    return f"{scheme}://{host}{number}{changed(target, redirect.path, matched)}"


def _port(redirect: Redirect, scheme: str, head: Head, client: Client) -> str:
    """With its colon, or nothing where it is the scheme's own."""
    match redirect.port, redirect.derived:
        case int(given), _:
            port = str(given)
        case _, DerivedPort.LISTENER:
            port = str(client.port)
        case _, DerivedPort.SCHEME:
            port = "" if redirect.scheme else str(client.port)
        case _:
            asked = "" if redirect.host else port_of(head.authority)
            lost = scheme != client.scheme and asked == _OWN.get(client.scheme)
            return f":{asked}" if asked and not lost else ""
    return "" if port in ("", _OWN.get(scheme)) else f":{port}"


def matched(entry: Entry, path: str) -> str:
    """What the entry's match found at the beginning of the path: what a prefix replacement takes away."""
    text = entry.match.path
    if text is None:
        return "/"
    if text.kind is Kind.SEGMENTS:
        return text.value.rstrip("/")
    return text.value if text.kind is Kind.PREFIX else path
