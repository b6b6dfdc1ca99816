"""Connections to backends, as they come and go."""

from __future__ import annotations

import asyncio
import socket

from tests.http2 import Site, serving
from tproxy.core.address import Endpoint
from tproxy.core.http.head import Head, Headers, Reply
from tproxy.core.reason import Deny, Reason
from tproxy.core.routes import Backend, BackendTls
from tproxy.core.settings import Relay
from tproxy.gateway.contexts import Contexts
from tproxy.gateway.guards import Guards
from tproxy.gateway.http.backends import POOLS, Backends
from tproxy.gateway.http.h1_client import H1Client
from tproxy.gateway.http.h2_client import H2Client
from tproxy.gateway.http.h2_limits import Limits as H2Limits
from tproxy.gateway.http.limits import Limits
from tproxy.gateway.http.pool import Pool
from tproxy.gateway.http.stream import Broken, Client, Reset, Stream
from tproxy.gateway.http.wheel import Wheel
from tproxy.gateway.tls import Means
from tproxy.proxy.compiled import reactor


class Waiting:
    """Somebody who wants a connection."""

    def __init__(self) -> None:
        self.told: asyncio.Future[Reset] = asyncio.get_running_loop().create_future()

    def connected(self, client: Client) -> None:
        raise AssertionError(client)

    def failed(self, reset: Reset) -> None:
        self.told.set_result(reset)


def test_a_connection_that_breaks_while_it_begins_leaves_nothing_behind() -> None:
    """A backend that ends every handshake: the codec hears the end, and dialling is refused."""

    async def dial(pool: Pool) -> Client | Deny:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        made = H1Client(Limits().congested, pool.freed, pool.closed)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: made, ours)
        theirs.close()
        await asyncio.sleep(0.05)
        return Deny(Reason.CONNECT_FAILED, "the handshake failed")

    async def main() -> None:
        pool = Pool("backend", dial, Wheel(asyncio.get_running_loop()), Limits())
        for _ in range(3):
            waiter = Waiting()
            assert pool.take(waiter) is None
            assert (await waiter.told).kind is Broken.CONNECT
        assert pool.open == 0
        assert not pool._stillborn

    asyncio.run(asyncio.wait_for(main(), 10))


class Asking:
    """Somebody who has a request under way, and the sink of its answer."""

    def __init__(self) -> None:
        self.stream: Stream
        self.begun, self.ended = asyncio.Event(), asyncio.Event()
        self.got, self.broken = bytearray(), list[Reset]()

    def connected(self, client: Client) -> None:
        self.stream = client.open(self)
        self.stream.head(Head("POST", "http", "a.test", "/"), False)
        self.begun.set()

    def failed(self, reset: Reset) -> None:
        self.broken.append(reset)

    reset = failed

    def head(self, reply: Reply, end: bool) -> None:
        assert reply.status == 200

    def data(self, data: bytes) -> None:
        self.got += data

    def end(self, trailers: Headers) -> None:
        self.ended.set()

    def congested(self, on: bool) -> None:
        """Never."""


def test_a_connection_of_http2_that_has_grown_old_ends_what_it_has_begun() -> None:
    """It takes nothing new, and is gone afterwards."""

    async def dial(pool: Pool) -> Client:
        made = H2Client(H2Limits(), pool.freed, pool.closed)
        await asyncio.get_running_loop().create_connection(lambda: made, "127.0.0.1", port)
        return made

    async def main() -> None:
        pool = Pool("backend", dial, Wheel(asyncio.get_running_loop()), Limits(upstream_idle=0.1), 100)
        one, other = Asking(), Asking()
        assert pool.take(one) is None
        await one.begun.wait()
        await asyncio.sleep(0.5)
        if (client := pool.take(other)) is not None:
            other.connected(client)
        await other.begun.wait()
        for asking in (one, other):
            asking.stream.data(b"xyz")
            asking.stream.end()
            await asking.ended.wait()
            assert (asking.got, asking.broken) == (b"POST / 3\n", [])
        pool.close()
        await asyncio.sleep(0.1)
        assert pool.open == 0

    with serving(Site().accept) as port:
        asyncio.run(asyncio.wait_for(main(), 10))


def test_hosts_that_clients_make_up_leave_no_pools_behind() -> None:
    """Where TLS asks for the request's host each host has its pool, and a wildcard route lets clients choose it."""

    async def story() -> None:
        wheel = Wheel(asyncio.get_running_loop())
        backends = Backends(lambda: Means(Contexts(), None, reactor(Relay.AUTO), 1.0), wheel, Limits(), Guards())
        backend = Backend("web", (Endpoint.parse("127.0.0.1:1"),), tls=BackendTls("SIMPLE"))
        kept = backends.pool(backend, backend.endpoints[0], "kept.test")
        kept.open = 1  # a connection is open
        for number in range(3 * POOLS):
            backends.pool(backend, backend.endpoints[0], f"host{number}.test")
        assert len(backends._pools) <= POOLS
        assert len(backends._known[id(backend)][1]) <= POOLS
        assert backends.pool(backend, backend.endpoints[0], "kept.test") is kept

    asyncio.run(story())
