"""How long and how much HTTP may take. Seconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one connection or one request; no byte that trickles in moves the deadline of a head."""

    head: float = 10.0  # for a whole request head, from its first byte
    idle: float = 300.0  # between requests
    stall: float = 300.0  # without a byte of a body that is wanted, either way (Envoy's stream_idle_timeout)
    rate: int = 4  # bytes a second that a request's body must bring in each ``stall`` seconds; 0: it may trickle
    ping_clients: float = (
        60.0  # of HTTP/2: silence with open streams after which a client is asked whether it is there,
    )
    ping_backends: float = 300.0  # and a backend: gRPC's servers take more than this for abuse; 0: never
    linger: float = 2.0  # for a client to read our last words before its connection goes
    connect: float = 10.0  # for a backend to accept
    upstream_idle: float = 60.0  # a connection to a backend that nobody uses
    idle_connections: int = 256  # kept towards one endpoint
    connections: int = 1024  # at once towards one endpoint, as Envoy's max_connections
    waiting: int = 1024  # requests that wait for one, as Envoy's max_pending_requests
    buffer: int = 64 * 1024  # bytes of a request's body that are kept for another try
    congested: int = 64 * 1024  # bytes that wait to be sent before the other side is held
