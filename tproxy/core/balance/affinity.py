"""Requests of one key go to one endpoint: Istio's ``consistentHash`` by a header, cookie, query parameter or address.

PURE. A request without the key goes anywhere; for a cookie that is to be made it goes where the new cookie leads.
Source: istio.io, LoadBalancerSettings.ConsistentHashLB; Envoy's route.v3.RouteAction.HashPolicy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from tproxy.core.address import Endpoint
from tproxy.core.balance.ring import Ring, digest

if TYPE_CHECKING:
    from tproxy.core.http.facts import Facts
    from tproxy.core.http.filters import Pairs


class Bond(Protocol):
    """What ties one request to an endpoint."""

    def choose(self, left: Sequence[Endpoint], whole: bool) -> Endpoint | None:
        """Which of those that are left (``whole``: all of the backend's); None: it does not matter."""

    def told(self, endpoint: Endpoint) -> Pairs:
        """Headers by which the client comes back to who answered it."""


class By(StrEnum):
    """What the key is."""

    HEADER = "header"
    COOKIE = "cookie"
    SOURCE = "source address"
    QUERY = "query parameter"


@dataclass(frozen=True, slots=True)
class Affinity:
    """The key of a backend's requests, and the ring of its endpoints."""

    by: By
    ring: Ring
    name: str = ""  # of the header (lower case), cookie or parameter
    ttl: float | None = None  # seconds of a cookie that we make; 0: until the client ends; None: we make none
    path: str = ""

    def __str__(self) -> str:
        return f"consistent hash of {self.by}{f' {self.name}' if self.name else ''}"

    def bond(self, facts: Facts, address: str, draw: Callable[[], float]) -> Hashed | None:
        """Of a request; None: it has no key."""
        match self.by:
            case By.SOURCE:
                key: str | None = address
            case By.HEADER:
                key = _header(facts, self.name)
            case By.QUERY:
                key = facts.query.get(self.name)
            case By.COOKIE:
                key = next(cookies(facts.forwarded, self.name), None)
                if not key and self.ttl is not None:
                    key = f"{int(draw() * 2**53):014x}"
                    return Hashed(self.ring, digest(key.encode()), (("set-cookie", self._cookie(key)),))
        return Hashed(self.ring, digest(key.encode())) if key else None

    def of_address(self, address: str) -> Hashed | None:
        """Of a connection, of which nothing is known but who made it."""
        return Hashed(self.ring, digest(address.encode())) if self.by is By.SOURCE else None

    def _cookie(self, value: str) -> str:
        """As Envoy writes it."""
        lives = f"; Max-Age={int(self.ttl)}" if self.ttl else ""
        path = f"; Path={self.path}" if self.path else ""
        return f'{self.name}="{value}"{lives}{path}; HttpOnly'


def _header(facts: Facts, name: str) -> str | None:
    match name:
        case ":authority" | "host":
            return facts.authority
        case ":path":
            return facts.path
        case ":method":
            return facts.method
        case _:
            return facts.headers.get(name)


@dataclass(frozen=True, slots=True)
class Hashed:
    """A key's place on the ring."""

    ring: Ring
    key: int
    cookie: Pairs = ()

    def choose(self, left: Sequence[Endpoint], whole: bool) -> Endpoint | None:
        return self.ring.first(self.key) if whole else self.ring.among(self.key, left)

    def told(self, endpoint: Endpoint) -> Pairs:
        return self.cookie


def cookies(headers: Iterable[tuple[str, str]], name: str) -> Iterator[str]:
    """Every value that a client sends under a name (RFC 6265, 4.2); HTTP/2 may have them in several lines."""
    for header, line in headers:
        if header == "cookie" and name in line:
            for part in line.split(";"):
                key, _, value = part.partition("=")
                if key.strip() == name:
                    yield value.strip().strip('"')
