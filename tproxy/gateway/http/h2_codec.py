"""An HTTP/2 connection on a transport: one write for each turn of the event loop, and deadlines."""

from __future__ import annotations

import asyncio
from typing import Final, cast

from tproxy.gateway.http import h2_frames as f
from tproxy.gateway.http.h2_connection import Connection
from tproxy.gateway.http.h2_frames import Code
from tproxy.gateway.http.h2_limits import Limits
from tproxy.gateway.http.h2_stream import H2Stream
from tproxy.gateway.http.stream import Broken, Reset

TURN: Final = 262_144  # bytes of bodies written in one turn; then others have theirs
BLOCKS, BLOCK = 64, 512  # header blocks whose meaning is kept, and the longest of them in bytes
STEP: Final = 5.0  # seconds between looks at a connection that has streams; limits are kept to within it
ALIVE: Final = b"tproxy??"  # in our PINGs


class Codec(Connection, asyncio.Protocol):
    """What both roles do with a transport."""

    def __init__(self, limits: Limits) -> None:
        self.loop = asyncio.get_running_loop()
        super().__init__(limits, self.loop.time)
        self.transport: asyncio.Transport | None = None
        self.sent = self.received = 0  # bytes
        self._made = self.loop.time()
        self._active = self._made  # when the last stream ended
        self._flushing = False  # a flush is on its way
        self._farewell = False  # the connection ends when its streams have
        self._timer: asyncio.TimerHandle | None = None
        self._asleep = False  # the timer is that of an idle connection
        self._step = min(STEP, limits.hello, limits.ping / 4 or STEP, limits.upload)
        self._heard = 0  # bytes, when we last looked,
        self._quiet = self._made  # since when there are no more,
        self._pinged = 0.0  # and when we asked why
        self._gone = ""  # why we gave the peer up

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent
        self.hello()
        self.flush()
        self._arm(self._step)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if not self.closing:
            self._flushing = True
            self.receive(data)
            if self.partial:
                self.look()
        self.flush()

    def eof_received(self) -> bool:
        """Half-closed connections do not exist in HTTP/2: what is left to say cannot be relied upon."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self.transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.drop(Reset(Broken.CLOSED, str(exc) if exc else "the connection was closed"))

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.resumed()
        self.wake()

    # Out

    def wake(self) -> None:
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what there is, and tell sinks of what had to wait."""
        self._flushing = False
        if self.transport is None:
            return
        more = not self.closing and self.emit(TURN)
        out = self.out
        if out:
            data = b"".join(out)
            out.clear()
            self.sent += len(data)
            self.transport.write(data)
        if self.closing:
            self._hang_up()
            return
        self.settle()
        if more:
            self.wake()
        elif self._farewell and not self.streams and not out:
            self.closing = True
            self._hang_up()

    def _hang_up(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()
            self._arm(self.limits.farewell)

    def close(self) -> None:
        """No new exchanges; the connection ends with its last one."""
        self._farewell = True
        self.wake()

    def on_finished(self, stream: H2Stream) -> None:
        if not self.streams:
            self._active = self.clock()
            if self._farewell:
                self.wake()

    # Deadlines

    def look(self) -> None:
        """Something began that has a deadline."""
        if self._asleep:
            self._quiet = self.clock()  # nobody had anything to say until now
            self._arm(self._step)

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._asleep = False
        self._timer = self.loop.call_later(seconds, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self.closing:
            if self.transport is not None:
                self.transport.abort()
            return
        now, limits = self.clock(), self.limits
        if not self.acknowledged and now - self._made >= limits.hello:
            self.fail(
                Code.SETTINGS_TIMEOUT, f"no {'acknowledgement of ' * self.greeted}SETTINGS within {limits.hello:g} s"
            )
        elif self.partial and now - self.partial >= limits.block:
            self.fail(Code.ENHANCE_YOUR_CALM, f"a frame or header block was not complete within {limits.block:g} s")
        elif not self.streams and now - self._active >= limits.idle:
            self.out.append(f.goaway(self.last, Code.NO_ERROR, "idle"))
            self.close()
        elif self.streams and self._is_gone(now):
            self._abandon(f"the peer answered no PING within {min(limits.pong, limits.ping):g} s")
            return
        for stream in [stream for stream in self.streams.values() if stream.waiting]:
            if not stream.since:
                stream.since = now
            elif now - stream.since >= limits.stall:
                why = f"the peer took nothing for {limits.stall:g} s"
                self.give_up(stream, Reset(Broken.TIMEOUT, why))
                stream.sink.reset(Reset(Broken.TIMEOUT, why))
        if not self.closing:
            idle = self.acknowledged and not self.streams and not self.partial
            self._arm(max(STEP, limits.idle - (now - self._active)) if idle else self._step)
            self._asleep = idle

    def _is_gone(self, now: float) -> bool:
        """Whether a peer that has been silent was asked and did not answer; TCP sees only that nothing is lost."""
        if self.received != self._heard:
            self._heard, self._quiet, self._pinged = self.received, now, 0.0
        elif self._pinged:
            return now - self._pinged >= min(self.limits.pong, self.limits.ping)
        elif 0 < self.limits.ping <= now - self._quiet:
            self._pinged = now
            self.out.append(f.ping(ALIVE))
            self.wake()
        return False

    def _abandon(self, why: str) -> None:
        """Nobody is there to be told."""
        self.closing, self._gone = True, why
        self.drop(Reset(Broken.RESET, why))
        if self.transport is not None:
            self.transport.abort()
