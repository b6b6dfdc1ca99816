"""HTTP/2 from clients: each request becomes a head for ``Accept``. RFC 9113, RFC 8441 (websockets)."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import Final

from tproxy.core.http.head import Head, Headers, Reply
from tproxy.core.http.local import is_grpc
from tproxy.gateway.http import h2_frames as f
from tproxy.gateway.http.h2_codec import BLOCK, BLOCKS, Codec
from tproxy.gateway.http.h2_frames import PREFACE, Code, Fault
from tproxy.gateway.http.h2_heads import HEADERS_LIMIT, Asked, MalformedError, request
from tproxy.gateway.http.h2_hpack import ENTRY
from tproxy.gateway.http.h2_limits import Limits
from tproxy.gateway.http.h2_stream import NOBODY, H2Stream
from tproxy.gateway.http.stream import Accept, Broken, Reset

STARTS: Final = 16  # requests of one connection in one turn of the loop
PER_STREAM: Final = 20  # frames that carry nothing (PRIORITY, WINDOW_UPDATE) and may come with a request
EARLY: Final = Reset(Broken.CLOSED, "answered before the request was complete")
KEY: Final = "sec-websocket-key"


class H2Server(Codec):
    """The codec of one connection. ``refused`` hears of what became no exchange, ``ended`` of the connection's end."""

    def __init__(
        self,
        accept: Accept,
        scheme: str,
        limits: Limits,
        refused: Callable[[Reset], None],
        ended: Callable[[Exception | None], None],
    ) -> None:
        super().__init__(limits)
        self._accept = accept
        self._scheme = scheme  # ours, whatever a client says
        self._refused = refused
        self._ended = ended
        self._preface = b""  # what has come of it
        self._pending: dict[H2Stream, Asked] = {}  # requests whose turn has not come
        self._starting = False  # and it will be looked at in the next turn of the loop
        self._known: dict[bytes, Asked] = {}  # blocks that leave the table alone, as long as it stays
        self._accepted = f.STREAM_LIMIT  # the highest stream that is still taken, 6.8
        self._drained: bytes | None = None  # the PING between the two GOAWAY
        self._uploads: dict[H2Stream, tuple[float, int]] = {}  # bodies: since when they are watched, and had how much

    def our_settings(self) -> list[tuple[int, int]]:
        return [(f.MAX_CONCURRENT_STREAMS, self.limits.streams), (f.ENABLE_CONNECT_PROTOCOL, 1)]

    def receive(self, data: bytes) -> None:
        if self._preface != PREFACE:
            missing = len(PREFACE) - len(self._preface)
            self._preface += data[:missing]
            data = data[missing:]
            if not PREFACE.startswith(self._preface):
                self.fail(Code.PROTOCOL_ERROR, "the first bytes are not HTTP/2's")
                return
        if data:
            super().receive(data)
            if self._pending and not self._starting:
                self._start_some()

    def on_block(self, number: int, block: bytes, end: bool) -> None:
        stream = self.streams.get(number)
        if stream is not None:
            self.trailers(stream, block, end)
        elif number <= self.last:
            self.ignored(number, block)
        else:
            self.last = number
            asked = self._known.get(block) or self._read(number, block)
            if asked is not None and number <= self._accepted:
                self._begin(number, asked, end)

    def _read(self, number: int, block: bytes) -> Asked | None:
        """The request of a block; None when it was refused."""
        fields = self.decoder.decode(block)
        if not self.decoder.pure:
            self._known.clear()
        if (
            len(fields) > HEADERS_LIMIT
            or sum(len(name) + len(value) + ENTRY for name, value in fields) > self.limits.header_list
        ):
            self._too_large(number)
            return None
        try:
            asked = request(fields)
        except MalformedError as error:
            self._refuse(number, Code.PROTOCOL_ERROR, Reset(Broken.MALFORMED, str(error)))
            return None
        if self.decoder.pure and len(block) <= BLOCK:
            if len(self._known) >= BLOCKS:
                self._known.clear()
            self._known[block] = asked
        return asked

    def _too_large(self, number: int) -> None:
        """431 (RFC 6585, 5), as a body that may follow is not waited for."""
        why = f"a request's head of more than {self.limits.header_list} bytes or {HEADERS_LIMIT} fields"
        block = self.encoder.encode([(":status", "431"), ("content-length", "0")])
        self.out.append(f.header_block(number, block, True, f.FRAME))
        self._refuse(number, Code.NO_ERROR, Reset(Broken.OVERLOAD, why))

    def _refuse(self, number: int, code: Code, reset: Reset) -> None:
        """Reset what becomes no exchange."""
        self._refused(reset)
        self.made_to_reset(number, code, reset.why)

    def _begin(self, number: int, asked: Asked, end: bool) -> None:
        if len(self.streams) >= self.limits.streams:
            reset = Reset(Broken.OVERLOAD, f"{len(self.streams)} streams were open")
            self._refuse(number, Code.REFUSED_STREAM, reset)
            return
        if end and asked.length:
            reset = Reset(Broken.MALFORMED, f"content-length {asked.length} and no body")
            self._refuse(number, Code.PROTOCOL_ERROR, reset)
            return
        stream = H2Stream(self, number, self.initial_window, self.limits.stream_window)
        stream.expected = asked.length
        stream.ended = stream.heard = end
        self.streams[number] = stream
        self._pending[stream] = asked
        self.frames.earn(PER_STREAM)
        self.look()

    def _start_some(self) -> None:
        """So that many requests of one client are no long turn, and one that is reset at once costs no more."""
        for stream in list(self._pending)[:STARTS]:
            if stream in self._pending:
                self._start(stream)
        self._starting = bool(self._pending)
        if self._starting:
            self.loop.call_soon(self._start_some)

    def _start(self, stream: H2Stream) -> None:
        asked, end = self._pending.pop(stream), stream.ended
        head = asked.fresh(self._scheme)
        if head.upgrade and not any(name == KEY for name, _ in head.headers):  # it is HTTP/1.1's; RFC 8441, 5
            head.headers.append((KEY, base64.b64encode(os.urandom(16)).decode()))
        if not end and self.limits.rate and not head.upgrade and not is_grpc(head):
            self._uploads[stream] = self.clock(), 0
        stream.sink = self._accept(stream, head, end)
        if stream.gone and stream.sent and not end:
            stream.sink.reset(EARLY)
        if asked.expects and not end and not stream.had_head and not stream.gone:
            self.block(stream, self.encoder.encode([(":status", "100")]), False)

    def may_have_body(self, stream: H2Stream) -> bool:
        if stream in self._pending:
            self._start(stream)
        return True

    def on_reset(self, stream: H2Stream, code: int) -> None:
        if not stream.heard or not stream.sent:
            stream.sink.reset(Reset(Broken.RESET, f"the client reset the stream ({f.code_name(code)})"))
        if not self.resets.spend():
            raise Fault(Code.ENHANCE_YOUR_CALM, "too many streams were reset")

    def on_goaway(self, last: int, code: int, why: str) -> None:
        """The client opens no more streams; those that are open end as they would."""
        self.close()

    def on_refused(self, stream: H2Stream, reset: Reset) -> None:
        if stream.sink is NOBODY:
            self._refused(reset)
        super().on_refused(stream, reset)

    def on_finished(self, stream: H2Stream) -> None:
        self._pending.pop(stream, None)
        if self._uploads:
            self._uploads.pop(stream, None)
        if stream.sent:
            self.resets.earn(1)
        super().on_finished(stream)

    def on_broken(self, reset: Reset) -> None:
        self._refused(reset)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._ended(TimeoutError(self._gone) if self._gone else exc)

    def send_head(self, stream: H2Stream, head: Head | Reply, end: bool) -> None:
        assert isinstance(head, Reply)
        status, headers = head.status, head.headers
        stream.had_head = status >= 200 or status == 101
        if status == 101:
            status, headers = 200, [field for field in headers if field[0] != "sec-websocket-accept"]
        fields: Headers = [(":status", str(status)), *headers]
        self.block(stream, self.encoder.encode(fields), end)

    def on_sent(self, stream: H2Stream) -> None:
        """The answer is complete before the request: the rest of that is not wanted (8.1)."""
        self.reset_stream(stream, Code.NO_ERROR)
        stream.sink.reset(EARLY)

    def give_up(self, stream: H2Stream, reset: Reset) -> None:
        code = {Broken.UNPROCESSED: Code.REFUSED_STREAM, Broken.OVERLOAD: Code.ENHANCE_YOUR_CALM}
        self.reset_stream(stream, code.get(reset.kind, Code.INTERNAL_ERROR))

    # Bodies that trickle

    def _tick(self) -> None:
        super()._tick()
        if self._uploads and not self.closing:
            now = self.clock()
            for stream, (since, had) in list(self._uploads.items()):
                self._watch(stream, now, since, had)

    def _watch(self, stream: H2Stream, now: float, since: float, had: int) -> None:
        """Whom we hold, or have answered, is not slow; whoever is, is told so (RFC 9110, 15.5.9)."""
        limits = self.limits
        if stream.ended or stream.had_head:
            del self._uploads[stream]
        elif stream.debt is not None:
            self._uploads[stream] = now, stream.got
        elif now - since >= limits.upload:
            if stream.got - had >= limits.rate * limits.upload:
                self._uploads[stream] = now, stream.got
                return
            why = (
                f"a body of {stream.got - had} bytes in {limits.upload:g} s; {limits.rate} bytes a second are the least"
            )
            reset, sink, stream.sink = Reset(Broken.TIMEOUT, why), stream.sink, NOBODY
            sink.reset(reset)
            self._refused(reset)
            self.block(stream, self.encoder.encode([(":status", "408"), ("content-length", "0")]), True)

    # Drain

    def drain(self) -> None:
        """GOAWAY in two steps (6.8): that there will be an end; once that has arrived, what the last stream was."""
        if self._drained is None and not self.closing:
            self._drained = os.urandom(8)
            self.out.append(f.goaway(f.STREAM_LIMIT, Code.NO_ERROR) + f.ping(self._drained))
            self.wake()
            self.loop.call_later(self.limits.farewell, self._last_stream)

    def on_pong(self, opaque: bytes) -> None:
        if opaque == self._drained:
            self._last_stream()

    def _last_stream(self) -> None:
        if self._accepted == f.STREAM_LIMIT and self.transport is not None and not self.closing:
            self._accepted = self.last
            self.out.append(f.goaway(self.last, Code.NO_ERROR))
            self.close()
