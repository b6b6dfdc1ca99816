"""Where a connection of the application would go, and how far every rule of egress was from it."""

from __future__ import annotations

from dataclasses import dataclass

from tproxy.core import decide
from tproxy.core.address import Endpoint
from tproxy.core.config import Config
from tproxy.core.egress.routes import EgressRoutes, EgressRule
from tproxy.core.reason import Deny


@dataclass(frozen=True, slots=True)
class Hop:
    """A router that may carry it."""

    router: str
    address: str  # host:port
    name: str  # in records
    weight: int


@dataclass(frozen=True, slots=True)
class Line:
    """One rule, and which conditions keep it from this connection (none: it matches)."""

    rule: str
    misses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """``answer`` is mtls, plain, routed or deny; ``otherwise`` what happens while no router is up."""

    answer: str
    rule: str
    why: str
    hops: tuple[Hop, ...]
    otherwise: str
    lines: tuple[Line, ...]


def explain(source: Endpoint | None, target: Endpoint, sni: str | None, config: Config) -> Explanation:
    """As the sidecar would decide without a directory. The Config is settled."""
    routes = config.egress_routes
    answer = decide.egress(target, False, config, source=source, sni=sni)
    lines = tuple(Line(rule.name, rule.misses(source, target, sni)) for rule in routes.rules)
    match answer:
        case Deny(_, why, rule):
            return Explanation("deny", rule, why, (), "", lines)
        case decide.Routed(_, by):
            hops = _hops(by, target.port, routes)
            why = f"{target} is outside the mesh" + (f", and the client asks for {sni}" if by.sni else "")
            return Explanation("routed", by.name, why, hops, by.otherwise.value, lines)
        case decide.Mtls(_, expect, rule):
            who = " or ".join(map(str, expect)) or f"any workload of {config.trust_domain}"
            return Explanation("mtls", rule, f"{target} must prove to be {who}", (), "", lines)
        case decide.Plain(_, rule):
            return Explanation("plain", rule, f"{target} is called as it is", (), "", lines)
        case decide.Look():
            raise AssertionError  # the name is known


def _hops(rule: EgressRule, wanted: int, routes: EgressRoutes) -> tuple[Hop, ...]:
    return tuple(
        Hop(router.name, f"{router.host}:{port}", router.cluster(port, routes.names), weight)
        for router, weight in rule.routers
        if (port := router.port(wanted)) is not None
    )


def summary(rule: EgressRule) -> str:
    """A rule in one line."""
    conditions = {
        "ports": sorted(rule.ports),
        "cidrs": rule.networks,
        "sni": rule.sni,
        "sourceOctet": [rule.octet] if rule.octet else (),
    }
    said = [f"{key} {', '.join(map(str, values))}" for key, values in conditions.items() if values]
    hops = [_ways(router.name, router.host, router.ports, router.rest, weight) for router, weight in rule.routers]
    return f"{rule.name}: {'; '.join(said) or 'everything'} -> {', '.join(hops)}; otherwise {rule.otherwise}"


def _ways(name: str, host: str, ports: tuple[tuple[int, int], ...], rest: int, weight: int) -> str:
    ways = [f"{port}:{at}" for port, at in ports] + ([f"*:{rest}"] if rest else [])
    return f"{name} ({host}, {' '.join(ways)}, weight {weight})"
