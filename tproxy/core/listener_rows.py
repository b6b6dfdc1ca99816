"""What listens: one row for each port, or for each name where TLS tells servers apart, as istioctl lists listeners.

PURE.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from tproxy.core.hostnames import ANY
from tproxy.core.http_routes import HttpTable
from tproxy.core.routes import Bind, Chain, Closed, HttpListener, Listener, Passthrough, Route, TcpListener, TlsListener


@dataclass(frozen=True, slots=True)
class Row:
    """Where, for whom, and whereto."""

    address: str
    port: int
    match: str
    destination: str


def rows(bind: Bind, listener: Listener) -> Iterator[Row]:
    """The rows of one port."""
    address, port = bind[0] or "0.0.0.0", bind[1]
    match listener:
        case HttpListener(number, table):
            yield Row(address, port, "ALL", f"Route: http.{number} ({_hosts(table)})")
        case TcpListener(_, _, route):
            yield Row(address, port, "ALL", _clusters(route))
        case TlsListener(_, names):
            for name, chain in names.items():
                yield Row(address, port, "SNI: *" if name == ANY else f"SNI: {name}", _chain(chain))
        case never:
            assert_never(never)


def _chain(chain: Chain) -> str:
    match chain:
        case Passthrough(_, route):
            return _clusters(route)
        case Closed(_, why):
            return f"closed: {why}"
    inside = chain.inside
    return f"Route: {chain.server} ({_hosts(inside)})" if isinstance(inside, HttpTable) else _clusters(inside)


def _clusters(route: Route | None) -> str:
    if route is None:
        return "no route is bound"
    return "Cluster: " + ", ".join(backend.name for backend in route.backends)


def _hosts(table: HttpTable) -> str:
    number = len(table.hosts)
    return f"{number} host{'' if number == 1 else 's'}"
