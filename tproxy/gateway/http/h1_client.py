"""Our HTTP/1.1 connection to a backend: one exchange after the other, never two at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from tproxy.core.http.head import Headers, Reply
from tproxy.gateway.http.h1_ask import ClientStream
from tproxy.gateway.http.h1_body import Body, BodyError, Chunked, Length, UntilClose
from tproxy.gateway.http.h1_head import BLANK, HEAD_LIMIT, Response, response_head
from tproxy.gateway.http.stream import NOBODY, Broken, Reset, Sink

_INTERIM: Final = 16  # 1xx responses before a final one


class H1Client(asyncio.Protocol):
    """``freed`` is called when it may be used again, ``closed`` when it never will."""

    def __init__(
        self, congested: int, freed: Callable[[H1Client], None], closed: Callable[[H1Client], None], most: int = 0
    ) -> None:
        self.limit, self.freed, self.closed = congested, freed, closed
        self.most = most  # exchanges; 0: any number
        self.transport: asyncio.Transport
        self.stream: ClientStream | None = None
        self.used = 0  # exchanges so far
        self.since = 0.0  # when it was last freed, for its pool
        self.sent = self.received = 0
        self._buffer, self._scanned = b"", 0
        self._body: Body | None = None
        self._known = b""  # the last head, and what it means: backends say the same within a second
        self._response: Response
        self._closing = False
        self._held = False

    @property
    def room(self) -> int:
        """One, between exchanges."""
        return 0 if self._closing or self.stream is not None else 1

    def open(self, sink: Sink) -> ClientStream:
        """The next exchange; the caller has looked at ``room``."""
        self.used += 1
        if self.used == self.most:
            self._closing = True
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
            self.finished(stream)
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
                self.broken(stream, "the response's head is too long")
            return False
        raw, self._buffer, self._scanned = self._buffer[: end + 4], self._buffer[end + 4 :], 0
        if raw != self._known:
            found = response_head(raw)
            if isinstance(found, str):
                self.broken(stream, found)
                return False
            self._known, self._response = raw, found
        found = self._response
        reply = Reply(found.reply.status, list(found.reply.headers))
        return self._interim(stream, found, reply) if reply.status < 200 else self._final(stream, found, reply)

    def _interim(self, stream: ClientStream, found: Response, reply: Reply) -> bool:
        if reply.status == 101:
            if not stream.upgrade or found.upgrade != stream.upgrade:
                self.broken(stream, "it switched to a protocol that nobody asked for")
                return False
            stream.raw = stream.begun = True
            stream.keep = False
            stream.sink.head(reply, False)
            return True
        stream.interim += 1
        if stream.interim > _INTERIM:
            self.broken(stream, "too many interim responses")
            return False
        if reply.status != 100:  # that one was for us
            stream.sink.head(reply, False)
        return True

    def _final(self, stream: ClientStream, found: Response, reply: Reply) -> bool:
        stream.begun = True
        stream.keep = found.keep
        if stream.upgrade:
            stream.write_end = True  # the protocol stays
        status, length = reply.status, found.length
        if stream.method == "HEAD" or status in {204, 304} or length == 0:
            self._complete_head(stream, reply)
            return True
        if length == -2:
            stream.keep = False
        self._body = Chunked() if length == -1 else UntilClose() if length == -2 else Length(length)
        stream.sink.head(reply, False)
        return True

    def _complete_head(self, stream: ClientStream, reply: Reply) -> None:
        stream.read_end = True
        stream.sink.head(reply, True)
        self.finished(stream)

    def _read_body(self, stream: ClientStream, body: Body) -> None:
        try:
            pieces, self._buffer, done = body.feed(self._buffer)
        except BodyError as error:
            self.broken(stream, str(error))
            return
        for piece in pieces:
            stream.sink.data(piece)
        if done and self.stream is stream:
            self._complete(stream, body.trailers)

    def _complete(self, stream: ClientStream, trailers: Headers) -> None:
        self._body = None
        stream.read_end = True
        stream.sink.end(trailers)
        self.finished(stream)

    # -- the end of an exchange ---------------------------------------------------------------------------------------

    def finished(self, stream: ClientStream) -> None:
        if self.stream is not stream or not stream.read_end:
            return
        if not stream.write_end:
            if stream.raw:
                return
            stream.keep = False  # answered before all was asked
        self.stream, stream.sink = None, NOBODY
        if self._held:
            self.brake(False)
        if stream.keep and not self._closing and not self._buffer and not self.transport.is_closing():
            self.freed(self)
        else:
            self._closing = True
            self.transport.close()

    def broken(self, stream: ClientStream, why: str) -> None:
        self.drop()
        stream.sink.reset(Reset(Broken.MALFORMED, why))

    def drop(self) -> None:
        """Give the connection up at once."""
        self.stream, self._closing, self._buffer, self._body = None, True, b"", None
        self.transport.abort()

    def brake(self, on: bool) -> None:
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
