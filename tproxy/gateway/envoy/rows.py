"""What listens: one row for each port, or for each name where TLS tells servers apart, as istioctl lists listeners."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from tproxy.core.hostnames import ANY
from tproxy.core.http.routes import HttpTable
from tproxy.core.routes import (
    Bind,
    Chain,
    Closed,
    HttpListener,
    Listener,
    Passthrough,
    Route,
    TcpListener,
    TlsListener,
    UdpListener,
)
from tproxy.gateway.envoy.names import cluster, https_routes


@dataclass(frozen=True, slots=True)
class Row:
    """Where, for whom, and whereto."""

    address: str
    port: int
    match: str
    destination: str


def rows(bind: Bind, listener: Listener | UdpListener) -> Iterator[Row]:
    """The rows of one port."""
    address, port = bind[0] or "0.0.0.0", bind[1]
    match listener:
        case HttpListener():
            yield Row(address, port, "ALL", f"Route: http.{port}")
        case TcpListener() | UdpListener():
            kind = "ALL" if isinstance(listener, TcpListener) else "UDP"
            yield Row(address, port, kind, _clusters(listener.route))
        case TlsListener(number, names):
            for name, chain in names.items():
                yield Row(address, port, "ALL" if name == ANY else f"SNI: {name}", _chain(number, chain))
        case never:
            assert_never(never)


def _chain(port: int, chain: Chain) -> str:
    match chain:
        case Passthrough(_, route):
            return _clusters(route)
        case Closed(_, why):
            return f"closed: {why}"
    inside = chain.inside
    return f"Route: {https_routes(port, chain.server)}" if isinstance(inside, HttpTable) else _clusters(inside)


def _clusters(route: Route | None) -> str:
    if route is None:
        return "no route is bound"
    return "Cluster: " + ", ".join(map(cluster, route.backends))
