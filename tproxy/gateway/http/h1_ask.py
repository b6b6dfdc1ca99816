"""One HTTP/1.1 request to a backend: what a ClientStream is told becomes bytes in the framing that it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tproxy.core.http.head import Head, Headers, Reply
from tproxy.gateway.http.h1_head import head_lines
from tproxy.gateway.http.stream import Reset, Sink

if TYPE_CHECKING:
    from tproxy.gateway.http.h1_client import H1Client


class ClientStream:
    """One request to the backend."""

    __slots__ = (
        "_chunked",
        "_conn",
        "_left",
        "begun",
        "interim",
        "keep",
        "method",
        "raw",
        "read_end",
        "received",
        "sink",
        "upgrade",
        "write_end",
    )

    def __init__(self, conn: H1Client, sink: Sink) -> None:
        self._conn, self.sink = conn, sink
        self.method = self.upgrade = ""
        self.begun = self.raw = self.read_end = self.write_end = self.received = self._chunked = False
        self.keep, self.interim, self._left = True, 0, 0

    def head(self, head: Head | Reply, end: bool) -> None:
        """The request begins."""
        conn = self._conn
        if conn.stream is not self:
            return
        assert isinstance(head, Head)
        self.method, self.upgrade, more = head.method, head.upgrade, ""
        headers = head.headers
        if any(name == "te" for name, _ in headers):  # of one connection; trailers pass anyway
            headers = [pair for pair in headers if pair[0] != "te"]
        if head.upgrade:
            more = f"connection: Upgrade\r\nupgrade: {head.upgrade}\r\n"
        elif not end:
            length = next((value for name, value in headers if name == "content-length"), None)
            self._chunked, self._left = length is None, int(length or 0)
            more = "transfer-encoding: chunked\r\n" if length is None else ""
        first = f"{head.method} {head.target} HTTP/1.1\r\nhost: {head.authority}\r\n"
        lines = head_lines(first, headers, more) if first.count("\n") == 2 and first.count(" ") == 3 else None
        if lines is None:
            conn.broken(self, "a header of the request has a line break")
            return
        self.write_end = end
        conn.write(lines)

    def data(self, data: bytes) -> None:
        """More of the body."""
        conn = self._conn
        if conn.stream is not self or not data or (self.write_end and not self.raw):
            return
        if self._chunked:
            conn.write(b"%x\r\n%b\r\n" % (len(data), data))
        elif self.raw:
            conn.write(data)
        elif len(data) <= self._left:
            self._left -= len(data)
            conn.write(data)
        else:
            conn.broken(self, "the request is longer than its Content-Length")

    def end(self, trailers: Headers | None = None) -> None:
        """The request is complete."""
        conn = self._conn
        if conn.stream is not self or self.write_end:
            return
        if self._chunked:
            lines = head_lines("0\r\n", trailers or [], "")
            if lines is None:
                conn.broken(self, "a trailer of the request has a line break")
                return
            conn.write(lines)
        elif self.raw and not self.read_end and conn.transport.can_write_eof():
            conn.transport.write_eof()
        elif self._left:
            conn.broken(self, "the request is shorter than its Content-Length")
            return
        self.write_end = True
        if self.raw:
            conn.finished(self)

    def reset(self, reset: Reset) -> None:
        """Nobody waits for it any more."""
        if self._conn.stream is self:
            self._conn.drop()

    def hold(self, on: bool) -> None:
        """The brake."""
        if self._conn.stream is self:
            self._conn.brake(on)
