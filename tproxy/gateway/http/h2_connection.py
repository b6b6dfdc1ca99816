"""An HTTP/2 connection's reading side: frames to streams, windows and settings. RFC 9113, 5 to 7. Pure.

Both roles share it; a subclass says what a header block, a reset and a GOAWAY mean to it. What no honest peer does is
the connection's end (5.4.1), even where the RFC would have a stream reset: resets which a peer can make us send are
what CVE-2025-8671 is about. Those that remain (malformed heads, refused streams) have a budget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tproxy.core.http.head import Headers
from tproxy.gateway.http import h2_frames as f
from tproxy.gateway.http.h2_frames import Code, Fault
from tproxy.gateway.http.h2_heads import MalformedError, trailers
from tproxy.gateway.http.h2_hpack import Decoder, HpackError, TooLargeError
from tproxy.gateway.http.h2_limits import Limits
from tproxy.gateway.http.h2_sending import Sending
from tproxy.gateway.http.h2_stream import H2Stream

DECODED: Final = 4  # times header_list: a list up to this is decoded and refused, a larger one ends the connection

BLOCK: Final = 2  # times header_list: a block up to this is decoded


class Connection(Sending):
    """What both roles do with what they read."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        super().__init__(limits, clock)
        self.greeted = False  # the peer's SETTINGS were there,
        self.acknowledged = False  # and it has seen ours
        self.partial = 0.0  # since when a frame or a header block is incomplete
        self.decoder = Decoder(limits.header_list * DECODED)
        self._rest = b""
        self._block: list[bytes] | None = None  # a header block that goes on in CONTINUATION,
        self._block_of = 0  # its stream,
        self._block_ends = False  # whether that ends with it,
        self._block_size = 0  # bytes

    # What a subclass does

    def on_block(self, number: int, block: bytes, end: bool) -> None:
        """A header block is complete."""
        raise NotImplementedError

    def on_reset(self, stream: H2Stream, code: int) -> None:
        """The peer has reset a stream."""
        raise NotImplementedError

    def on_goaway(self, last: int, code: int, why: str) -> None:
        """The peer opens and takes no more streams."""
        raise NotImplementedError

    def may_have_body(self, stream: H2Stream) -> bool:
        """Whether the stream's head was there; what comes next is told to its sink."""
        raise NotImplementedError

    def on_settings(self, key: int, value: int) -> None:
        """A setting that only one role cares for."""

    def on_pong(self, opaque: bytes) -> None:
        """Our PING was answered."""

    # What it reads

    def receive(self, data: bytes) -> None:
        """Bytes of the peer."""
        try:
            self._parse(data)
        except Fault as fault:
            self.fail(fault.code, fault.why)
        except TooLargeError as large:
            self.fail(Code.ENHANCE_YOUR_CALM, str(large))
        except HpackError as error:
            self.fail(Code.COMPRESSION_ERROR, str(error))

    def _parse(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while end - at >= f.HEAD and not self.closing:
            high, low, kind, flags, number = f.unpack_head(data, at)
            size = high << 8 | low
            if size > f.FRAME:
                raise Fault(Code.FRAME_SIZE_ERROR, f"a frame of {size} bytes; {f.FRAME} are allowed")
            start = at + f.HEAD
            if start + size > end:
                break
            at = start + size
            self._frame(kind, flags, number & f.STREAM_LIMIT, data[start:at])
        self._rest = data[at:]
        if self._rest or self._block is not None:
            self.partial = self.partial or self.clock()
        else:
            self.partial = 0.0

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and kind != f.CONTINUATION:
            raise Fault(Code.PROTOCOL_ERROR, "a header block was not complete when another frame came")
        if not self.greeted and (kind != f.SETTINGS or flags & f.ACK):
            raise Fault(Code.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        f.check(kind, number, len(payload))
        if kind == f.DATA:
            self._on_data(flags, number, payload)
        elif kind == f.HEADERS:
            self._on_headers(flags, number, payload)
        elif kind == f.CONTINUATION:
            self._on_continuation(flags, number, payload)
        elif kind == f.RST_STREAM:
            self._on_reset(number, int.from_bytes(payload))
        elif kind == f.PUSH_PROMISE:
            raise Fault(Code.PROTOCOL_ERROR, "PUSH_PROMISE, which is switched off")
        else:
            self._useless()
            self._on_control(kind, flags, number, payload)

    def _useless(self) -> None:
        if not self.frames.spend():
            raise Fault(Code.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _on_control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == f.WINDOW_UPDATE:
            self._on_window_update(number, int.from_bytes(payload) & f.WINDOW_LIMIT)
        elif kind == f.PRIORITY:
            f.depends_on(number, payload)
        elif kind == f.SETTINGS:
            self._on_settings(flags, payload)
        elif kind == f.PING:
            if flags & f.ACK:
                self.on_pong(payload)
            else:
                self.answer(f.ping(payload, ack=True))
        elif kind == f.GOAWAY:
            why = payload[8:208].decode("ascii", "replace")
            self.on_goaway(int.from_bytes(payload[:4]) & f.STREAM_LIMIT, int.from_bytes(payload[4:8]), why)

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & f.ACK:
            if payload:
                raise Fault(Code.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS has no payload")
            self.acknowledged = True
            return
        self.greeted = True
        for key, value in f.parse_settings(payload):
            if key == f.HEADER_TABLE_SIZE:
                self.encoder.resize(value)
            elif key == f.INITIAL_WINDOW_SIZE:
                self._shift(value - self.initial_window)
                self.initial_window = value
            else:
                self.on_settings(key, value)
        self.answer(f.frame(f.SETTINGS, f.ACK, 0))

    def _shift(self, by: int) -> None:
        """The peer's initial window has changed, and with it those of all open streams (6.9.2)."""
        for stream in self.streams.values():
            stream.window += by
            if stream.window > f.WINDOW_LIMIT:
                raise Fault(Code.FLOW_CONTROL_ERROR, f"the window of stream {stream.number} is too large")
            if stream.waiting and stream.window > 0:
                self.want(stream)

    def _on_window_update(self, number: int, more: int) -> None:
        if not more:
            raise Fault(Code.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
        if not number:
            self.window += more
            if self.window > f.WINDOW_LIMIT:
                raise Fault(Code.FLOW_CONTROL_ERROR, "the connection's window is too large")
            self.unblocked()
            return
        stream = self.streams.get(number)
        if stream is None:
            self._not_idle(number, "WINDOW_UPDATE")
            return
        stream.window += more
        if stream.window > f.WINDOW_LIMIT:
            raise Fault(Code.FLOW_CONTROL_ERROR, f"the window of stream {number} is too large")
        if stream.waiting:
            self.want(stream)

    def _not_idle(self, number: int, what: str) -> None:
        if number > self.last or not number & 1:
            raise Fault(Code.PROTOCOL_ERROR, f"{what} on stream {number}, which is idle")

    def _on_reset(self, number: int, code: int) -> None:
        stream = self.streams.get(number)
        if stream is None:
            self._not_idle(number, "RST_STREAM")
            self._useless()
            return
        self.finish(stream)
        self.on_reset(stream, code)

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number & 1:
            raise Fault(Code.PROTOCOL_ERROR, f"HEADERS on stream {number}")
        if flags & (f.PADDED | f.WITH_PRIORITY):
            payload = f.unpad(flags, payload)
            if flags & f.WITH_PRIORITY:
                f.depends_on(number, payload)
                payload = payload[5:]
        if flags & f.END_HEADERS:
            self.on_block(number, payload, bool(flags & f.END_STREAM))
        else:
            self._block = [payload]
            self._block_of, self._block_ends = number, bool(flags & f.END_STREAM)
            self._block_size = len(payload)

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or number != self._block_of:
            raise Fault(Code.PROTOCOL_ERROR, f"CONTINUATION on stream {number}, of which no header block is open")
        self._block.append(payload)
        self._block_size += len(payload)
        if len(self._block) > self.limits.header_frames or self._block_size > BLOCK * self.limits.header_list:
            raise Fault(
                Code.ENHANCE_YOUR_CALM, f"a header block of {len(self._block)} frames, {self._block_size} bytes"
            )
        if flags & f.END_HEADERS:
            block, self._block = b"".join(self._block), None
            self.on_block(number, block, self._block_ends)

    def trailers(self, stream: H2Stream, block: bytes, end: bool) -> None:
        """A header block behind a body."""
        fields = self.decoder.decode(block)
        if stream.ended:
            raise Fault(Code.STREAM_CLOSED, f"HEADERS on stream {stream.number}, which has ended")
        if not end:
            raise Fault(Code.PROTOCOL_ERROR, f"trailers on stream {stream.number} that do not end it")
        try:
            found = trailers(fields)
        except MalformedError as error:
            self.made_to_reset(stream.number, Code.PROTOCOL_ERROR, str(error))
            return
        self.may_have_body(stream)
        self._end(stream, found)

    def ignored(self, number: int, block: bytes) -> None:
        """A header block of a stream that is not open and cannot be opened."""
        if number not in self.were_reset:
            raise Fault(Code.STREAM_CLOSED, f"HEADERS on stream {number}, which is closed")
        self.decoder.decode(block)
        self._useless()

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self.grant -= size
        if self.grant < 0:
            raise Fault(Code.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        stream = self.streams.get(number)
        if stream is None or stream.ended:
            self._on_late_data(number, size)
            return
        stream.grant -= size
        if stream.grant < 0:
            raise Fault(Code.FLOW_CONTROL_ERROR, f"more DATA than the window of stream {number}")
        data = f.unpad(flags, payload)
        end = bool(flags & f.END_STREAM)
        if not data and not end:
            self._useless()
        stream.got += len(data)
        if stream.expected is not None and stream.got > stream.expected:
            self.credit(size)
            self._mismatch(stream)
            return
        if not self.may_have_body(stream):
            raise Fault(Code.PROTOCOL_ERROR, f"DATA on stream {number} before its head")
        if data:
            stream.sink.data(data)
        if stream.gone or stream.debt is None:
            self.read(stream, size)
        else:
            stream.debt += size
        if end and not stream.gone:
            self._end(stream, [])

    def _on_late_data(self, number: int, size: int) -> None:
        self.credit(size)
        if number not in self.were_reset:
            self._not_idle(number, "DATA")
            raise Fault(Code.STREAM_CLOSED, f"DATA on stream {number}, which has ended")

    def _mismatch(self, stream: H2Stream) -> None:
        why = f"{stream.got} bytes of a body, content-length {stream.expected}"
        self.made_to_reset(stream.number, Code.PROTOCOL_ERROR, why)

    def _end(self, stream: H2Stream, found: Headers) -> None:
        if stream.expected is not None and stream.got != stream.expected:
            self._mismatch(stream)
            return
        stream.ended = stream.heard = True
        if stream.sent:
            self.finish(stream)
        stream.sink.end(found)
