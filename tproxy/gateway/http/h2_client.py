"""HTTP/2 to backends: many exchanges at once on one connection. RFC 9113, RFC 8441 (websockets)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tproxy.core.http.head import Head, Reply
from tproxy.gateway.http import h2_frames as f
from tproxy.gateway.http.h2_codec import BLOCK, BLOCKS, Codec
from tproxy.gateway.http.h2_frames import Code, Fault
from tproxy.gateway.http.h2_heads import MalformedError, reply, request_fields, websocket_accept
from tproxy.gateway.http.h2_limits import Limits
from tproxy.gateway.http.h2_stream import NOBODY, H2Stream
from tproxy.gateway.http.stream import Broken, Reset, Sink

INTERIM: Final = 16  # 1xx responses before a final one
KEY: Final = "sec-websocket-key"


class H2Client(Codec):
    """A ``Client``. ``freed`` is called when it has room again or is idle, ``closed`` once, when it never will."""

    def __init__(
        self, limits: Limits, freed: Callable[[H2Client], None], closed: Callable[[H2Client], None], most: int = 0
    ) -> None:
        super().__init__(limits)
        self._final = 2 * most - 1  # the last stream; -1: any number of them
        self._freed = freed
        self._closed: Callable[[H2Client], None] | None = closed
        self._most = limits.streams  # as the backend allows; until it says so what the RFC recommends, 6.5.2
        self._opened: dict[H2Stream, None] = {}  # without a head yet
        self._known: dict[
            bytes, tuple[Reply, int | None]
        ] = {}  # blocks that leave the table alone, as long as it stays
        self._connects = False  # it takes an extended CONNECT

    # Client

    @property
    def room(self) -> int:
        """How many more exchanges may begin."""
        if self.closing or self._farewell or self.last >= f.STREAM_LIMIT - 2:
            return 0
        return max(0, self._most - len(self.streams) - len(self._opened))

    def open(self, sink: Sink) -> H2Stream:
        """A new exchange; its number comes with its head."""
        stream = H2Stream(self, 0, self.initial_window, self.limits.stream_window)
        stream.sink = sink
        self._opened[stream] = None
        return stream

    def close(self) -> None:
        super().close()
        self._over()

    # What we send

    def hello(self) -> None:
        self.out.append(f.PREFACE)
        super().hello()

    def our_settings(self) -> list[tuple[int, int]]:
        return [(f.ENABLE_PUSH, 0)]

    def send_head(self, stream: H2Stream, head: Head | Reply, end: bool) -> None:
        assert isinstance(head, Head)
        if head.upgrade and not self._connects:
            self.loop.call_soon(self._unable, stream, head.upgrade)
            return
        self.last = stream.number = self.last + 2 if self.last else 1
        del self._opened[stream]
        self.streams[stream.number] = stream
        if stream.number == self._final:
            self.close()
        stream.window = self.initial_window
        stream.mark = self.received
        stream.method, stream.upgrade = head.method, head.upgrade
        stream.key = next((value for name, value in head.headers if name == KEY), "") if head.upgrade else ""
        self.look()
        self.block(stream, self.encoder.encode(request_fields(head)), end)

    def _unable(self, stream: H2Stream, protocol: str) -> None:
        if not stream.gone:
            self.give_up(stream, Reset(Broken.CONNECT))
            stream.sink.reset(Reset(Broken.CONNECT, f"the backend's HTTP/2 cannot be switched to {protocol}"))

    def give_up(self, stream: H2Stream, reset: Reset) -> None:
        if stream.number:
            self.reset_stream(stream, Code.PROTOCOL_ERROR if reset.kind is Broken.MALFORMED else Code.CANCEL)
        elif self._opened.pop(stream, 0) is None:
            stream.gone = True
            self.on_finished(stream)

    # What we read

    def on_block(self, number: int, block: bytes, end: bool) -> None:
        stream = self.streams.get(number)
        if stream is None:
            if number > self.last:
                raise Fault(Code.PROTOCOL_ERROR, f"HEADERS on stream {number}, which is idle")
            self.ignored(number, block)
        elif stream.had_head:
            self.trailers(stream, block, end)
        else:
            try:
                found, length = self._known.get(block) or self._read(block)
                self._answered(stream, Reply(found.status, found.headers.copy()), length, end)
            except MalformedError as error:
                self.made_to_reset(number, Code.PROTOCOL_ERROR, str(error))

    def _read(self, block: bytes) -> tuple[Reply, int | None]:
        fields = self.decoder.decode(block)
        if not self.decoder.pure:
            self._known.clear()
        found = reply(fields)
        if self.decoder.pure and len(block) <= BLOCK:
            if len(self._known) >= BLOCKS:
                self._known.clear()
            self._known[block] = found
        return found

    def _answered(self, stream: H2Stream, found: Reply, length: int | None, end: bool) -> None:
        if found.status < 200:
            stream.interim += 1
            if end or stream.interim > INTERIM:
                raise MalformedError("too many interim responses" if stream.interim > INTERIM else "1xx as an answer")
            if found.status != 100:  # that one was for us
                stream.sink.head(found, False)
            return
        bodyless = stream.method == "HEAD" or found.status in {204, 304}
        if end and length and not bodyless:
            raise MalformedError(f"content-length {length} and no body")
        stream.had_head = True
        stream.expected = 0 if bodyless else length
        if stream.upgrade and found.status // 100 == 2:
            found.status = 101
            if stream.key:
                found.headers.append(("sec-websocket-accept", websocket_accept(stream.key)))
        if end:
            stream.ended = stream.heard = True
            if stream.sent:
                self.finish(stream)
        stream.sink.head(found, end)

    def may_have_body(self, stream: H2Stream) -> bool:
        return stream.had_head

    def on_reset(self, stream: H2Stream, code: int) -> None:
        if not stream.heard:
            kind = Broken.UNPROCESSED if code == Code.REFUSED_STREAM else Broken.RESET
            stream.sink.reset(Reset(kind, f"the backend reset the stream ({f.code_name(code)})"))

    def on_goaway(self, last: int, code: int, why: str) -> None:
        """Streams up to ``last`` go on; the others were not looked at (6.8)."""
        self.close()
        late = [stream for number, stream in self.streams.items() if number > last]
        reset = Reset(Broken.UNPROCESSED, f"the backend goes away ({f.code_name(code)})")
        for stream in late:
            if not stream.gone:
                self.finish(stream)
                if not stream.heard:
                    stream.sink.reset(reset)

    def on_settings(self, key: int, value: int) -> None:
        if key == f.MAX_CONCURRENT_STREAMS:
            before, self._most = self.room, min(value, self.limits.streams)
            if not before and self.room:
                self._freed(self)
        elif key == f.ENABLE_CONNECT_PROTOCOL:
            self._connects = value == 1

    # The end

    def on_finished(self, stream: H2Stream) -> None:
        super().on_finished(stream)
        if self.room == 1 or (self.room and not self.streams):
            self._freed(self)

    def on_broken(self, reset: Reset) -> None:
        self._over()

    def drop(self, reset: Reset) -> None:
        opened, self._opened = self._opened, {}
        for stream in opened:
            stream.gone = True
            stream.sink.reset(Reset(Broken.UNPROCESSED, reset.why))
            stream.sink = NOBODY
        if reset.kind is Broken.CLOSED:  # of streams to which nothing was answered: the backend thought it idle
            late = [stream for stream in self.streams.values() if stream.mark == self.received and stream.number > 1]
            for stream in late:
                del self.streams[stream.number]
                stream.gone = True
                stream.sink.reset(Reset(Broken.UNPROCESSED, reset.why))
                stream.sink = NOBODY
        super().drop(reset)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._over()

    def _over(self) -> None:
        if self._closed is not None:
            closed, self._closed = self._closed, None
            closed(self)
