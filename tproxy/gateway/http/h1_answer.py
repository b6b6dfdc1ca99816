"""The response to one HTTP/1.1 request: what a ServerStream is told becomes bytes in the framing that it needs."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from tproxy.core.http.head import Head, Headers, Reply
from tproxy.gateway.http.h1_head import head_lines
from tproxy.gateway.http.stream import NOBODY, Broken, Reset, Sink

if TYPE_CHECKING:
    from tproxy.gateway.http.h1_server import H1Server

HOLD: Final = 1  # why reading is paused: whoever gets the body is slow
PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}  # http.client's dictionary, without http.client
STATUS: Final = {code: f"HTTP/1.1 {code} {PHRASES.get(code, 'Status')}\r\n" for code in range(100, 600)}


class ServerStream:
    """The response to one request, and the brake on its body."""

    __slots__ = (
        "_chunked",
        "_conn",
        "_left",
        "begun",
        "keep",
        "method",
        "raw",
        "read_end",
        "sink",
        "upgrading",
        "write_end",
    )

    def __init__(self, conn: H1Server, method: str, keep: bool) -> None:
        self._conn, self.method, self.keep = conn, method, keep
        self.sink: Sink = NOBODY
        self.begun = self.raw = self.read_end = self.write_end = self.upgrading = False
        self._chunked, self._left = False, -1  # bytes that the head promised, -1: not said

    @property
    def current(self) -> bool:
        """Whether the connection has not gone on without it."""
        return self._conn.stream is self

    def head(self, head: Head | Reply, end: bool) -> None:
        """The response begins, or an interim one passes."""
        conn = self._conn
        if conn.stream is not self or self.begun:
            return
        assert isinstance(head, Reply)
        if head.status < 200 and head.status != 101:
            lines = head_lines(STATUS[head.status], head.headers, "")
            if lines is not None:
                conn.write(lines)
            return
        self.begun = True
        lines = head_lines(STATUS[head.status], head.headers, self._framing(head, end))
        if lines is None:
            self.reset(Reset(Broken.MALFORMED, "a header of the response has a line break"))
            return
        if end or self.raw:
            conn.write(lines)
            conn.work() if self.raw else self._end()
        else:
            conn.write_later(lines)

    def _framing(self, reply: Reply, end: bool) -> str:
        """The lines that say where the body ends and what becomes of the connection."""
        if reply.status == 101:
            self.raw = self.upgrading
            return "connection: Upgrade\r\nupgrade: websocket\r\n"
        if self.upgrading:
            self.read_end = True  # the protocol stays
        lines = "connection: close\r\n" if not self.keep or self._conn.draining else ""
        length = next((value for name, value in reply.headers if name == "content-length"), None)
        if self.method == "HEAD" or reply.status in {204, 304}:
            self._left = 0
        elif end:
            self._left = 0
            if length is None:
                return f"content-length: 0\r\n{lines}"
        elif length is None:
            self._chunked = True
            return f"transfer-encoding: chunked\r\n{lines}"
        else:
            self._left = int(length)
        return lines

    def data(self, data: bytes) -> None:
        """More of the body, in the framing that was promised."""
        conn = self._conn
        if conn.stream is not self or not data or not self.begun:
            return
        if self._chunked:
            conn.write(b"%x\r\n%b\r\n" % (len(data), data))
        elif self.raw:
            conn.write(data)
        elif self._left >= len(data):
            self._left -= len(data)
            conn.write(data)
        elif self.method != "HEAD":
            self.reset(Reset(Broken.MALFORMED, "the response is longer than its Content-Length"))

    def end(self, trailers: Headers | None = None) -> None:
        """The response is complete."""
        conn = self._conn
        if conn.stream is not self or self.write_end:
            return
        if self._chunked:
            lines = head_lines("0\r\n", trailers or [], "")
            if lines is None:
                self.reset(Reset(Broken.MALFORMED, "a trailer of the response has a line break"))
                return
            conn.write(lines)
        elif self.raw:
            self.write_end = True
            conn.flush()
            if self.read_end:
                conn.finished(self)
            elif conn.transport.can_write_eof():
                conn.transport.write_eof()
            return
        elif self._left > 0:
            self.reset(Reset(Broken.MALFORMED, "the response is shorter than its Content-Length"))
            return
        self._end()

    def _end(self) -> None:
        self.write_end = True
        self._conn.flush()
        self._conn.finished(self)

    def reset(self, reset: Reset) -> None:
        """A response that cannot be completed ends the connection, so that nobody takes it for whole.

        Where its framing says that something is missing, what was sent before still arrives; else a reset says it.
        """
        conn = self._conn
        if conn.stream is self:
            conn.stream, self.sink = None, NOBODY
            conn.break_off(reset.why or reset.kind.name, self.begun and not self.raw)

    def hold(self, on: bool) -> None:
        """The brake is the connection's."""
        if self._conn.stream is self:
            self._conn.pause(HOLD, on)
