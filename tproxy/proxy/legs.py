"""The two kinds of legs a relay joins: plain TCP, and TLS over TCP. Whatever is not yet sent is theirs, and bounded.

A leg reads into a buffer that all connections share, so an idle connection owns no buffer at all.
"""

from __future__ import annotations

import socket
from typing import Protocol

from tproxy.identity.openssl import RECORD, Tls
from tproxy.kernel.sock import bound_receive_buffer
from tproxy.kernel.sockmap import STEP, Flow

CHUNK = 256 * 1024  # bytes read at once; also the most that a leg holds back for a peer that does not read
ROOM = CHUNK + 32 * 1024  # plaintext of one chunk and of the record that began in the chunk before
RECEIVE_LIMIT = 4 * 1024 * 1024  # bytes of kernel memory for what a leg has received and we have not read
BOUND_AT = 128 * 1024  # bytes received before that is said: the kernel has not let so few grow beyond it yet


class TruncatedError(ConnectionError):
    """TCP ended without TLS close_notify: what came may be incomplete (RFC 8446, 6.1)."""


class Buffers:
    """One pair for a whole event loop: bytes pass through, none stay."""

    def __init__(self) -> None:
        self.wire = memoryview(bytearray(CHUNK))
        self.plain = memoryview(bytearray(ROOM))


class Meter:
    """Bytes so far, and whether another STEP of them is full."""

    __slots__ = ("_next", "total")

    def __init__(self) -> None:
        self.total, self._next = 0, STEP

    def add(self, count: int) -> bool:
        """True once a STEP."""
        self.total += count
        if self.total < self._next:
            return False
        self._next = self.total + STEP
        return True


def took(sock: socket.socket, count: int, total: int) -> None:
    """So many bytes more were received, and so many in all: a socket of bulk gets its bound."""
    if total >= BOUND_AT > total - count:
        bound_receive_buffer(sock, RECEIVE_LIMIT)


class Leg(Protocol):
    """One side of a relay. ``eof`` is set when the peer has ended its direction cleanly."""

    sock: socket.socket
    eof: bool

    @property
    def held(self) -> int:
        """Bytes held back, that the kernel has not taken."""

    @property
    def buffered(self) -> bool:
        """Whether bytes have been received that ``read`` has not seen: readiness of the socket will not tell."""

    def read(self, buffers: Buffers) -> int:
        """Bytes now in ``buffers.plain``; 0 with ``eof``. BlockingIOError: nothing yet. OSError: broken."""

    def write(self, data: memoryview) -> bool:
        """Take all of ``data``; True if the kernel has it, False if ``flush`` must be called when writable."""

    def flush(self) -> bool:
        """Hand over what was held back; True when nothing is left."""

    def finish(self) -> bool:
        """End our direction after what is held back; True if the kernel has that too."""


class _Sender:
    """The writing half of a leg: what the kernel has not taken yet, and whether the direction ends behind it."""

    __slots__ = ("_ending", "_held", "eof", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.eof = sock, False
        self._held: memoryview | None = None
        self._ending = False

    @property
    def held(self) -> int:
        return 0 if self._held is None else len(self._held)

    def _send(self, data: bytes | memoryview) -> memoryview | None:
        """What the kernel did not take."""
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        return None if sent == len(data) else memoryview(data)[sent:]

    def flush(self) -> bool:
        if self._held is not None:
            self._held = self._send(self._held)
            if self._held is not None:
                return False
        if self._ending:
            self._ending = False
            return self._end()
        return True

    def finish(self) -> bool:
        self._ending = True
        return self.flush()

    def _end(self) -> bool:
        """End our direction, now that nothing is held back."""
        raise NotImplementedError


class PlainLeg(_Sender):
    """Bytes as they are; with a ``flow`` they may come and go by the short cut, which wants to know how many did."""

    __slots__ = ("_received", "_sent", "flow")

    def __init__(self, sock: socket.socket, flow: Flow | None = None) -> None:
        super().__init__(sock)
        self.flow = flow
        self._received, self._sent = Meter(), Meter()

    @property
    def buffered(self) -> bool:
        return False

    def read(self, buffers: Buffers) -> int:
        count = self.sock.recv_into(buffers.plain, CHUNK)
        self.eof = count == 0
        if self.flow is not None and self._received.add(count):
            self.flow.received(self._received.total)
        return count

    def write(self, data: memoryview) -> bool:
        rest = self._send(data) if self._held is None else memoryview(bytes(self._held) + data)
        self._held = None if rest is None else memoryview(bytes(rest))  # the buffer is everybody's
        if self.flow is not None and self._sent.add(len(data)):
            self.flow.sent(self._sent.total)
        return rest is None

    def _end(self) -> bool:
        self.sock.shutdown(socket.SHUT_WR)
        return True


class TlsLeg(_Sender):
    """TLS on memory buffers: OpenSSL never touches the socket, so a stall of one side never blocks the other."""

    __slots__ = ("_answered", "_unread", "tls")

    def __init__(self, sock: socket.socket, tls: Tls) -> None:
        super().__init__(sock)
        self.tls = tls
        self._answered = 0  # bytes of what is held that answer KeyUpdates
        self._unread = True  # the handshake may have brought more than itself

    @property
    def buffered(self) -> bool:
        return self._unread

    def read(self, buffers: Buffers) -> int:
        if not self._unread:
            count = self.sock.recv_into(buffers.wire)
            if not count:
                raise TruncatedError("the peer closed without close_notify")
            self.tls.feed(buffers.wire[:count])
        self._unread = False
        total = self._decrypt(buffers.plain)
        if answer := self.tls.take():  # to a KeyUpdate
            self._answered = 0 if self._send_records(answer) else self._answered + len(answer)
            if self._answered > 2 * ROOM:
                raise ConnectionAbortedError("the peer asks for new keys and reads nothing")
        if not total and not self.eof:
            raise BlockingIOError
        return total

    def _decrypt(self, plain: memoryview) -> int:
        """Every whole record that has arrived; one chunk of ciphertext always fits."""
        total, read = 0, self.tls.read_into
        while ROOM - total >= RECORD:
            count = read(plain[total:])
            if count is None:
                return total
            if not count:
                self.eof = True
                return total
            total += count
        return total

    def write(self, data: memoryview) -> bool:
        done, write = 0, self.tls.write
        while done < len(data):
            done += write(data[done:])
        sent = True
        while records := self.tls.take():
            sent = self._send_records(records)
        return sent

    def _send_records(self, data: bytes) -> bool:
        self._held = self._send(data) if self._held is None else memoryview(bytes(self._held) + data)
        return self._held is None

    def _end(self) -> bool:
        """close_notify ends our direction only; the peer may go on."""
        self.tls.close_notify()
        return self._send_records(self.tls.take())
