"""What all relays of one event loop share: two buffers, and an epoll of our own, nested in the loop's (epoll(7)).

Our own, because libuv calls back once on EPOLLERR and then stops watching: a reset that comes right behind data is
seen while the data is read, and never again. It is also cheaper: one callback of the loop serves every ready socket.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable

from tproxy.proxy.legs import Buffers, Leg, TlsLeg
from tproxy.proxy.pump import Pair
from tproxy.proxy.transport import Line
from tproxy.proxy.wait import readable, send_all, writable

Callback = Callable[[], None]
FLIGHT = 64 * 1024  # bytes read at once during a handshake
BATCH = 256  # sockets served before the rest of the loop gets its turn
_READ = select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP
_WRITE = select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP


class Reactor:
    """One a loop. Callbacks run until they are taken back; a socket must be forgotten before it is closed."""

    def __init__(self) -> None:
        self.buffers = Buffers()
        self.lines = set[Line]()  # whose sockets are open
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._masks: dict[int, int] = {}
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._serve)

    def close(self) -> None:
        """Watch nothing any more; what lingers goes."""
        for line in list(self.lines):
            line.release()
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()

    def join(self, down: Leg, up: Leg) -> Pair:
        """The two directions between two legs, not started yet."""
        return Pair(down, up, self)

    def attach(self, leg: Leg, protocol: asyncio.Protocol, told: object = None) -> Line:
        """The leg is the protocol's from now on, through a transport."""
        line = Line(self, leg, protocol, told)
        self.lines.add(line)
        line.start()
        return line

    async def readable(self, sock: socket.socket) -> None:
        """Until there is something to read, an end, or an error."""
        await readable(sock)

    async def writable(self, sock: socket.socket) -> None:
        """Until there is room to write, or an error."""
        await writable(sock)

    async def shake(self, leg: TlsLeg, limit: int) -> None:
        """A handshake of at most ``limit`` bytes from the peer. TlsError, or OSError when the peer breaks it off."""
        tls = leg.tls
        while True:
            done = tls.shake()
            if flight := tls.take():
                await send_all(leg.sock, flight)
            if done:
                return
            data = await self._receive(leg.sock)
            limit -= len(data)
            if not data or limit < 0:
                raise ConnectionResetError("closed" if not data else "too long a handshake")
            tls.feed(data)

    async def _receive(self, sock: socket.socket) -> bytes:
        while True:
            try:
                return sock.recv(FLIGHT)
            except BlockingIOError:
                await readable(sock)

    def reader(self, sock: socket.socket, callback: Callback | None) -> None:
        """Call back when there is something to read, an end or an error; None stops that."""
        self._set(self._readers, sock.fileno(), callback)

    def writer(self, sock: socket.socket, callback: Callback | None) -> None:
        """Call back when there is room to write, or an error; None stops that."""
        self._set(self._writers, sock.fileno(), callback)

    def forget(self, sock: socket.socket) -> None:
        """Both."""
        self.reader(sock, None)
        self.writer(sock, None)

    def _set(self, table: dict[int, Callback], fd: int, callback: Callback | None) -> None:
        if callback is not None:
            table[fd] = callback
        elif table.pop(fd, None) is None:
            return
        wanted = (select.EPOLLIN if fd in self._readers else 0) | (select.EPOLLOUT if fd in self._writers else 0)
        before = self._masks.get(fd, 0)
        if wanted == before:
            return
        if not wanted:  # an error is always reported, so a socket that nobody waits for may not stay
            del self._masks[fd]
            self._epoll.unregister(fd)
            return
        self._masks[fd] = wanted
        if before:
            self._epoll.modify(fd, wanted)
        else:
            self._epoll.register(fd, wanted)

    def _serve(self) -> None:
        for fd, events in self._epoll.poll(0, BATCH):
            if events & _READ and (read := self._readers.get(fd)) is not None:
                read()
            if events & _WRITE and (write := self._writers.get(fd)) is not None:
                write()
