"""Egress by rule: which of the application's connections leave through which router, and at which of its ports.

PURE. Rules are asked in their order, and the first that matches decides, for destinations outside the mesh only. What a
rule takes and no router can carry is refused, unless the rule says ``otherwise: direct``.

>>> last_octet("[::ffff:1.2.3.100]:8080"), last_octet("1.2.3.256")
(100, None)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from itertools import accumulate

from tproxy.core.address import Address, Endpoint, Network, contains, parse_address
from tproxy.core.hostnames import why_not

PORTS = ((443, 8080), (80, 8081))  # where a router takes what was meant for these ports, if it does not say it
REST = 8080  # and for all others


class Parity(StrEnum):
    """Of the last octet of the caller's IPv4 address."""

    EVEN = "even"
    ODD = "odd"


class Otherwise(StrEnum):
    """What becomes of a connection that no router of its rule can carry."""

    REFUSE = "refuse"
    DIRECT = "direct"


class Names(StrEnum):
    """How routers are called in records: as themselves, or as Istio calls the clusters of their services."""

    STANDALONE = "standalone"
    ISTIO = "istio"


class Unread(Enum):
    """The application's first bytes have not been looked at."""

    UNREAD = "unread"


@dataclass(frozen=True, slots=True)
class Router:
    """A TCP listener that dials on: by address or name, and the port for each destination port; 0: no other."""

    name: str
    host: str
    ports: tuple[tuple[int, int], ...] = PORTS
    rest: int = REST

    def port(self, destination: int) -> int | None:
        """Where it takes what was meant for this port."""
        return dict(self.ports).get(destination) or self.rest or None

    def cluster(self, port: int, names: Names) -> str:
        """As it stands in records."""
        return f"outbound|{port}||{self.host}" if names is Names.ISTIO else self.name


@dataclass(frozen=True, slots=True)
class EgressRule:
    """Empty conditions hold for everything; weight 0: only while no other router can carry it."""

    name: str
    routers: tuple[tuple[Router, int], ...]
    ports: frozenset[int] = frozenset()
    networks: tuple[Network, ...] = ()
    sni: tuple[str, ...] = ()
    octet: Parity | None = None
    otherwise: Otherwise = Otherwise.REFUSE

    def misses(self, source: Endpoint | None, target: Endpoint, sni: str | Unread | None) -> tuple[str, ...]:
        """The conditions that keep it from a connection, in words; a name that nobody has read keeps it from none."""
        return tuple(
            filter(
                None,
                (
                    self._port(target.port),
                    self._network(target.ip),
                    self._octet(source),
                    "" if isinstance(sni, Unread) else self._sni(sni),
                ),
            )
        )

    def _port(self, port: int) -> str:
        return f"ports has no {port}" if self.ports and port not in self.ports else ""

    def _network(self, address: Address) -> str:
        return f"cidrs has no {address}" if self.networks and not contains(self.networks, address) else ""

    def _octet(self, source: Endpoint | None) -> str:
        if self.octet is None:
            return ""
        octet = last_octet(str(source.ip)) if source else None
        if octet is None:
            return f"sourceOctet is {self.octet}, and {source.ip if source else 'the caller'} has none"
        return "" if parity(octet) is self.octet else f"sourceOctet is {self.octet}, and {octet} is not"

    def _sni(self, name: str | None) -> str:
        if not self.sni or any(not why_not(pattern, name) for pattern in self.sni):
            return ""
        return f"sni has no {name}" if name else "sni is asked for, and the client names nobody"


@dataclass(frozen=True, slots=True)
class EgressRoutes:
    """The section ``egressRoutes``; seconds between checks (0: none), of rest after a failure, and to connect."""

    rules: tuple[EgressRule, ...] = ()
    names: Names = Names.STANDALONE
    tag: str = "egress-route"
    check: float = 0.0
    rest: float = 10.0
    connect: float = 3.0
    http503: frozenset[int] = field(default_factory=frozenset)  # ports where HTTP is refused with an answer
    file: str = ""  # where all of it stands instead

    def naming(self) -> EgressRoutes:
        """Only the rules that name networks: what the directory knows is in the cluster, and taken by nothing less."""
        return replace(self, rules=tuple(rule for rule in self.rules if rule.networks))

    @property
    def hops(self) -> frozenset[tuple[str, int]]:
        """Every host and port that a rule could lead to."""
        return frozenset(
            (router.host, port)
            for rule in self.rules
            for router, _ in rule.routers
            for port in _ports_of(router, rule.ports)
        )


def _ports_of(router: Router, wanted: frozenset[int]) -> frozenset[int]:
    every = {port for _, port in router.ports} | ({router.rest} - {0})
    return frozenset(filter(None, map(router.port, wanted))) if wanted else frozenset(every)


def parity(octet: int) -> Parity:
    """Even or odd."""
    return Parity.ODD if octet % 2 else Parity.EVEN


def last_octet(text: str) -> int | None:
    """Of an IPv4 address, with a port or without one, mapped into IPv6 or not; None if there is none."""
    try:
        address = Endpoint.parse(text).ip
    except ValueError:
        try:
            address = parse_address(text)
        except ValueError:
            return None
    return address.packed[-1] if address.version == 4 else None


def choose(
    routes: EgressRoutes, source: Endpoint | None, target: Endpoint, sni: str | Unread | None
) -> EgressRule | Unread | None:
    """The first rule that matches; UNREAD if that hangs on a name that nobody has read yet."""
    for rule in routes.rules:
        if not rule.misses(source, target, sni):
            return sni if rule.sni and isinstance(sni, Unread) else rule
    return None


def order(
    rule: EgressRule, port: int, healthy: Callable[[str, int], bool], draw: Callable[[], float]
) -> list[tuple[Router, int]]:
    """Routers that can carry it and their ports, in the order to try them: by lot and weight, then those of weight 0.

    ``draw`` gives numbers from 0 up to but not including 1.
    """
    able = [(router, at, weight) for router, weight in rule.routers if (at := router.port(port)) is not None]
    left = [each for each in able if healthy(each[0].host, each[1])]
    found: list[tuple[Router, int]] = []
    while left:
        marks = list(accumulate(weight for _, _, weight in left))
        index = bisect_right(marks, draw() * marks[-1]) % len(left)  # nothing but weight 0: the first
        router, at, _ = left.pop(index)
        found.append((router, at))
    return found
