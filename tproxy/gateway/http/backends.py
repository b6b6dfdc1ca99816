"""Pools by backend: which connections there are towards whom, and how a new one is made."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from tproxy.core.address import Endpoint
from tproxy.core.balance.limits import NO_CAPS
from tproxy.core.http.facts import host_of
from tproxy.core.reason import Deny
from tproxy.core.routes import Backend, BackendTls
from tproxy.gateway.guards import Guard, Guards
from tproxy.gateway.http.guarded import GuardedPool, bounded
from tproxy.gateway.http.h1_client import H1Client
from tproxy.gateway.http.h2_client import H2Client
from tproxy.gateway.http.h2_limits import Limits as H2Limits
from tproxy.gateway.http.limits import Limits
from tproxy.gateway.http.pool import Dial, Pool
from tproxy.gateway.http.stream import Client
from tproxy.gateway.http.wheel import Wheel
from tproxy.gateway.tls import Means, begin
from tproxy.kernel.sock import abort, keep_alive, reset_on_close
from tproxy.proxy.dial import reach
from tproxy.proxy.legs import PlainLeg

log = logging.getLogger("tproxy")
Key = tuple[Endpoint, BackendTls | None, bool, str, Guard | None]
H2_LIMITS: Final = H2Limits()
POOLS = 4096  # those without a connection go when there are so many: clients may choose the hosts


@dataclass(slots=True)
class Backends:
    """All pools of a gateway. Two backends that mean the same endpoint in the same manner share one."""

    means: Callable[[], Means]
    wheel: Wheel
    limits: Limits
    guards: Guards
    _pools: dict[Key, Pool] = field(default_factory=dict)
    _most: int = POOLS
    # by id, for speed; what has the id stands beside, so that nothing else can have it
    _known: dict[int, tuple[Backend, dict[tuple[int, str], tuple[Endpoint, Pool]]]] = field(default_factory=dict)

    def pool(self, backend: Backend, endpoint: Endpoint, authority: str) -> Pool:
        """The one for an endpoint of this backend; where TLS asks for the request's host, the one for that host."""
        host = "" if backend.tls is None or backend.tls.sni else host_of(authority)
        known = self._known.get(id(backend))
        if known is None:
            known = self._known[id(backend)] = (backend, {})
        found = known[1].get((id(endpoint), host))
        if found is None:
            if host and len(self._pools) >= self._most:
                self.forget()
                self._most = max(POOLS, 2 * len(self._pools))
                known = self._known[id(backend)] = (backend, {})
            found = known[1][id(endpoint), host] = (endpoint, self._shared(backend, endpoint, host))
        return found[1]

    def _shared(self, backend: Backend, endpoint: Endpoint, host: str) -> Pool:
        guard = None if backend.care is None else self.guards.of(backend)
        key = (endpoint, backend.tls, backend.http2, host, guard)
        if key not in self._pools:
            self._pools[key] = self._pool(f"{backend.name} at {endpoint}", backend, endpoint, host, guard)
        return self._pools[key]

    def _pool(self, name: str, backend: Backend, endpoint: Endpoint, host: str, guard: Guard | None) -> Pool:
        each, dial = H2_LIMITS.streams if backend.http2 else 1, self._dialler(backend, endpoint, host, guard)
        if guard is None:
            return Pool(name, dial, self.wheel, self.limits, each)
        each = min(each, guard.caps.streams or each) if backend.http2 else 1
        return GuardedPool(name, dial, self.wheel, bounded(self.limits, guard), each, guard)

    def forget(self) -> None:
        """A new table was taken up: pools that nobody asks for any more go when their connections have."""
        self._known.clear()
        self._pools = {key: pool for key, pool in self._pools.items() if pool.open}
        self.guards.keep({pool for pool in self._pools.values() if isinstance(pool, GuardedPool)})

    def close(self) -> None:
        """Stopping: nothing new on what is open."""
        for pool in self._pools.values():
            pool.close()

    def _dialler(self, backend: Backend, endpoint: Endpoint, host: str, guard: Guard | None) -> Dial:
        async def dial(pool: Pool) -> Client | Deny:
            sock = await reach(endpoint, 0, pool.limits.connect, self.means().reactor)
            if isinstance(sock, Deny):
                return sock
            if guard is not None and guard.caps.keepalive is not None:
                keep_alive(sock, guard.caps.keepalive)
            return await self._client(sock, backend, host, pool)

        return dial

    async def _client(self, sock: socket.socket, backend: Backend, host: str, pool: Pool) -> Client | Deny:
        made: H1Client | H2Client
        caps = NO_CAPS if backend.care is None else backend.care.caps
        if backend.http2:
            made = H2Client(_streams(caps.streams, self.limits), pool.freed, pool.closed, caps.each)
        else:
            made = H1Client(self.limits.congested, pool.freed, pool.closed, caps.each)
        if backend.tls is not None:
            alpn = ("h2",) if backend.http2 else ("http/1.1",)
            line = await begin(sock, backend.tls, lambda _: made, self.means(), host, alpn)
            if isinstance(line, Deny):
                abort(sock)
                name = backend.tls.sni or host or backend.tls.host
                log.warning("TLS to %s, SNI %s: %s (%s; %s)", pool.name, name, line.why, line.reason, line.advice)
                return Deny(line.reason, f"TLS to {backend.name}: {line.why}")
            return made
        reset_on_close(sock, False)
        self.means().reactor.attach(PlainLeg(sock), made)
        return made


def _streams(most: int, limits: Limits) -> H2Limits:
    streams = min(most or H2_LIMITS.streams, H2_LIMITS.streams)
    return replace(H2_LIMITS, streams=streams, ping=limits.ping_backends)
