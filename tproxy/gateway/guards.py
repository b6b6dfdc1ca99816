"""What is known of backends that a DestinationRule bounds or watches: who is left out, how much is under way.

One ``Guard`` a backend (host, port, subset), kept from table to table as long as its settings stay the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tproxy.core.address import Endpoint
from tproxy.core.balance.limits import Care
from tproxy.core.balance.outlier import Ejected, Health
from tproxy.core.reason import Deny, Reason
from tproxy.core.routes import Backend

_LATE = (Reason.CONNECT_TIMEOUT, Reason.HANDSHAKE_TIMEOUT)
log = logging.getLogger("tproxy")


class Counted(Protocol):
    """Connections to one endpoint."""

    open: int

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""


class Guard:
    """One backend. Limits are asked before something begins, and answer with the one that is reached, or nothing."""

    def __init__(self, backend: Backend, care: Care) -> None:
        self.key = backend.name, care
        self.name, self.caps, self.endpoints = backend.name, care.caps, backend.endpoints
        self.health = None if care.outlier is None else Health(care.outlier)
        self.pools: list[Counted] = []
        self.relayed = self.requests = self.retries = 0  # connections of bytes; requests and retries at once
        self.ejections, self.overflows = Counter[str](), Counter[str]()
        self._sweeping: asyncio.TimerHandle | None = None

    # -- limits -------------------------------------------------------------------------------------------------------

    def _over(self, name: str, have: int, most: int) -> str:
        if not most or have < most:
            return ""
        self.overflows[name] += 1
        return f"{name} {most} of {self.name}"

    @property
    def connections(self) -> int:
        """Open or being opened, of all endpoints."""
        return self.relayed + sum(pool.open for pool in self.pools)

    @property
    def may_open(self) -> bool:
        """One connection more."""
        return not self.caps.connections or self.connections < self.caps.connections

    def no_connection(self) -> str:
        """Why no other connection of bytes may be opened."""
        return self._over("maxConnections", self.connections, self.caps.connections)

    def no_wait(self) -> str:
        """Why no other request may wait for a connection."""
        waiting = sum(pool.waiting for pool in self.pools) if self.caps.pending else 0
        return self._over("http1MaxPendingRequests", waiting, self.caps.pending)

    def no_request(self) -> str:
        """Why no other request may begin."""
        return self._over("http2MaxRequests", self.requests, self.caps.requests)

    def no_retry(self) -> str:
        """Why nothing may be tried again."""
        return self._over("maxRetries", self.retries, self.caps.retries)

    # -- health -------------------------------------------------------------------------------------------------------

    def left(self, among: Sequence[Endpoint]) -> Sequence[Endpoint]:
        """Those that are not left out."""
        return among if self.health is None else self.health.left(among)

    def answered(self, endpoint: Endpoint, status: int) -> None:
        """An endpoint did, or took a connection of bytes (200)."""
        if self.health is not None:
            now = asyncio.get_running_loop().time()
            self._tell(self.health.answered(endpoint, status, self.endpoints, now))

    def failed(self, endpoint: Endpoint, late: bool) -> None:
        """It did not."""
        if self.health is not None:
            self._tell(self.health.failed(endpoint, late, self.endpoints, asyncio.get_running_loop().time()))

    def joined(self, endpoint: Endpoint, refused: Deny | None) -> None:
        """A connection of bytes: whether there is one, with its TLS, is all that can be known of the endpoint."""
        if refused is None:
            self.answered(endpoint, 200)
        else:
            self.failed(endpoint, refused.reason in _LATE)

    def _tell(self, ejected: Ejected | None) -> None:
        if ejected is None or self.health is None:
            return
        self.ejections[ejected.why] += 1
        of = f"{len(self.health.out)} of {len(self.endpoints)} are out"
        why = f"{ejected.row} failures in a row ({ejected.why})"
        log.warning("%s: %s is left out for %g s: %s; %s", self.name, ejected.endpoint, ejected.seconds, why, of)
        if self._sweeping is None:
            self._sweep_later(self.health)

    def _sweep_later(self, health: Health) -> None:
        self._sweeping = asyncio.get_running_loop().call_later(health.settings.interval, self._sweep, health)

    def _sweep(self, health: Health) -> None:
        self._sweeping = None
        for endpoint in health.sweep(asyncio.get_running_loop().time()):
            log.info("%s: %s is asked again", self.name, endpoint)
        if health.watched:
            self._sweep_later(health)

    def follow(self, backend: Backend) -> None:
        """Its endpoints have changed: who is gone is no longer out."""
        self.endpoints = backend.endpoints
        if self.health is not None:
            self.health.keep(backend.endpoints)

    def stop(self) -> None:
        """Nobody asks any more."""
        if self._sweeping is not None:
            self._sweeping.cancel()


@dataclass(slots=True, eq=False)
class Guards(Collector):
    """All of them, by the backend's name and what is asked for it."""

    _made: dict[tuple[str, Care], Guard] = field(default_factory=dict)
    _known: dict[int, tuple[Backend, Guard]] = field(default_factory=dict)  # by id, for speed

    def of(self, backend: Backend) -> Guard:
        """A backend's, which has a ``care``."""
        known = self._known.get(id(backend))
        if known is not None:
            return known[1]
        assert backend.care is not None
        key = backend.name, backend.care
        guard = self._made.get(key)
        if guard is None:
            guard = self._made[key] = Guard(backend, backend.care)
        elif guard.endpoints != backend.endpoints:
            guard.follow(backend)
        self._known[id(backend)] = backend, guard
        return guard

    def out(self, backend: Backend) -> Container[Endpoint]:
        """Who is left out of a backend, whoever asks."""
        guard = None if backend.care is None else self._made.get((backend.name, backend.care))
        return () if guard is None or guard.health is None else guard.health.out

    def keep(self, pools: Collection[Counted]) -> None:
        """Only these are, and backends are asked for anew."""
        self._known.clear()
        for guard in self._made.values():
            guard.pools = [pool for pool in guard.pools if pool in pools]

    def __bool__(self) -> bool:
        return bool(self._made)

    def follow(self, backends: Iterable[Backend]) -> None:
        """A table was taken up: guards of other backends go."""
        kept: dict[tuple[str, Care], Guard] = {}
        for backend in backends:
            guard = self._made.get((backend.name, backend.care)) if backend.care is not None else None
            if guard is not None:
                guard.follow(backend)
                kept[guard.key] = guard
        for key, guard in self._made.items():
            if key not in kept:
                guard.stop()
        self._made = kept

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        ejections = CounterMetricFamily(
            "tproxy_backend_ejections", "Endpoints left out for failing.", labels=("backend", "why")
        )
        out = GaugeMetricFamily("tproxy_backend_endpoints_out", "Endpoints that are left out now.", labels=("backend",))
        overflows = CounterMetricFamily(
            "tproxy_backend_overflows", "What a connectionPool's limit refused.", labels=("backend", "limit")
        )
        ejected, overflown, left_out = Counter[tuple[str, str]](), Counter[tuple[str, str]](), Counter[str]()
        for (name, _), guard in self._made.items():
            ejected.update({(name, why): count for why, count in guard.ejections.items()})
            overflown.update({(name, limit): count for limit, count in guard.overflows.items()})
            left_out[name] += 0 if guard.health is None else len(guard.health.out)
        for family, found in ((ejections, ejected), (overflows, overflown)):
            for labels, count in found.items():
                family.add_metric(labels, count)
        for name, count in left_out.items():
            out.add_metric((name,), count)
        yield from (ejections, out, overflows)
