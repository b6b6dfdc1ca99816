"""What is measured and of whom: the names of pairs, measures and figures, and the results. Pure.

A *pair* is a client and a server with something between them; a *measure* is one kind of work; each gives *figures*.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

REQUESTS = (1, 32, 256)  # connections, in the table
ACTIVE = (10, 100, 1000)  # more of them, for the curve
STREAMS = (1, 8)
IDLE = (1, 10, 100, 1000, 10_000)

EVERY = frozenset({"requests", "load", "connections", "bulk", "memory"})
MEASURES = ("requests", "load", "connections", "bulk", "memory", "active", "idle")


@dataclass(frozen=True, slots=True)
class Kind:
    """A pair: its name in tables, what stands there, and what is measured of it."""

    name: str
    about: str
    measures: frozenset[str]


KINDS = {
    "direct": Kind("no proxy", "client and server alone", EVERY - {"memory"} | {"active", "idle"}),
    "plain": Kind("tproxy, plain", "through both sidecars, not encrypted", EVERY),
    "mtls": Kind("tproxy, mTLS", "sockmap off, no resumption", EVERY | {"idle"}),
    "sockmap": Kind(
        "tproxy, mTLS + sockmap", "sockmap both ways where it works, no resumption", EVERY | {"active", "idle"}
    ),
    "resumption": Kind("tproxy, mTLS + resumption", "sockmap off", frozenset({"connections"})),
    "envoy": Kind("Envoy", "mTLS, no resumption, 2 workers", EVERY | {"active", "idle"}),
    "envoy1": Kind("Envoy, 1 worker", "mTLS, no resumption", EVERY),
    "haproxy": Kind("HAProxy", "mTLS, no resumption, 2 threads", EVERY | {"idle"}),
    "nginx": Kind("nginx stream", "mTLS, no resumption, 2 workers", EVERY | {"idle"}),
    "hop": Kind("tproxy, one plain hop", "egress passthrough, no sidecar at the server", frozenset({"bulk", "memory"})),
    "envoyhop": Kind("Envoy tcp_proxy, one hop", "2 workers, no sidecar at the server", frozenset({"bulk", "memory"})),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One kind of figure: its unit, and whether more of it is better."""

    name: str
    unit: str
    more: bool


def rate(connections: int) -> str:
    """The name of a figure of requests; ``slowest`` and ``bulk`` likewise."""
    return f"requests/s, {_connections(connections)}"


def slowest(percentile: str, connections: int) -> str:
    """The name of a latency."""
    return f"p{percentile}, {_connections(connections)}"


def bulk(streams: int) -> str:
    """The name of a throughput."""
    return f"bulk, {_streams(streams)}"


def per_gigabyte(streams: int) -> str:
    """The name of the CPU time of bulk."""
    return f"CPU per GB, {_streams(streams)}"


def _connections(count: int) -> str:
    return f"{count} connection{'s' if count > 1 else ''}"


def _streams(count: int) -> str:
    return f"{count} stream{'s' if count > 1 else ''}"


CPU_REQUESTS, CPU_CONNECTIONS = "CPU per 1000 requests", "CPU per 1000 connections"
NEW = "new connections/s"
LOADED = {percentile: f"p{percentile} at equal load" for percentile in ("50", "99", "99.9")}
IDLE_MEMORY, MEMORY = "memory of the pair, idle", "memory of the pair, after load"

FIGURES = (
    *(Figure(rate(count), "1/s", True) for count in REQUESTS),
    *(Figure(slowest(p, count), "ms", False) for count in REQUESTS for p in ("50", "99", "99.9")),
    Figure(CPU_REQUESTS, "s", False),
    *(Figure(name, "ms", False) for name in LOADED.values()),
    Figure(NEW, "1/s", True),
    Figure(CPU_CONNECTIONS, "s", False),
    *(Figure(bulk(count), "Gbit/s", True) for count in STREAMS),
    *(Figure(per_gigabyte(count), "s", False) for count in STREAMS),
    Figure(IDLE_MEMORY, "MiB", False),
    Figure(MEMORY, "MiB", False),
)
CURVES = (
    *(Figure(rate(count), "1/s", True) for count in ACTIVE),
    *(Figure(slowest("99", n), "ms", False) for n in ACTIVE),
)
Round = dict[str, float]


