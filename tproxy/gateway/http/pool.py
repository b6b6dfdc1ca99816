"""Connections to backends, kept for the next request: one ``Pool`` for an endpoint, the TLS towards it, and a protocol.

A request takes a connection that is free, or waits for one; whoever waits is called back, so nothing here is awaited
but dialling. The connection that was freed last is used first: those at the bottom grow old and are closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from tproxy.core.reason import Deny, Reason
from tproxy.gateway.http.limits import Limits
from tproxy.gateway.http.stream import Broken, Client, Reset
from tproxy.gateway.http.wheel import Timer, Wheel

log = logging.getLogger("tproxy")


class Waiter(Protocol):
    """Who wants a connection."""

    def connected(self, client: Client) -> None:
        """It has room for one exchange now."""

    def failed(self, reset: Reset) -> None:
        """There is none to be had."""


Dial = Callable[["Pool"], Awaitable[Client | Deny]]
_BROKEN: Final = {Reason.CONNECT_TIMEOUT: Broken.TIMEOUT}


class Pool:
    """Everything that is open towards one endpoint in one manner."""

    def __init__(self, name: str, dial: Dial, wheel: Wheel, limits: Limits, each: int = 1) -> None:
        self.name, self.dial, self.wheel, self.limits = name, dial, wheel, limits
        self._each = each  # exchanges that one connection is expected to carry at once
        self.open = 0  # connections, those being dialled included
        self._dialling: set[asyncio.Task[None]] = set()
        self._free: dict[Client, float] = {}  # with room, and since when; the last is the freshest
        self._all: set[Client] = set()
        self._stillborn: set[Client] = set()  # gone before dialling had returned them
        self._waiting: deque[Waiter] = deque()
        self._timer = Timer(self._age)

    @property
    def busy(self) -> int:
        """Connections without room, and who waits for one."""
        return len(self._all) - len(self._free) + len(self._waiting)

    def take(self, waiter: Waiter, fresh: bool = False) -> Client | None:
        """A connection with room; None: the waiter will be told. ``fresh`` wants one that nobody has used."""
        free = self._free
        while free and not fresh:
            client = next(reversed(free))
            room = client.room
            if room > 1:
                return client
            del free[client]
            if room:
                return client
        if full := self._full():
            waiter.failed(Reset(Broken.OVERLOAD, full))
            return None
        self._waiting.append(waiter)
        if self._may_open() and self._each * len(self._dialling) < len(self._waiting):
            self._start()
        return None

    def _full(self) -> str:
        """Why nobody else may wait, or nothing."""
        most = self.limits.waiting
        return f"{most} requests wait for {self.name}" if len(self._waiting) >= most else ""

    def _may_open(self) -> bool:
        return self.open < self.limits.connections

    def leave(self, waiter: Waiter) -> None:
        """It does not want one any more."""
        try:
            self._waiting.remove(waiter)
        except ValueError:
            return

    def freed(self, client: Client) -> None:
        """It has room again."""
        while self._waiting and client.room:
            self._waiting.popleft().connected(client)
        if not client.room:
            return
        self._free.pop(client, None)
        if len(self._free) >= self.limits.idle_connections:
            client.close()
            return
        self._free[client] = self.wheel.now
        if self._timer.when > self.wheel.now + self.limits.upstream_idle:
            self.wheel.arm(self._timer, self.limits.upstream_idle)

    def closed(self, client: Client) -> None:
        """It is gone, or takes no more."""
        if client not in self._all:
            if self._dialling:
                self._stillborn.add(client)
            return
        self._all.discard(client)
        self._free.pop(client, None)
        self.open -= 1
        self._more()

    def _more(self) -> None:
        """Another connection, where more wait than will be served by those under way."""
        if self._each * len(self._dialling) < len(self._waiting) and self._may_open():
            self._start()

    def close(self) -> None:
        """No new exchanges on what is open."""
        for client in tuple(self._all):
            client.close()
        for task in self._dialling:
            task.cancel()
        self.wheel.stop(self._timer)

    def _start(self) -> None:
        self.open += 1
        task = asyncio.get_running_loop().create_task(self._dial())
        self._dialling.add(task)

    async def _dial(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            found = await self.dial(self)
        except asyncio.CancelledError:
            found = Deny(Reason.CONNECT_FAILED, "stopping")
        except Exception as error:
            log.exception("a defect of the gateway, dialling %s", self.name)
            found = Deny(Reason.INTERNAL, f"{type(error).__name__}: {error}")
        self._dialling.discard(task)
        stillborn = found in self._stillborn
        if not self._dialling:  # also those whose dialling ended with a refusal
            self._stillborn.clear()
        if stillborn:
            found = Deny(Reason.CONNECT_FAILED, f"{self.name} closed at once")
        if isinstance(found, Deny):
            self.open -= 1
            if self._waiting:
                kind = _BROKEN.get(found.reason, Broken.CONNECT)
                self._waiting.popleft().failed(Reset(kind, found.why))
            self._more()
            return
        self._all.add(found)
        self.freed(found)

    def _age(self) -> None:
        """Close what nobody has used for long; the oldest stand at the bottom."""
        before = self.wheel.now - self.limits.upstream_idle
        for client in [client for client, since in self._free.items() if since <= before]:
            del self._free[client]
            client.close()
        if self._free:
            self.wheel.arm(self._timer, max(min(self._free.values()) - before, 0.1))
