"""The two kinds of legs a relay joins: plain TCP, and TLS over TCP. Whatever is not yet sent is theirs, and bounded.

A leg reads into a buffer that all connections share, so an idle connection owns no buffer at all.
"""

from __future__ import annotations

import socket
import ssl
from typing import Protocol

CHUNK = 256 * 1024  # bytes read at once; also the most that a leg holds back for a peer that does not read
ROOM = CHUNK + 32 * 1024  # plaintext of one chunk and of the record that began in the chunk before


class TruncatedError(ConnectionError):
    """TCP ended without TLS close_notify: what came may be incomplete (RFC 8446, 6.1)."""


class Buffers:
    """One pair for a whole event loop: bytes pass through, none stay."""

    def __init__(self) -> None:
        self.wire = memoryview(bytearray(CHUNK))
        self.plain = memoryview(bytearray(ROOM))


class Leg(Protocol):
    """One side of a relay. ``eof`` is set when the peer has ended its direction cleanly."""

    sock: socket.socket
    eof: bool

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


class PlainLeg:
    """Bytes as they are."""

    __slots__ = ("_ending", "_held", "eof", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.eof = sock, False
        self._held: memoryview | None = None
        self._ending = False

    @property
    def buffered(self) -> bool:
        return False

    def read(self, buffers: Buffers) -> int:
        count = self.sock.recv_into(buffers.plain, CHUNK)
        self.eof = count == 0
        return count

    def write(self, data: memoryview) -> bool:
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return True
        self._held = memoryview(bytes(data[sent:]))
        return False

    def flush(self) -> bool:
        if self._held is not None:
            try:
                self._held = self._held[self.sock.send(self._held) :]
            except BlockingIOError:
                return False
            if self._held:
                return False
            self._held = None
        if self._ending:
            self._ending = False
            self.sock.shutdown(socket.SHUT_WR)
        return True

    def finish(self) -> bool:
        self._ending = True
        return self.flush()


class TlsLeg:
    """TLS on memory buffers: OpenSSL never touches the socket, so a stall of one side never blocks the other."""

    __slots__ = ("_ending", "_held", "eof", "incoming", "outgoing", "sock", "tls")

    def __init__(
        self, sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
    ) -> None:
        self.sock, self.tls, self.incoming, self.outgoing = sock, tls, incoming, outgoing
        self.eof = self._ending = False
        self._held: memoryview | None = None

    @property
    def buffered(self) -> bool:
        return self.incoming.pending > 0

    def read(self, buffers: Buffers) -> int:
        if not self.incoming.pending:
            count = self.sock.recv_into(buffers.wire)
            if not count:
                raise TruncatedError("the peer closed without close_notify")
            self.incoming.write(buffers.wire[:count])
        total = self._decrypt(buffers.plain)
        if self.outgoing.pending:  # the answer to a KeyUpdate
            self._send()
        if not total and not self.eof:
            raise BlockingIOError
        return total

    def _decrypt(self, plain: memoryview) -> int:
        """Every whole record that has arrived; one chunk of ciphertext always fits."""
        total = 0
        try:
            while True:
                count: int = self.tls.read(ROOM - total, plain[total:])  # type: ignore[assignment]
                if not count:
                    self.eof = True
                    break
                total += count
                if not self.incoming.pending or total == ROOM:
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.eof = True
        return total

    def write(self, data: memoryview) -> bool:
        done, write = 0, self.tls.write
        while done < len(data):
            done += write(data[done:])
        return self._send()

    def _send(self) -> bool:
        data = self.outgoing.read()
        if self._held is not None:
            self._held = memoryview(bytes(self._held) + data)
            return self.flush()
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return True
        self._held = memoryview(data)[sent:]
        return False

    def flush(self) -> bool:
        if self._held is not None:
            try:
                self._held = self._held[self.sock.send(self._held) :]
            except BlockingIOError:
                return False
            if self._held:
                return False
            self._held = None
        if self._ending:
            self._ending = False
            return self._close_notify()
        return True

    def finish(self) -> bool:
        self._ending = True
        return self.flush()

    def _close_notify(self) -> bool:
        """Ends our direction only; the peer may go on. Asked only while OpenSSL has no whole record unread."""
        try:
            self.tls.unwrap()
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        except ssl.SSLError as error:
            if error.reason != "APPLICATION_DATA_AFTER_CLOSE_NOTIFY":
                raise
        return self._send()
