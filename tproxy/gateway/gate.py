"""The gateway as a whole: the table of the moment, a listening socket for each of its ports, reload, drain."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from tproxy.core.access_log import EVERY
from tproxy.core.address import Address
from tproxy.core.policy.policy import Policy
from tproxy.core.reason import Deny, Reason
from tproxy.core.record import Direction, Record
from tproxy.core.routes import Bind, Listener, Table, UdpListener
from tproxy.core.settings import Relay
from tproxy.gateway.admission import fallen
from tproxy.gateway.contexts import Contexts
from tproxy.gateway.datagrams import Datagrams
from tproxy.gateway.http.limits import Limits
from tproxy.gateway.http.web import Web, web
from tproxy.gateway.mesh import Mesh
from tproxy.gateway.secrets import Material
from tproxy.gateway.settings import Settings
from tproxy.gateway.tls import Means
from tproxy.kernel.claim import Claim, claim
from tproxy.kernel.datagram import datagram_socket
from tproxy.kernel.errors import KernelError
from tproxy.kernel.sock import front_listener
from tproxy.proxy.compiled import AnyReactor, reactor
from tproxy.proxy.live import overdue
from tproxy.proxy.server import Handler, Server, drain
from tproxy.proxy.side import State

log = logging.getLogger("tproxy")


@dataclass(slots=True)
class Door:
    """One port, as its connections see it."""

    gate: Gate
    bind: Bind

    @property
    def most(self) -> int:
        """Connections at once."""
        return self.gate.settings.connections

    @property
    def finished(self) -> Callable[[Record], None]:
        """What is done with a record."""
        return self.gate.finished

    @property
    def listener(self) -> Listener | None:
        """What the port serves now; None when it has just been taken away."""
        return self.gate.table.listeners.get(self.bind)

    @property
    def policy(self) -> Policy | None:
        """Who may use the port; None: everybody."""
        return self.gate.policy(self.bind)


@dataclass(slots=True)
class Gate:
    """Owns the table and the servers. Made inside the event loop."""

    handler: Handler[Door]
    finished: Callable[[Record], None]
    settings: Settings
    table: Table = field(default_factory=Table)
    contexts: Contexts = field(default_factory=Contexts)
    reactor: AnyReactor = field(default_factory=lambda: reactor(Relay.AUTO))
    draining: bool = False
    mesh: Mesh | None = None  # our own identity, once it is there
    web: Web = field(init=False)
    _servers: dict[Bind, Server[Door]] = field(default_factory=dict)
    _closed: list[Server[Door]] = field(default_factory=list)  # whose connections still run
    _half_open: Counter[Address] = field(default_factory=Counter)
    _datagrams: dict[Bind, Datagrams] = field(default_factory=dict)
    _claims: dict[Bind, Claim] = field(default_factory=dict)  # of ports that workers share

    def __post_init__(self) -> None:
        own = self.settings
        limits = Limits(
            connect=own.connect,
            stall=own.stall,
            rate=own.body_rate,
            ping_clients=own.ping_clients,
            ping_backends=own.ping_backends,
        )
        self.web = web(limits, lambda: self.means)

    @property
    def means(self) -> Means:
        """With what backends are called by TLS, at this moment."""
        mesh = self.mesh.contexts if self.mesh is not None else None
        return Means(self.contexts, mesh, self.reactor, self.settings.connect)

    def take(self, table: Table, material: Mapping[str, Material]) -> None:
        """Serve this table with these credentials from now on.

        KernelError when a port cannot be had: then what was served before goes on, whole.
        """
        fresh: dict[Bind, Server[Door]] = {}
        datagrams: dict[Bind, Datagrams] = {}
        try:
            for bind in table.listeners.keys() - self._servers.keys():
                sock = self._listen(bind)
                fresh[bind] = Server(sock, Direction.GATEWAY, self.handler, Door(self, bind))
            for bind in self._of_udp(table):
                sock = datagram_socket(bind[0] or self.settings.host, bind[1])
                listener, policy = partial(self._datagram_listener, bind), partial(self.policy, bind)
                datagrams[bind] = Datagrams(sock, listener, self.finished, policy=policy)
        except KernelError:
            for server in fresh.values():
                server.listener.close()
            for each in datagrams.values():
                each.stop()
            raise
        self.table, self.contexts = table, self.contexts.following(material)
        self.web.backends.forget()
        if guards := self.web.engine.guards:
            from tproxy.gateway.envoy.dump import backends  # most gateways have no guards

            guards.follow(backend for _, backend in backends(table))
        self._log_requests()
        for bind in self._servers.keys() - table.listeners.keys():
            server = self._servers.pop(bind)
            server.stop()
            self._closed.append(server)
        self._closed = [server for server in self._closed if server.tasks]
        for server in fresh.values():
            server.start()
        self._servers |= fresh
        self._unclaim()
        for bind in self._datagrams.keys() - table.datagrams.keys():
            self._datagrams.pop(bind).stop()
        for each in datagrams.values():
            each.start()
        self._datagrams |= datagrams
        self._recheck()

    def _recheck(self) -> None:
        """What is carried and would not be let in now is cut: connections of bytes, and requests one by one."""
        carrying: list[tuple[Bind, Server[Door] | Datagrams]] = [*self._servers.items(), *self._datagrams.items()]
        for bind, each in carrying:
            if (policy := self.policy(bind)) is not None:
                each.cut(partial(fallen, policy))
        self.web.engine.recheck()

    def join(self, state: State) -> None:
        """Another generation of our identity: who would not be let in by it is cut."""
        mesh = self.mesh = Mesh(state)
        for server in (*self._servers.values(), *self._closed):
            server.cut(mesh.fallen)

    def expire(self, clock: float) -> None:
        """Cut those of the mesh whose certificates have ended."""
        for server in (*self._servers.values(), *self._closed):
            server.cut(lambda traces: overdue(traces, clock))

    def policy(self, bind: Bind) -> Policy | None:
        """Who may use a port; None: everybody."""
        return self.table.policies.get(bind)

    def _datagram_listener(self, bind: Bind) -> UdpListener | None:
        return self.table.datagrams.get(bind)

    def missing(self, table: Table) -> dict[Bind, KernelError]:
        """Ports of a table that cannot be had, and why."""
        found: dict[Bind, KernelError] = {}
        for bind in table.listeners.keys() - self._servers.keys():
            try:
                self._listen(bind, probe=True).close()
            except KernelError as error:
                found[bind] = error
        for bind in self._of_udp(table):
            try:
                datagram_socket(bind[0] or self.settings.host, bind[1]).close()
            except KernelError as error:
                found[bind] = error
        return found

    def _listen(self, bind: Bind, probe: bool = False) -> socket.socket:
        host, port, shared = bind[0] or self.settings.host, bind[1], self.settings.workers > 1
        if shared and bind not in self._claims:
            self._claims[bind] = claim(host, port, self.settings.family)
        return front_listener(host, port, shared=shared, probe=probe)

    def _unclaim(self) -> None:
        for bind in self._claims.keys() - self._servers.keys():
            self._claims.pop(bind).close()

    def _of_udp(self, table: Table) -> set[Bind]:
        """Ports without a socket yet. Of several workers the first has them: datagrams of a client belong together."""
        return set() if self.settings.worker else table.datagrams.keys() - self._datagrams.keys()

    def _log_requests(self) -> None:
        """As the operator says; where that is nothing, as the objects do, and only what they want."""
        said, flag, journal = self.table.access_log, self.settings.access_log, self.web.journal
        asked = said is not None and said.on
        journal.form = flag.replace("off", "") if flag else "text" if asked else ""
        journal.wanted = said if said is not None and asked else EVERY

    @contextmanager
    def half_open(self, source: Address) -> Iterator[Deny | None]:
        """Count a connection that has not said what it wants; a refusal when its address has too many of them."""
        if self._half_open[source] >= self.settings.half_open:
            yield Deny(Reason.SOURCE_LIMIT, f"{self._half_open[source]} connections from {source} have said no hello")
            return
        self._half_open[source] += 1
        try:
            yield None
        finally:
            self._half_open[source] -= 1
            if not self._half_open[source]:
                del self._half_open[source]

    def open_connections(self) -> int:
        """Connections being carried now."""
        return sum(len(server.tasks) for server in (*self._servers.values(), *self._closed))

    async def stop(self) -> int:
        """Drain; the number of connections that had to be cut."""
        self.draining = True
        self.web.drain()
        cut = await drain([*self._servers.values(), *self._closed], self.settings.drain)
        for each in self._datagrams.values():
            each.stop()
        self.web.backends.close()  # what is kept for the next request ends cleanly, not by a reset when we are gone
        await asyncio.sleep(0)
        return cut
