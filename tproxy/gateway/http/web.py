"""What all HTTP connections of a gateway share: deadlines, connections to backends, what is told of each request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from tproxy.gateway.guards import Guards
from tproxy.gateway.http.backends import Backends
from tproxy.gateway.http.engine import Engine
from tproxy.gateway.http.h2_limits import Limits as H2Limits
from tproxy.gateway.http.journal import Journal
from tproxy.gateway.http.limits import Limits
from tproxy.gateway.http.wheel import Wheel
from tproxy.gateway.tls import Means


class Open(Protocol):
    """A client's connection."""

    def drain(self) -> None:
        """No request after those at hand."""


@dataclass(slots=True)
class Web:
    """Made inside the event loop, once a gateway."""

    limits: Limits
    backends: Backends
    engine: Engine
    journal: Journal
    h2: H2Limits  # of clients
    open: set[Open] = field(default_factory=set)
    draining: bool = False

    def drain(self) -> None:
        """No request after those at hand, on any connection."""
        self.draining = True
        for conn in tuple(self.open):
            conn.drain()


def web(limits: Limits, means: Callable[[], Means]) -> Web:
    """All of it."""
    loop = asyncio.get_running_loop()
    wheel = Wheel(loop)
    guards = Guards()
    backends = Backends(means, wheel, limits, guards)
    journal = Journal()
    engine = Engine(wheel, limits, backends.pool, loop.time, journal.done, lambda: journal.form, guards)
    h2 = H2Limits(ping=limits.ping_clients, upload=limits.stall, rate=limits.rate)
    return Web(limits, backends, engine, journal, h2)
