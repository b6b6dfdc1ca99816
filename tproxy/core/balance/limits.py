"""How much a backend is given at once: Istio's ``connectionPool``. PURE.

A limit is for all endpoints of a backend together, as Envoy's circuit breakers are; 0 is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tproxy.core.balance.outlier import Outlier


@dataclass(frozen=True, slots=True)
class Keepalive:
    """tcp(7): TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT; seconds, 0 is the system's."""

    time: int = 0
    interval: int = 0
    probes: int = 0


@dataclass(frozen=True, slots=True)
class Caps:
    """Numbers by the names that a DestinationRule has for them; seconds, None is the gateway's own."""

    connections: int = 0  # maxConnections; an endpoint without any may have one
    pending: int = 0  # http1MaxPendingRequests: requests that wait for a connection
    requests: int = 0  # http2MaxRequests: at once, whatever the version
    retries: int = 0  # maxRetries: at once
    each: int = 0  # maxRequestsPerConnection
    streams: int = 0  # maxConcurrentStreams
    connect: float | None = None
    idle: float | None = None
    keepalive: Keepalive | None = None


NO_CAPS = Caps()


@dataclass(frozen=True, slots=True)
class Care:
    """What is watched and bounded for one backend."""

    caps: Caps = NO_CAPS
    outlier: Outlier | None = None

    def words(self) -> Iterator[str]:
        """For people."""
        named = {
            "maxConnections": self.caps.connections,
            "http1MaxPendingRequests": self.caps.pending,
            "http2MaxRequests": self.caps.requests,
            "maxRetries": self.caps.retries,
        }
        yield from (f"{name} {value}" for name, value in named.items() if value)
        if self.outlier is not None:
            yield f"left out for {self.outlier.base:g} s and more after {self.outlier}"


NO_CARE = Care()
