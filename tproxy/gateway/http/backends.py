"""Pools by backend: which connections there are towards whom, and how a new one is made."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from tproxy.core.address import Endpoint
from tproxy.core.reason import Deny, Reason
from tproxy.core.routes import Backend, BackendTls
from tproxy.gateway.http.h1_client import H1Client
from tproxy.gateway.http.h2_client import H2Client
from tproxy.gateway.http.h2_limits import Limits as H2Limits
from tproxy.gateway.http.limits import Limits
from tproxy.gateway.http.pool import Dial, Pool
from tproxy.gateway.http.stream import Client
from tproxy.gateway.http.wheel import Wheel
from tproxy.kernel.sock import reset_on_close
from tproxy.proxy.compiled import AnyReactor
from tproxy.proxy.side import reach

Key = tuple[Endpoint, BackendTls | None, bool]
H2_LIMITS = H2Limits()


@dataclass(slots=True)
class Backends:
    """All pools of a gateway. Two backends that mean the same endpoint in the same manner share one."""

    reactor: Callable[[], AnyReactor]
    wheel: Wheel
    limits: Limits
    _pools: dict[Key, Pool] = field(default_factory=dict)
    _known: dict[int, tuple[Backend, dict[Endpoint, Pool]]] = field(default_factory=dict)  # by id, for speed

    def pool(self, backend: Backend, endpoint: Endpoint) -> Pool:
        """The one for an endpoint of this backend."""
        known = self._known.get(id(backend))
        if known is None:
            known = self._known[id(backend)] = (backend, {})
        pool = known[1].get(endpoint)
        if pool is None:
            pool = known[1][endpoint] = self._shared(backend, endpoint)
        return pool

    def _shared(self, backend: Backend, endpoint: Endpoint) -> Pool:
        key = (endpoint, backend.tls, backend.http2)
        if key not in self._pools:
            each = H2_LIMITS.streams if backend.http2 else 1
            self._pools[key] = Pool(
                f"{backend.name} at {endpoint}", self._dialler(backend, endpoint), self.wheel, self.limits, each
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

    def _dialler(self, backend: Backend, endpoint: Endpoint) -> Dial:
        async def dial(pool: Pool) -> Client | Deny:
            sock = await reach(endpoint, 0, self.limits.connect, self.reactor())
            return sock if isinstance(sock, Deny) else await self._client(sock, backend, pool)

        return dial

    async def _client(self, sock: socket.socket, backend: Backend, pool: Pool) -> Client | Deny:
        if backend.tls is not None:
            sock.close()
            return Deny(Reason.NOT_CARRIED, f"{backend.name} wants TLS {backend.tls.mode} from us")
        reset_on_close(sock, False)
        loop = asyncio.get_running_loop()
        made: H1Client | H2Client
        if backend.http2:
            made = H2Client(H2_LIMITS, pool.freed, pool.closed)
        else:
            made = H1Client(self.limits.congested, pool.freed, pool.closed)
        await loop.create_connection(lambda: made, sock=sock)
        return made
