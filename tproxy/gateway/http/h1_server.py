"""A client's HTTP/1.1 connection: one request after the other, each joined by ``accept`` with what answers it.

The next request is read when the one before is over: what is pipelined waits, at most one read of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from tproxy.gateway.http.h1_answer import HOLD, PHRASES, STATUS, ServerStream
from tproxy.gateway.http.h1_body import Body, BodyError, Chunked, Length
from tproxy.gateway.http.h1_head import BLANK, HEAD_LIMIT, LINE_LIMIT, Refusal, Request, request_head
from tproxy.gateway.http.h1_out import Outgoing
from tproxy.gateway.http.limits import Limits
from tproxy.gateway.http.stream import NOBODY, Accept, Broken, Reset
from tproxy.gateway.http.wheel import Timer, Wheel

_PIPELINED: Final = 2  # why reading is paused: the next request came too early
_LINGERED: Final = 256 * 1024  # bytes that are thrown away after our last words


class H1Server(Outgoing):
    """``ended`` is called once, when the connection is gone; ``refused`` with what was no request."""

    def __init__(
        self,
        accept: Accept,
        scheme: str,
        wheel: Wheel,
        limits: Limits,
        refused: Callable[[Refusal], None],
        ended: Callable[[Exception | None], None],
    ) -> None:
        super().__init__()
        self.accept, self.scheme, self.wheel, self.limits = accept, scheme, wheel, limits
        self.refused, self.ended = refused, ended
        self.received = 0
        self.draining = False
        self.stream: ServerStream | None = None
        self.timer = Timer(self._expired)
        self._buffer, self._scanned, self._blanks = b"", 0, 0
        self._body: Body | None = None  # of the request being read
        self._known = b""  # the last head, and what it means
        self._request: Request
        self._paused = 0
        self.over: str = ""  # why nothing more is read
        self._thrown = 0
        self._congested = False
        self._since, self._mark = 0.0, 0  # of a body: since when it is watched, and what had been received by then

    # -- what the transport says ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = made = cast(asyncio.Transport, transport)  # uvloop's does not say that it is one
        made.set_write_buffer_limits(self.limits.congested)
        self.wheel.arm(self.timer, self.limits.head)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        stream = self.stream
        if self.over:
            self._throw(data)
        elif stream is not None and stream.raw:
            stream.sink.data(data)
        else:
            self._buffer = self._buffer + data if self._buffer else data
            self.work()

    def eof_received(self) -> bool:
        stream = self.stream
        if stream is not None and stream.raw and not self.over:
            stream.read_end = True
            stream.sink.end([])
            self.finished(stream)
            return True
        return False  # as Envoy has it: who closes while a response is awaited has left

    def connection_lost(self, exc: Exception | None) -> None:
        self.wheel.end(self.timer)
        self.over = self.over or "lost"
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.sink.reset(Reset(Broken.CLOSED if exc is None else Broken.RESET, "the client left"))
        self.ended(exc)

    def pause_writing(self) -> None:
        self._congested = True
        self.wheel.arm(self.timer, self.limits.stall)
        if self.stream is not None:
            self.stream.sink.congested(True)

    def resume_writing(self) -> None:
        self._congested = False
        self._watch()
        if self.stream is not None:
            self.stream.sink.congested(False)

    # -- reading ----------------------------------------------------------------------------------------------------

    def work(self) -> None:
        while self._buffer and not self.over:
            if self._body is not None:
                self._read_body(self._body)
            elif self.stream is not None:
                if self.stream.raw:
                    data, self._buffer = self._buffer, b""
                    self.stream.sink.data(data)
                    return
                self.pause(_PIPELINED, True)
                return
            elif not self._begin():
                return

    def _begin(self) -> bool:
        """The next request, if its head is whole."""
        buffer = self._buffer
        while buffer.startswith(b"\r\n") and self._blanks < 2:  # RFC 9112, 2.2
            buffer, self._blanks = buffer[2:], self._blanks + 1
        self._buffer = buffer
        if buffer and not 65 <= buffer[0] <= 90 and buffer != b"\r":  # no method: TLS, or what a body left behind
            self._refuse(Refusal(400, "what came is not HTTP"))
            return False
        end = buffer.find(BLANK, max(self._scanned - 3, 0))
        if end < 0:
            self._scanned = len(buffer)
            self._incomplete(buffer)
            return False
        self._scanned = self._blanks = 0
        raw, self._buffer = buffer[: end + 4], buffer[end + 4 :]
        if end > HEAD_LIMIT:
            self._refuse(Refusal(431, f"the head has {end} bytes"))
            return False
        if raw != self._known:
            request = request_head(raw, self.scheme)
            if isinstance(request, Refusal):
                self._refuse(request)
                return False
            self._known, self._request = raw, request
        self._start(self._request)
        return True

    def _incomplete(self, buffer: bytes) -> None:
        if len(buffer) > LINE_LIMIT and buffer.find(b"\n", 0, LINE_LIMIT) < 0:
            self._refuse(Refusal(414, "the request line is too long"))
        elif len(buffer) > HEAD_LIMIT:
            self._refuse(Refusal(431, "the head is too long"))
        elif self.timer.when - self.wheel.now > self.limits.head:
            self.wheel.arm(self.timer, self.limits.head)

    def _start(self, request: Request) -> None:
        head = request.again()
        stream = self.stream = ServerStream(self, head.method, request.keep)
        if request.length:
            self._body = Chunked() if request.length < 0 else Length(request.length)
            self._since, self._mark = self.wheel.now, self.received
        stream.upgrading = bool(head.upgrade)
        stream.read_end = not request.length and not stream.upgrading
        self._watch()
        sink = self.accept(stream, head, stream.read_end)
        if stream.current:
            stream.sink = sink
        if request.expects and stream.current and not stream.begun:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _read_body(self, body: Body) -> None:
        stream = self.stream
        assert stream is not None
        try:
            pieces, self._buffer, done = body.feed(self._buffer)
        except BodyError as error:
            stream.sink.reset(Reset(Broken.MALFORMED, str(error)))
            self.stream = None
            if stream.begun:
                self.transport.abort()
            else:
                self._refuse(Refusal(400, str(error)))
            return
        if done:
            self._body = None
        elif self.wheel.now - self._since >= self.limits.stall and self._trickles(stream):
            return
        self._watch()
        for piece in pieces:
            stream.sink.data(piece)
        if done and self.stream is stream:
            stream.read_end = True
            stream.sink.end(body.trailers)
            self.finished(stream)

    def _trickles(self, stream: ServerStream) -> bool:
        """Whether too little of a body has come for too long; an answer that has begun is worth more than its end."""
        limits, got = self.limits, self.received - self._mark
        if got >= limits.rate * limits.stall or stream.begun:
            self._since, self._mark = self.wheel.now, self.received
            return False
        why = f"a body of {got} bytes in {limits.stall:g} s; {limits.rate} bytes a second are the least"
        self._late(stream, why)
        return True

    def _late(self, stream: ServerStream, why: str) -> None:
        self.stream = None
        stream.sink.reset(Reset(Broken.TIMEOUT, why))
        self._refuse(Refusal(408, why))

    def pause(self, why: int, on: bool) -> None:
        before, self._paused = self._paused, self._paused | why if on else self._paused & ~why
        if not before and self._paused:
            self.transport.pause_reading()
        elif before and not self._paused and not self.transport.is_closing():
            self._since, self._mark = self.wheel.now, self.received  # it was we who did not read
            if self._body is not None:
                self._watch()
            self.transport.resume_reading()

    # -- the end of a request, and of the connection ------------------------------------------------------------------

    def finished(self, stream: ServerStream) -> None:
        """One direction of it has ended: perhaps that was the second."""
        if self.stream is not stream or not stream.write_end:
            return
        stream.sink = NOBODY
        if not stream.read_end:  # answered before it was read: the rest is not wanted
            self.stream = None
            self._close("answered early")
            return
        self.stream = None
        if stream.raw or not stream.keep or self.draining:
            self._close("")
            return
        self.wheel.arm(self.timer, self.limits.idle)
        if self._paused:
            self.pause(HOLD | _PIPELINED, False)
        if self._buffer:
            self._loop.call_soon(self.work)

    def drain(self) -> None:
        """No request after the one at hand."""
        self.draining = True
        if self.stream is None and not self.over and not self._buffer:
            self._close("")

    def _refuse(self, refusal: Refusal) -> None:
        """Say so, and read no further: where the next request begins is not known."""
        text = PHRASES.get(refusal.status, "").encode()
        lines = b"content-length: %d\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n" % len(text)
        self.write(STATUS[refusal.status].encode() + lines + text)
        self.refused(refusal)
        self._close(refusal.why)

    def _close(self, why: str) -> None:
        """End our direction; with ``why`` bytes may be coming that would turn our last words into a reset."""
        self._body, self._buffer = None, b""
        self.flush()
        self.over = why or "done"
        if not why or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.pause(HOLD | _PIPELINED, False)
        self.wheel.arm(self.timer, self.limits.linger)

    def break_off(self, why: str, framed: bool) -> None:
        """End within a response."""
        self._body, self._buffer, self.over = None, b"", why
        if framed:
            self.flush()
            self.transport.close()
            self.wheel.arm(self.timer, self.limits.linger)
        else:
            self.transport.abort()

    def _throw(self, data: bytes) -> None:
        self._thrown += len(data)
        if self._thrown > _LINGERED:
            self.transport.abort()

    def _watch(self) -> None:
        """A body, or a client that does not read, has a deadline; whoever waits for a backend has the backend's."""
        if self._body is not None or self._congested:
            self.wheel.arm(self.timer, self.limits.stall)
        elif self.stream is not None:
            self.wheel.rest(self.timer)

    def _expired(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None and self._body is not None and not (stream.begun or self._congested or self._paused):
            self._late(stream, f"nothing of a body came in {self.limits.stall:g} s")
        elif stream is not None:
            who = "the backend takes nothing of the body" if self._paused else "the client stalled"
            stream.sink.reset(Reset(Broken.TIMEOUT, who))
            self.transport.abort()
        elif self.over:
            self.transport.abort()
        elif self._buffer:
            self._refuse(Refusal(408, "the head did not come in time"))
        else:
            self._close("")
