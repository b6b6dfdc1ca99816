"""The sidecar as a whole: both servers, reload, drain. Who reads files, logs and serves pages is passed in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from tproxy.core.config import Ports
from tproxy.core.fields import ConfigError
from tproxy.core.record import Direction, Record
from tproxy.kernel.sock import listener
from tproxy.kernel.sockmap import Shortcut
from tproxy.proxy.egress import egress
from tproxy.proxy.ingress import ingress
from tproxy.proxy.server import Server, drain
from tproxy.proxy.side import Side, State

log = logging.getLogger("tproxy")


@dataclass(frozen=True, slots=True)
class Source:
    """Where states come from: ``load`` raises ConfigError on what is unusable; ``changed`` says when to ask again."""

    load: Callable[[], State]
    changed: Callable[[], bool]
    loaded: Callable[[State], None]
    refused: Callable[[], None]


class Sidecar:
    """Owns the two servers and the state of the moment."""

    def __init__(
        self, state: State, source: Source, finished: Callable[[Record], None], shortcut: Shortcut | None = None
    ) -> None:
        self.source, self.side = source, Side(state, finished, shortcut)
        self.draining = False
        self.servers: list[Server] = []

    def start(self) -> None:
        """Listen. KernelError says what is missing."""
        ports: Ports = self.side.state.config.ports
        mark = self.side.state.config.marks.own
        self.servers.append(Server(listener(ports.egress, mark), Direction.EGRESS, egress, self.side))
        self.servers.append(Server(listener(ports.ingress, mark), Direction.INGRESS, ingress, self.side))
        for server in self.servers:
            server.start()

    def open_connections(self) -> int:
        """Connections being carried now."""
        return sum(len(server.tasks) for server in self.servers)

    def not_ready(self) -> str:
        """Why the sidecar is not ready, or nothing."""
        if self.draining:
            return "draining"
        return "" if self.servers else "not listening yet"

    def reload(self) -> None:
        """Swap the state for a new one; a broken one is refused and the last good one keeps serving."""
        old = self.side.state
        try:
            new = self.source.load()
        except ConfigError as error:
            log.error("reload refused, the last good configuration keeps serving: %s", error)
            self.source.refused()
            return
        if new.config.ports != old.config.ports or new.config.capture != old.config.capture:
            log.warning("ports and capture take effect only after tproxy init and a restart of the sidecar")
        if replace(new.config.fast, resumption=old.config.fast.resumption) != old.config.fast:
            log.warning("fast.relay, sockmap and splicer take effect only after a restart of the sidecar")
        self.side.state = new
        self.source.loaded(new)
        log.info("reloaded: %s, serial %x", new.own, new.serial)

    async def watch(self, seconds: float = 1.0) -> None:
        """Reload when a file has changed, for ever."""
        while True:
            await asyncio.sleep(seconds)
            if self.source.changed():
                self.reload()

    async def stop(self) -> int:
        """Drain; the number of connections that had to be cut."""
        self.draining = True
        return await drain(self.servers, self.side.state.config.limits.drain)
