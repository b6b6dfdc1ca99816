"""Our HTTP/1.1 connection to a backend: one exchange after the other, never two at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from tproxy.core.http import Head, Headers, Reply
from tproxy.gateway.http.h1_body import Body, BodyError, Chunked, Length, UntilClose
from tproxy.gateway.http.h1_head import BLANK, HEAD_LIMIT, Response, head_lines, response_head
from tproxy.gateway.http.stream import Broken, Reset, Sink

_INTERIM = 16  # 1xx responses before a final one


class H1Client(asyncio.Protocol):
    """``freed`` is called when it may be used again, ``closed`` when it never will."""

    def __init__(self, congested: int, freed: Callable[[H1Client], None], closed: Callable[[H1Client], None]) -> None:
        self.limit, self.freed, self.closed = congested, freed, closed
        self.transport: asyncio.Transport
        self.stream: ClientStream | None = None
        self.used = 0  # exchanges so far
        self.since = 0.0  # when it was last freed, for its pool
        self.sent = self.received = 0
        self._buffer, self._scanned = b"", 0
        self._body: Body | None = None
        self._closing = False
        self._held = False

    @property
    def room(self) -> int:
        """One, between exchanges."""
        return 0 if self._closing or self.stream is not None else 1

    def open(self, sink: Sink) -> ClientStream:
        """The next exchange; the caller has looked at ``room``."""
        self.used += 1
        self.stream = made = ClientStream(self, sink)
        return made

    def close(self) -> None:
        """After the exchange at hand."""
        self._closing = True
        if self.stream is None:
            self.transport.close()

    # -- what the transport says ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = made = cast(asyncio.Transport, transport)  # uvloop's does not say that it is one
        made.set_write_buffer_limits(self.limit)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        stream = self.stream
        if stream is None:  # nothing was asked: whatever it is must not become the next answer
            self._closing = True
            self.transport.abort()
        elif stream.raw:
            stream.sink.data(data)
        else:
            self._buffer = self._buffer + data if self._buffer else data
            self._work(stream)

    def eof_received(self) -> bool:
        stream, body = self.stream, self._body
        if stream is None:
            return False
        if stream.raw:
            stream.read_end = True
            stream.sink.end([])
            self._finished(stream)
            return True
        if stream.begun and body is not None and body.eof():
            stream.keep = False
            self._complete(stream, body.trailers)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        stream, self.stream = self.stream, None
        if stream is not None:
            kind = Broken.CLOSED if exc is None else Broken.RESET
            if not stream.received and self.used > 1:
                kind = Broken.UNPROCESSED  # it was closed while we thought it idle
            stream.sink.reset(Reset(kind, "" if exc is None else str(exc)))
        self.closed(self)

    def pause_writing(self) -> None:
        if self.stream is not None:
            self.stream.sink.congested(True)

    def resume_writing(self) -> None:
        if self.stream is not None:
            self.stream.sink.congested(False)

    # -- reading ----------------------------------------------------------------------------------------------------

    def _work(self, stream: ClientStream) -> None:
        stream.received = True
        while self._buffer and self.stream is stream:
            if stream.raw:
                data, self._buffer = self._buffer, b""
                stream.sink.data(data)
            elif self._body is not None:
                self._read_body(stream, self._body)
            elif not self._begin(stream):
                return

    def _begin(self, stream: ClientStream) -> bool:
        end = self._buffer.find(BLANK, max(self._scanned - 3, 0))
        if end < 0 or end > HEAD_LIMIT:
            self._scanned = len(self._buffer)
            if max(end, self._scanned) > HEAD_LIMIT:
                self._broken(stream, "the response's head is too long")
            return False
        raw, self._buffer, self._scanned = self._buffer[: end + 4], self._buffer[end + 4 :], 0
        found = response_head(raw)
        if isinstance(found, str):
            self._broken(stream, found)
            return False
        return self._interim(stream, found) if found.reply.status < 200 else self._final(stream, found)

    def _interim(self, stream: ClientStream, found: Response) -> bool:
        if found.reply.status == 101:
            if not stream.upgrade or found.upgrade != stream.upgrade:
                self._broken(stream, "it switched to a protocol that nobody asked for")
                return False
            stream.raw = stream.begun = True
            stream.keep = False
            stream.sink.head(found.reply, False)
            return True
        stream.interim += 1
        if stream.interim > _INTERIM:
            self._broken(stream, "too many interim responses")
            return False
        if found.reply.status != 100:  # that one was for us
            stream.sink.head(found.reply, False)
        return True

    def _final(self, stream: ClientStream, found: Response) -> bool:
        stream.begun = True
        stream.keep = found.keep
        if stream.upgrade:
            stream.write_end = True  # the protocol stays
        status, length = found.reply.status, found.length
        if stream.method == "HEAD" or status in {204, 304} or length == 0:
            self._complete_head(stream, found.reply)
            return True
        if length == -2:
            stream.keep = False
        self._body = Chunked() if length == -1 else UntilClose() if length == -2 else Length(length)
        stream.sink.head(found.reply, False)
        return True

    def _complete_head(self, stream: ClientStream, reply: Reply) -> None:
        stream.read_end = True
        stream.sink.head(reply, True)
        self._finished(stream)

    def _read_body(self, stream: ClientStream, body: Body) -> None:
        try:
            pieces, self._buffer, done = body.feed(self._buffer)
        except BodyError as error:
            self._broken(stream, str(error))
            return
        for piece in pieces:
            stream.sink.data(piece)
        if done and self.stream is stream:
            self._complete(stream, body.trailers)

    def _complete(self, stream: ClientStream, trailers: Headers) -> None:
        self._body = None
        stream.read_end = True
        stream.sink.end(trailers)
        self._finished(stream)

    # -- the end of an exchange ---------------------------------------------------------------------------------------

    def _finished(self, stream: ClientStream) -> None:
        if self.stream is not stream or not stream.read_end:
            return
        if not stream.write_end:
            if stream.raw:
                return
            stream.keep = False  # answered before all was asked
        self.stream = None
        if self._held:
            self._hold(False)
        if stream.keep and not self._closing and not self._buffer and not self.transport.is_closing():
            self.freed(self)
        else:
            self._closing = True
            self.transport.close()

    def _broken(self, stream: ClientStream, why: str) -> None:
        self.drop()
        stream.sink.reset(Reset(Broken.MALFORMED, why))

    def drop(self) -> None:
        """Give the connection up at once."""
        self.stream, self._closing, self._buffer, self._body = None, True, b"", None
        self.transport.abort()

    def _hold(self, on: bool) -> None:
        if on != self._held:
            self._held = on
            if on:
                self.transport.pause_reading()
            elif not self.transport.is_closing():
                self.transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Hand over to the transport."""
        self.sent += len(data)
        self.transport.write(data)


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
            conn._broken(self, "a header of the request has a line break")
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
            conn._broken(self, "the request is longer than its Content-Length")

    def end(self, trailers: Headers | None = None) -> None:
        """The request is complete."""
        conn = self._conn
        if conn.stream is not self or self.write_end:
            return
        if self._chunked:
            lines = head_lines("0\r\n", trailers or [], "")
            if lines is None:
                conn._broken(self, "a trailer of the request has a line break")
                return
            conn.write(lines)
        elif self.raw and not self.read_end and conn.transport.can_write_eof():
            conn.transport.write_eof()
        elif self._left:
            conn._broken(self, "the request is shorter than its Content-Length")
            return
        self.write_end = True
        if self.raw:
            conn._finished(self)

    def reset(self, reset: Reset) -> None:
        """Nobody waits for it any more."""
        if self._conn.stream is self:
            self._conn.drop()

    def hold(self, on: bool) -> None:
        """The brake."""
        if self._conn.stream is self:
            self._conn._hold(on)
