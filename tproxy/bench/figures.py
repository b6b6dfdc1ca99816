"""What is measured, in which unit, and what we want of it."""

from __future__ import annotations

from dataclasses import dataclass

KEEP_ALIVE, MORE, STEADY = "32 connections", "1 and 256 connections", "half load"
CLOSE, BULK, MEMORY = "new connections", "bulk", "memory"


@dataclass(frozen=True, slots=True)
class Figure:
    """One kind of figure: its unit, whether more of it is better, and in which measurement it is taken."""

    name: str
    unit: str
    more: bool
    kind: str


FIGURES = (
    Figure("requests/s", "1/s", True, KEEP_ALIVE),
    Figure("p50", "ms", False, KEEP_ALIVE),
    Figure("p99", "ms", False, KEEP_ALIVE),
    Figure("p99.9", "ms", False, KEEP_ALIVE),
    Figure("CPU per 1000 requests", "s", False, KEEP_ALIVE),
    Figure("p99 at half of Envoy's load", "ms", False, STEADY),
    Figure("p50, 1 connection", "ms", False, MORE),
    Figure("p99, 1 connection", "ms", False, MORE),
    Figure("requests/s, 256 connections", "1/s", True, MORE),
    Figure("p99, 256 connections", "ms", False, MORE),
    Figure("new connections/s", "1/s", True, CLOSE),
    Figure("CPU per 1000 connections", "s", False, CLOSE),
    Figure("bulk, 1 stream", "Gbit/s", True, BULK),
    Figure("CPU per GB, 1 stream", "s", False, BULK),
    Figure("bulk, 8 streams", "Gbit/s", True, BULK),
    Figure("CPU per GB, 8 streams", "s", False, BULK),
    Figure("memory", "MiB", False, MEMORY),
)


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio of two pairs' figures that we want to reach."""

    figure: str
    ours: str
    theirs: str
    wanted: float


def goals(mtls: str, sockmap: str, resumed: str, envoy: str, hop: str, envoy_hop: str) -> tuple[Goal, ...]:
    """Against an Envoy pair captured by the same rules; ``sockmap`` is how a sidecar runs by default."""
    return (
        Goal("requests/s", sockmap, envoy, 1.3),
        Goal("p99 at half of Envoy's load", sockmap, envoy, 0.8),
        Goal("bulk, 1 stream", sockmap, envoy, 1.2),
        Goal("bulk, 8 streams", sockmap, envoy, 1.2),
        Goal("CPU per 1000 requests", sockmap, envoy, 0.8),
        Goal("CPU per GB, 1 stream", sockmap, envoy, 0.8),
        Goal("CPU per GB, 8 streams", sockmap, envoy, 0.8),
        Goal("new connections/s", mtls, envoy, 1.0),
        Goal("new connections/s", resumed, envoy, 1.5),
        Goal("memory", sockmap, envoy, 0.6),
        Goal("bulk, 1 stream", hop, envoy_hop, 1.0),
        Goal("CPU per GB, 1 stream", hop, envoy_hop, 0.7),
    )