@dataclass(frozen=True, slots=True)
class Point:
    """So many idle connections, what each sidecar's memory is then, and what the kernel's is; bytes."""

    connections: int
    memory: tuple[int, ...]
    kernel: int


@dataclass(slots=True)
class Results:
    """Everything that a run found: for each pair its rounds, in order, and its growth with idle connections."""

    rounds: dict[str, list[Round]] = field(default_factory=dict)
    idle: dict[str, list[Point]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def pairs(self) -> list[str]:
        """What was measured, in the order of KINDS."""
        return [key for key in KINDS if key in self.rounds]

    @property
    def no_sockmap(self) -> str | None:
        """What the sidecars said if sockmap does not work here: then the pair with sockmap has none."""
        return next((note for note in self.notes if "sockmap is off" in note), None)

    def add(self, pair: str, number: int, found: Round) -> None:
        """Figures of one pair in one round."""
        runs = self.rounds.setdefault(pair, [])
        runs.extend({} for _ in range(number + 1 - len(runs)))
        runs[number] |= found

    def values(self, pair: str, figure: str) -> list[float]:
        """One figure in every round that has it."""
        return [run[figure] for run in self.rounds.get(pair, ()) if figure in run]

    def median(self, pair: str, figure: str) -> float | None:
        """Over the rounds; None where it was not measured."""
        values = self.values(pair, figure)
        return statistics.median(values) if values else None

    def ratio(self, pair: str, other: str, figure: str, other_figure: str = "") -> Ratio | None:
        """One pair against another, always within a round: what disturbs one disturbs both."""
        both = zip(self.rounds.get(pair, ()), self.rounds.get(other, ()), strict=False)
        name = other_figure or figure
        found = [mine[figure] / theirs[name] for mine, theirs in both if figure in mine and theirs.get(name)]
        return Ratio(statistics.median(found), min(found), max(found)) if found else None

    def as_json(self) -> dict[str, Any]:
        """Every raw round, and medians with their spread."""
        names = [figure.name for figure in (*FIGURES, *CURVES)]
        return {
            "about": self.about,
            "pairs": {key: asdict(KINDS[key]) | {"measures": sorted(KINDS[key].measures)} for key in self.pairs},
            "rounds": {key: self.rounds[key] for key in self.pairs},
            "idle": {key: [asdict(point) for point in points] for key, points in self.idle.items()},
            "summary": {
                key: {
                    name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
                    for name in names
                    if (values := self.values(key, name))
                }
                for key in self.pairs
            },
            "notes": self.notes,
        }


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median over the rounds of the ratio within a round, the smallest and the largest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        spread = f" ({self.low:.2f}-{self.high:.2f})" if self.low != self.high else ""
        return f"{self.median:.2f}x{spread}"

    @property
    def certain(self) -> bool:
        """Whether every round says the same side of 1."""
        return self.low > 1 or self.high < 1


def per_connection(points: list[Point]) -> tuple[list[float], float] | None:
    """Bytes for one more idle connection: of each sidecar, and of the kernel; None if there are not two points."""
    if len(points) < 2 or points[-1].connections <= points[0].connections:
        return None
    first, last = points[0], points[-1]
    more = last.connections - first.connections
    sides = [(now - then) / more for then, now in zip(first.memory, last.memory, strict=True)]
    return sides, (last.kernel - first.kernel) / more


def kernel_share(idle: dict[str, list[Point]], pair: str) -> float | None:
    """Bytes of kernel memory for one more idle connection in one sidecar: what there is without any is taken off."""
    mine, alone = (per_connection(idle.get(key, [])) for key in (pair, "direct"))
    if mine is None or alone is None or not mine[0]:
        return None
    return (mine[1] - alone[1]) / len(mine[0])


def best(results: Results) -> str | None:
    """Which of our pairs stands for us: the one that users get by default."""
    return next((key for key in ("sockmap", "mtls") if key in results.rounds), None)


def reference(results: Results) -> str | None:
    """Whom we compare with."""
    return next((key for key in ("envoy", "envoy1") if key in results.rounds), None)
