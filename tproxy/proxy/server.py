"""Accepting, and owning what was accepted: one task a connection, counted, drained, cut; each ends in one record."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from tproxy.core.address import Endpoint
from tproxy.core.reason import Deny, Reason
from tproxy.core.record import Direction, Record
from tproxy.kernel.sock import abort, original_destination
from tproxy.proxy.trace import STOPPING, Trace

log = logging.getLogger("tproxy")
Choice = Callable[[Iterable[Trace]], Iterable[tuple[Trace, Deny]]]
BURST = 32  # accepted at once before other connections get their turn
PAUSE = 0.1  # seconds without accepting after the process ran out of files or memory
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Owner(Protocol):
    """Whose connections they are."""

    @property
    def most(self) -> int:
        """Connections at once."""

    @property
    def finished(self) -> Callable[[Record], None]:
        """What is done with a record."""


OwnerT = TypeVar("OwnerT", bound=Owner)
Handler = Callable[[socket.socket, Trace, OwnerT], Awaitable[Record]]


class Server(Generic[OwnerT]):
    """One listening socket and the connections that came by it."""

    def __init__(self, listener: socket.socket, direction: Direction, handler: Handler[OwnerT], side: OwnerT) -> None:
        self.listener, self.direction, self.handler, self.side = listener, direction, handler, side
        self.tasks: dict[asyncio.Task[None], Trace] = {}
        self.loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._starving = False

    def start(self) -> None:
        """Begin to accept."""
        self._paused = None
        self.loop.add_reader(self.listener, self._accept)

    def stop(self) -> None:
        """Accept no more: capture rules or the kernel refuse whoever comes now. May be said twice."""
        if self._paused is not None:
            self._paused.cancel()
        if self.listener.fileno() < 0:
            return  # said before
        self.loop.remove_reader(self.listener)
        self.listener.close()

    def cut(self, chosen: Choice | None = None) -> int:
        """End every connection, or those that are chosen, with RST; their number is returned."""
        verdicts = dict(chosen(self.tasks.values())) if chosen else dict.fromkeys(self.tasks.values(), STOPPING)
        for task, trace in self.tasks.items():
            if (verdict := verdicts.get(trace)) is not None:
                trace.verdict = verdict
                task.cancel()
        return len(verdicts)

    def _accept(self) -> None:
        for _ in range(BURST):
            try:
                sock, name = self.listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._rest(error)
                    return
                continue  # accept(2): an error of the connection that was to be accepted
            self._starving = False
            sock.setblocking(False)
            self._begin(sock, name)

    def _rest(self, error: OSError) -> None:
        if not self._starving:
            log.warning(
                "%s: accepting pauses: %s; %d connections are open", self.direction, error.strerror, len(self.tasks)
            )
        self._starving = True
        self.loop.remove_reader(self.listener)
        self._paused = self.loop.call_later(PAUSE, self.start)

    def _begin(self, sock: socket.socket, name: tuple[Any, ...]) -> None:
        try:
            trace = Trace(self.direction, Endpoint.of_socket(name), original_destination(sock))
        except OSError:  # reset before we looked
            sock.close()
            return
        limit = self.side.most
        if len(self.tasks) >= limit:
            abort(sock)
            self.side.finished(trace.refused(Deny(Reason.OVERLOAD, f"{limit} connections are open")))
            return
        task = self.loop.create_task(self._carry(sock, trace))
        self.tasks[task] = trace
        task.add_done_callback(self.tasks.pop)

    async def _carry(self, sock: socket.socket, trace: Trace) -> None:
        try:
            record = await self.handler(sock, trace, self.side)
        except asyncio.CancelledError:
            record = trace.cut()
        except Exception as error:
            log.exception("a defect in the sidecar, connection %s to %s", trace.source, trace.target)
            record = trace.refused(Deny(Reason.INTERNAL, f"{type(error).__name__}: {error}"))
        finally:
            if sock.fileno() >= 0:
                abort(sock)
        self.side.finished(record)


async def drain(servers: Sequence[Server[Any]], seconds: float) -> int:
    """Stop accepting, let what runs finish for ``seconds``, then cut; the number that was cut is returned."""
    for server in servers:
        server.stop()
    running = [task for server in servers for task in server.tasks]
    if running:
        _, late = await asyncio.wait(running, timeout=seconds)
        for server in servers:
            server.cut()
        if late:
            await asyncio.wait(late)
        return len(late)
    return 0
