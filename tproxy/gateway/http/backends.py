"""Pools by backend: which connections there are towards whom, and how a new one is made."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tproxy.core.address import Endpoint
from tproxy.core.http.facts import host_of
from tproxy.core.reason import Deny
from tproxy.core.routes import Backend, BackendTls
from tproxy.gateway.http.h1_client import H1Client
from tproxy.gateway.http.h2_client import H2Client
from tproxy.gateway.http.h2_limits import Limits as H2Limits
from tproxy.gateway.http.limits import Limits
from tproxy.gateway.http.pool import Dial, Pool
from tproxy.gateway.http.stream import Client
from tproxy.gateway.http.wheel import Wheel
from tproxy.gateway.tls import Means, begin
from tproxy.kernel.sock import abort, reset_on_close
from tproxy.proxy.legs import PlainLeg
from tproxy.proxy.side import reach

log = logging.getLogger("tproxy")
Key = tuple[Endpoint, BackendTls | None, bool, str]
H2_LIMITS = H2Limits()


@dataclass(slots=True)
class Backends:
    """All pools of a gateway. Two backends that mean the same endpoint in the same manner share one."""

    means: Callable[[], Means]
    wheel: Wheel
    limits: Limits
    _pools: dict[Key, Pool] = field(default_factory=dict)
    _known: dict[int, tuple[Backend, dict[tuple[Endpoint, str], Pool]]] = field(
        default_factory=dict
    )  # by id, for speed

    def pool(self, backend: Backend, endpoint: Endpoint, authority: str) -> Pool:
        """The one for an endpoint of this backend; where TLS asks for the request's host, the one for that host."""
        host = "" if backend.tls is None or backend.tls.sni else host_of(authority)
        known = self._known.get(id(backend))
        if known is None:
            known = self._known[id(backend)] = (backend, {})
        pool = known[1].get((endpoint, host))
        if pool is None:
            pool = known[1][endpoint, host] = self._shared(backend, endpoint, host)
        return pool

    def _shared(self, backend: Backend, endpoint: Endpoint, host: str) -> Pool:
        key = (endpoint, backend.tls, backend.http2, host)
        if key not in self._pools:
            each = H2_LIMITS.streams if backend.http2 else 1
            self._pools[key] = Pool(
                f"{backend.name} at {endpoint}", self._dialler(backend, endpoint, host), self.wheel, self.limits, each
            )
        return self._pools[key]

    def forget(self) -> None:
        """A new table was taken up: pools that nobody asks for any more go when their connections have."""
        self._known.clear()
        self._pools = {key: pool for key, pool in self._pools.items() if pool.open}

    def close(self) -> None:
        """Stopping: nothing new on what is open."""
        for pool in self._pools.values():
            pool.close()

    def _dialler(self, backend: Backend, endpoint: Endpoint, host: str) -> Dial:
        async def dial(pool: Pool) -> Client | Deny:
            sock = await reach(endpoint, 0, self.limits.connect, self.means().reactor)
            return sock if isinstance(sock, Deny) else await self._client(sock, backend, host, pool)

        return dial

    async def _client(self, sock: socket.socket, backend: Backend, host: str, pool: Pool) -> Client | Deny:
        made: H1Client | H2Client
        if backend.http2:
            made = H2Client(replace(H2_LIMITS, ping=self.limits.ping_backends), pool.freed, pool.closed)
        else:
            made = H1Client(self.limits.congested, pool.freed, pool.closed)
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
