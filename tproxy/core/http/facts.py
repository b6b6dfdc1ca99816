"""What a rule may ask of a request, worked out when it is asked for, once.

PURE. ``Facts`` for traffic; ``http_routes.Request`` for people who ask with a few words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from tproxy.core.http.forwarded import Client, forwarded
from tproxy.core.http.head import Head, Headers
from tproxy.core.percent import unquoted

if TYPE_CHECKING:
    from tproxy.core.http.routes import Request

Asked: TypeAlias = "Request | Facts"


class Facts:
    """A request as rules see it: the path is normal and has no query; scheme and headers are what we know and what a
    backend would get, never what a client only says of itself."""

    __slots__ = (
        *("_client", "_forwarded", "_head", "_headers", "_new_id", "_query", "_text"),
        *("authority", "host", "method", "path", "scheme"),
    )

    def __init__(self, head: Head, host: str, path: str, query: str, client: Client, new_id: Callable[[], str]) -> None:
        self.host, self.path, self.method, self.scheme = host, path, head.method, client.scheme
        self.authority = head.authority
        self._head, self._text = head, query
        self._client, self._new_id = client, new_id
        self._forwarded: Headers | None = None
        self._headers: dict[str, str] | None = None
        self._query: dict[str, str] | None = None

    @property
    def forwarded(self) -> Headers:
        """What a backend gets before a rule's changes."""
        if self._forwarded is None:
            self._forwarded = forwarded(self._head.headers, self._client, self._new_id())
        return self._forwarded

    @property
    def headers(self) -> Mapping[str, str]:
        """Lines of one name are one value (RFC 9110, 5.3)."""
        if self._headers is None:
            made: dict[str, str] = {}
            for name, value in self.forwarded:
                made[name] = f"{made[name]},{value}" if name in made else value
            self._headers = made
        return self._headers

    def lines(self, name: str) -> tuple[str, ...]:
        """Each by itself, of one name."""
        return tuple(value for key, value in self.forwarded if key == name)

    @property
    def query(self) -> Mapping[str, str]:
        """Of several parameters of one name the first counts, as in Envoy."""
        if self._query is None:
            self._query = parse_query(self._text)
        return self._query


def parse_query(text: str) -> dict[str, str]:
    """Percent-decoded names and values; ``text`` has no question mark before it."""
    found: dict[str, str] = {}
    for part in text.split("&") if text else ():
        name, _, value = part.partition("=")
        found.setdefault(unquoted(name), unquoted(value))
    return found


def host_of(authority: str) -> str:
    """The host of an authority without its port, an IPv6 address without brackets, in lower case."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower()


def port_of(authority: str) -> str:
    """The port that stands in an authority, or nothing."""
    return authority.rpartition("]")[2].partition(":")[2]
