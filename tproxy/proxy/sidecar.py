"""The sidecar as a whole: both servers, reload, drain. Who reads files, logs and serves pages is passed in."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from tproxy.core.address import Address
from tproxy.core.config import Config
from tproxy.core.directory import Found
from tproxy.core.plaintext import Talk
from tproxy.core.record import Direction, Record
from tproxy.core.settings import Mixed
from tproxy.kernel.sock import listener
from tproxy.kernel.sockmap import Shortcut
from tproxy.proxy.egress import egress
from tproxy.proxy.ingress import ingress
from tproxy.proxy.live import fallen, misplaced, overdue
from tproxy.proxy.routers import Routers
from tproxy.proxy.server import Server, drain
from tproxy.proxy.side import Side, State, no_directory, unheard

log = logging.getLogger("tproxy")


class Sidecar:
    """Owns the two servers and the state of the moment."""

    def __init__(
        self,
        finished: Callable[[Record], None],
        shortcut: Shortcut | None = None,
        directory: Callable[[Address], Found] = no_directory,
        bare: Callable[[Talk], None] = unheard,
    ) -> None:
        self._finished, self._shortcut, self._directory, self._bare = finished, shortcut, directory, bare
        self._side: Side | None = None
        self._draining = False
        self.routers = Routers()
        self._servers: list[Server[Side]] = []

    @property
    def state(self) -> State | None:
        """The present generation; None before the first."""
        return None if self._side is None else self._side.state

    def start(self, state: State) -> None:
        """Listen. KernelError says what is missing."""
        side = self._side = Side(state, self._finished, self.routers, self._shortcut, self._directory, self._bare)
        ports, mark = state.config.ports, state.config.marks.own
        self._servers.append(Server(listener(ports.egress, mark), Direction.EGRESS, egress, side))
        self._servers.append(Server(listener(ports.ingress, mark), Direction.INGRESS, ingress, side))
        for server in self._servers:
            server.start()

    def open_connections(self) -> int:
        """Connections being carried now."""
        return sum(len(server.tasks) for server in self._servers)

    def open_plaintext(self) -> Counter[Talk]:
        """Connections without TLS that are being carried now, by who talks to whom."""
        traces = [trace for server in self._servers for trace in server.tasks.values()]
        return Counter(one.talk for one in traces if one.carrying and one.bare)

    def not_ready(self) -> str:
        """Why the sidecar is not ready, or nothing."""
        if self._draining:
            return "draining"
        return "" if self._servers else "waiting for credentials"

    def take(self, new: State) -> None:
        """Swap the state for a new one; what it no longer admits is cut."""
        assert self._side is not None  # started
        old, self._side.state = self._side.state, new
        if new.config.ports != old.config.ports or new.config.capture != old.config.capture:
            log.warning("ports and capture take effect only after tproxy init and a restart of the sidecar")
        if replace(new.config.fast, resumption=old.config.fast.resumption) != old.config.fast:
            log.warning("fast.relay, sockmap and splicer take effect only after a restart of the sidecar")
        if (_dialled(new.config), new.config.follows) != (_dialled(old.config), old.config.follows):
            log.warning("directory and policies.control take effect only after a restart of the sidecar")
        what = "renewed" if new.config is old.config else "reloaded"
        log.info("%s: %s, serial %x", what, new.own, new.serial)
        cut = sum(server.cut(lambda traces: fallen(traces, old, new)) for server in self._servers)
        if cut:
            log.warning("%d running connections were cut: they would not be admitted now", cut)

    def moved(self, addresses: frozenset[Address]) -> None:
        """The directory says something else of these."""
        side = self._side
        if side is None or not self._servers:
            return
        egress = self._servers[0]
        cut = egress.cut(lambda traces: misplaced([one for one in traces if one.target.ip in addresses], side))
        if cut:
            log.warning("%d running connections were cut: the directory expects somebody else there now", cut)

    def routers_up(self) -> dict[tuple[str, int], bool]:
        """Every host and port that a rule of egress could lead to, and whether it answers."""
        hops = self.state.config.egress_routes.hops if self.state else ()
        return {hop: hop not in self.routers.down for hop in hops}

    async def watch_routers(self) -> None:
        """Know who of them is up, for ever."""
        side = self._side
        assert side is not None  # started
        await self.routers.watch(lambda: side.state.config, side.reactor)

    async def sweep(self, seconds: float = 1.0) -> None:
        """Cut what has outlived its certificates, for ever."""
        while True:
            await asyncio.sleep(seconds)
            clock = time.monotonic()
            for server in self._servers:
                server.cut(lambda traces: overdue(traces, clock))  # noqa: B023  # used before the loop goes on

    async def stop(self) -> int:
        """Drain; the number of connections that had to be cut."""
        self._draining = True
        return await drain(self._servers, self.state.config.limits.drain) if self.state else 0


def _dialled(config: Config) -> object:
    """What of ``directory`` is read only once."""
    return config.directory and replace(config.directory, mixed=Mixed.MTLS)
