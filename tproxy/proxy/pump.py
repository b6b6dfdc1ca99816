"""Both directions of one connection, as the reactor calls them back. Bounded: what was read is sent before more is.

This is the relay in Python; _compiled.pyx is the same in C, and the same tests run on both.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tproxy.core.record import Outcome
from tproxy.proxy.legs import Leg, TruncatedError, took

if TYPE_CHECKING:
    from tproxy.proxy.reactor import Reactor


@dataclass(frozen=True, slots=True)
class Moved:
    """What a relay carried, and how it ended."""

    sent: int
    received: int
    outcome: Outcome
    ended_by: str
    error: Exception | None = None


class _Pump:
    """One direction: from one leg to the other."""

    __slots__ = ("done", "end", "moved", "pair", "source", "target", "waiting")

    def __init__(self, pair: Pair, source: Leg, target: Leg, end: str) -> None:
        self.pair, self.source, self.target, self.end = pair, source, target, end
        self.moved = 0
        self.done = self.waiting = False

    def readable(self) -> None:
        pair = self.pair
        try:
            count = self.source.read(pair.reactor.buffers)
        except BlockingIOError:
            return
        except OSError as error:
            pair.broke(self.end, error)
            return
        try:
            sent = True
            if count:
                self.moved += count
                took(self.source.sock, count, self.moved)
                sent = self.target.write(pair.reactor.buffers.plain[:count])
            if self.source.eof:
                self.done = True
                pair.reactor.reader(self.source.sock, None)
                sent = self.target.finish()
        except OSError as error:
            pair.broke(pair.other(self.end), error)
            return
        if not sent:
            self._pause()
        elif self.done:
            pair.direction_ended(self.end)

    def _pause(self) -> None:
        self.waiting = True
        if not self.done:
            self.pair.reactor.reader(self.source.sock, None)
        self.pair.reactor.writer(self.target.sock, self.writable)

    def writable(self) -> None:
        try:
            if not self.target.flush():
                return
        except OSError as error:
            self.pair.broke(self.pair.other(self.end), error)
            return
        self.waiting = False
        self.pair.reactor.writer(self.target.sock, None)
        if self.done:
            self.pair.direction_ended(self.end)
        else:
            self.pair.reactor.reader(self.source.sock, self.readable)
            self.readable()


class Pair:
    """The state of both directions; ended exactly once."""

    __slots__ = ("back", "down", "ended", "forth", "last", "reactor", "up")

    def __init__(self, down: Leg, up: Leg, reactor: Reactor) -> None:
        self.reactor, self.down, self.up = reactor, down, up
        self.forth = _Pump(self, down, up, "source")
        self.back = _Pump(self, up, down, "target")
        self.last = ""
        self.ended: asyncio.Future[Moved] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        """Both directions; what arrived before we looked (behind a handshake, say) is carried first."""
        for pump in (self.forth, self.back):
            self.reactor.reader(pump.source.sock, pump.readable)
        for pump in sorted((self.forth, self.back), key=lambda pump: not pump.source.buffered):
            if not self.ended.done():
                pump.readable()

    @staticmethod
    def other(end: str) -> str:
        return "target" if end == "source" else "source"

    def direction_ended(self, end: str) -> None:
        self.last = self.last or end
        if self.forth.done and self.back.done and not (self.forth.waiting or self.back.waiting):
            self._end(Outcome.CLOSED, self.last)

    def broke(self, end: str, error: OSError) -> None:
        error.__traceback__ = None  # its frames hold us, and we shall hold it: a circle that keeps the TLS state alive
        self._end(Outcome.TRUNCATED if isinstance(error, TruncatedError) else Outcome.RESET, end, error)

    def _end(self, outcome: Outcome, end: str, error: Exception | None = None) -> None:
        self.detach()
        if not self.ended.done():
            self.ended.set_result(Moved(self.forth.moved, self.back.moved, outcome, end, error))

    def detach(self) -> None:
        for leg in (self.down, self.up):
            if leg.sock.fileno() >= 0:
                self.reactor.forget(leg.sock)

    def cut(self) -> Moved:
        """Ended by us: what was carried until now."""
        self.detach()
        return Moved(self.forth.moved, self.back.moved, Outcome.CUT, "sidecar")

    def forget(self) -> None:
        """Break the circle of references, so that a connection's memory goes with it and not at the next collection."""
        for pump in (self.forth, self.back):
            del pump.pair
