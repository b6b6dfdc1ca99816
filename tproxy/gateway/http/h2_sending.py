"""What an HTTP/2 connection sends: frames, bodies as far as windows go, resets, GOAWAY. RFC 9113, 5 to 7. Pure.

Frames wait in ``out`` until whoever was woken writes them. Bodies wait in their streams and go out in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tproxy.core.http.head import Head, Reply
from tproxy.gateway.http import h2_frames as f
from tproxy.gateway.http.h2_frames import Code, Fault
from tproxy.gateway.http.h2_hpack import Encoder
from tproxy.gateway.http.h2_limits import Budget, Limits
from tproxy.gateway.http.h2_stream import NOBODY, H2Stream
from tproxy.gateway.http.stream import Broken, Reset

REMEMBERED: Final = 1000  # streams that we have reset, for which frames may still be under way
_KINDS: Final = {Code.ENHANCE_YOUR_CALM: Broken.OVERLOAD, Code.SETTINGS_TIMEOUT: Broken.TIMEOUT}
PER_DATA: Final = 10  # frames that carry nothing and may be answers to a frame of DATA


class Sending:
    """One half of a connection; the other, which reads, is its subclass. ``closing``: nothing more is read."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.clock = clock
        self.out: list[bytes] = []
        self.streams: dict[int, H2Stream] = {}
        self.last = 0  # the highest stream that the peer has opened (a client: that we have)
        self.closing = False
        self.paused = False  # the transport holds as much as it may
        self.encoder = Encoder()
        self.waiting = 0  # bytes of all bodies
        self.window = f.WINDOW  # bytes that the peer lets us send,
        self.initial_window = f.WINDOW  # and at first on each stream
        self.grant = limits.window  # bytes that the peer may send
        self.unread = 0  # bytes that were taken, and for which it has not been told so
        self.frames = Budget(limits.frames, limits.frames_per_second, clock)
        self.resets = Budget(limits.resets, limits.resets_per_second, clock)
        self.were_reset: dict[int, None] = {}  # by us, the newest last
        self._ready: dict[H2Stream, None] = {}  # streams with something to send, and room for it as far as known
        self._blocked: dict[H2Stream, None] = {}  # those that wait for the connection's window
        self._touched: list[H2Stream] = []
        self._finished: list[H2Stream] = []  # finished, in this turn of the loop
        self._unsent = 0  # bytes of answers while the transport was paused

    # What a subclass does

    def wake(self) -> None:
        """``out`` or a stream has something."""
        raise NotImplementedError

    def our_settings(self) -> list[tuple[int, int]]:
        """Settings of one role."""
        raise NotImplementedError

    def send_head(self, stream: H2Stream, head: Head | Reply, end: bool) -> None:
        """HEADERS, now."""
        raise NotImplementedError

    def give_up(self, stream: H2Stream, reset: Reset) -> None:
        """RST_STREAM, now."""
        raise NotImplementedError

    def on_sent(self, stream: H2Stream) -> None:
        """END_STREAM is out, and the peer's has not come."""

    def on_finished(self, stream: H2Stream) -> None:
        """A stream is no more."""

    def on_refused(self, stream: H2Stream, reset: Reset) -> None:
        """We reset a stream for what the peer did in it."""
        stream.sink.reset(reset)

    def on_broken(self, reset: Reset) -> None:
        """The connection ends for what the peer did."""

    # What it shares

    def hello(self) -> None:
        """Our SETTINGS and the connection's window."""
        limits = self.limits
        ours = [
            (f.INITIAL_WINDOW_SIZE, limits.stream_window),
            (f.MAX_HEADER_LIST_SIZE, limits.header_list),
            *self.our_settings(),
        ]
        self.out.append(f.settings(ours))
        self.out.append(f.window_update(0, limits.window - f.WINDOW))

    def want(self, stream: H2Stream) -> None:
        """Something waits to be sent."""
        self._ready[stream] = None
        self.wake()
        if not stream.brake and stream.waiting > self.limits.resumed and stream.sink is not NOBODY:
            self._slow(stream)

    def _slow(self, stream: H2Stream) -> None:
        """Brake a stream of which too much would wait after the next write, or some of it, when all have too much."""
        left = stream.waiting - (0 if self.paused else max(0, min(stream.window, self.window)))
        if left > self.limits.waiting or (left > 0 and self.waiting > self.limits.window):
            stream.brake = True
            stream.sink.congested(True)

    def block(self, stream: H2Stream, block: bytes, end: bool) -> None:
        """Send a header block."""
        self.out.append(f.header_block(stream.number, block, end, f.FRAME))
        if end:
            self._sent(stream)
        self.wake()

    def emit(self, most: int) -> bool:
        """Move what waits into ``out``, stream by stream, a frame each; whether ``most`` bytes were too few."""
        ready = self._ready
        self._touched.extend(ready)
        while ready and most > 0 and not self.paused:
            for stream in list(ready):
                moved = self._emit_one(stream)
                most -= moved
                if not moved or not stream.waiting:
                    ready.pop(stream, None)
        return bool(ready) and not self.paused

    def settle(self) -> None:
        """Tell sinks whose stream waits for too much, or no more."""
        touched, self._touched = self._touched, []
        over, self._finished = self._finished, []
        for stream in touched:
            if not stream.brake:
                if stream.waiting:
                    self._slow(stream)
            elif stream.waiting <= self.limits.resumed and (not stream.waiting or self.waiting <= self.limits.window):
                stream.brake = False
                stream.sink.congested(False)
        for stream in over:
            stream.sink = NOBODY  # or both would wait for the collector of circles

    def _emit_one(self, stream: H2Stream) -> int:
        """A frame of DATA, or what comes after the last one; the bytes of the body in it."""
        if stream.gone or stream.sent:
            return 0
        size = 0
        if stream.waiting:
            room = min(stream.window, self.window, f.FRAME)
            if room <= 0:
                if self.window <= 0:
                    self._blocked[stream] = None
                return 0
            chunk = stream.take(room)
            size = len(chunk)
            self.waiting -= size
            stream.since = 0.0
            stream.window -= size
            self.window -= size
            self.frames.earn(PER_DATA)
            last = stream.ending and not stream.waiting and not stream.trailers
            self.out.append(f.head(size, f.DATA, f.END_STREAM if last else 0, stream.number))
            self.out.append(chunk)
            if last:
                self._sent(stream)
        if stream.ending and not stream.waiting and not stream.sent:
            if stream.trailers:
                self.block(stream, self.encoder.encode(stream.trailers), True)
            else:
                self.out.append(f.frame(f.DATA, f.END_STREAM, stream.number))
                self._sent(stream)
        return size

    def _sent(self, stream: H2Stream) -> None:
        stream.ending = stream.sent = True
        if stream.ended:
            self.finish(stream)
        else:
            self.on_sent(stream)

    def answer(self, frame: bytes) -> None:
        """A control frame that the peer made us send; Fault when it does not read them."""
        if self.paused:
            self._unsent += len(frame)
            if self._unsent > self.limits.unsent:
                raise Fault(Code.ENHANCE_YOUR_CALM, f"{self._unsent} bytes of answers to control frames are not read")
        self.out.append(frame)
        self.wake()

    def resumed(self) -> None:
        """The transport takes more again."""
        self.paused = False
        self._unsent = 0

    def reset_stream(self, stream: H2Stream, code: Code) -> None:
        """RST_STREAM; its sink is not told."""
        self.refuse(stream.number, code)
        self.finish(stream)

    def refuse(self, number: int, code: Code) -> None:
        """RST_STREAM; frames of it that are under way are ignored."""
        self.out.append(f.rst_stream(number, code))
        self.were_reset[number] = None
        if len(self.were_reset) > REMEMBERED:
            del self.were_reset[next(iter(self.were_reset))]
        self.wake()

    def made_to_reset(self, number: int, code: Code, why: str) -> None:
        """RST_STREAM for what the peer did; Fault when that was too often."""
        stream = self.streams.get(number)
        if stream is not None:
            self.reset_stream(stream, code)
            self.on_refused(stream, Reset(Broken.MALFORMED, why))
        else:
            self.refuse(number, code)
        if not self.resets.spend():
            raise Fault(Code.ENHANCE_YOUR_CALM, f"too many streams were reset, the last because {why}")

    def finish(self, stream: H2Stream) -> None:
        stream.gone = True
        self._finished.append(stream)
        stream.chunks.clear()
        self.waiting -= stream.waiting
        stream.waiting = 0
        del self.streams[stream.number]
        self._ready.pop(stream, None)
        self._blocked.pop(stream, None)
        if stream.brake and stream.heard:
            self._touched.append(stream)
        if stream.debt:
            self.credit(stream.debt)
        self.on_finished(stream)

    def fail(self, code: Code, why: str) -> None:
        """GOAWAY; every stream's sink is told."""
        if not self.closing:
            self.closing = True
            self.out.append(f.goaway(self.last, code, why))
            reset = Reset(_KINDS.get(code, Broken.MALFORMED), why)
            self.drop(reset)
            self.on_broken(reset)
            self.wake()

    def drop(self, reset: Reset) -> None:
        """All streams are over."""
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.gone = True
            if not stream.heard or not stream.sent:
                stream.sink.reset(reset)
            stream.sink = NOBODY
            self.on_finished(stream)

    def unblocked(self) -> None:
        """The connection's window has grown."""
        if self._blocked:
            self._ready |= self._blocked
            self._blocked.clear()
            self.wake()

    def read(self, stream: H2Stream, size: int) -> None:
        """So many bytes of a body were taken; the peer may send as many more."""
        self.credit(size)
        stream.unread += size
        if stream.unread >= self.limits.stream_window // 2 and not stream.ended and not stream.gone:
            self.out.append(f.window_update(stream.number, stream.unread))
            stream.grant += stream.unread
            stream.unread = 0
            self.wake()

    def credit(self, size: int) -> None:
        self.unread += size
        if self.unread >= self.limits.window // 2 and not self.closing:
            self.out.append(f.window_update(0, self.unread))
            self.grant += self.unread
            self.unread = 0
            self.wake()
