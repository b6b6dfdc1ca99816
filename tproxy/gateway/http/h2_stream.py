"""One exchange of an HTTP/2 connection: what of it waits to be sent, what may still arrive. RFC 9113, 5.1 and 5.2."""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from tproxy.core.http.head import Head, Headers, Reply
from tproxy.gateway.http.stream import Reset, Sink


class Wire(Protocol):
    """What a stream asks of its connection."""

    waiting: int  # bytes of all its streams

    def send_head(self, stream: H2Stream, head: Head | Reply, end: bool) -> None:
        """HEADERS, now."""

    def want(self, stream: H2Stream) -> None:
        """Something waits to be sent."""

    def give_up(self, stream: H2Stream, reset: Reset) -> None:
        """RST_STREAM, now."""

    def read(self, stream: H2Stream, size: int) -> None:
        """So many bytes of a body were taken; the peer may send as many more."""


class Nobody:
    """The sink until there is one; within ``Accept``."""

    def head(self, reply: Reply, end: bool) -> None: ...

    def data(self, data: bytes) -> None: ...

    def end(self, trailers: Headers) -> None: ...

    def reset(self, reset: Reset) -> None: ...

    def congested(self, on: bool) -> None: ...


NOBODY: Final = Nobody()


class H2Stream:
    """A ``Stream`` of the seam. ``gone``: nothing is sent or told any more."""

    # fmt: off
    __slots__ = (
        "brake", "chunks", "debt", "ended", "ending", "expected", "gone", "got", "grant", "had_head", "heard",
        "interim", "key", "mark", "method", "number", "sent", "since", "sink", "trailers", "unread", "upgrade",
        "waiting", "window", "wire",
    )
    # fmt: on

    def __init__(self, wire: Wire, number: int, window: int, grant: int) -> None:
        self.wire = wire
        self.number = number
        self.sink: Sink = NOBODY
        # what we send
        self.window = window  # bytes that the peer lets us send; below 0 after it lowered its initial window (6.9.2)
        self.chunks: deque[bytes] = deque()
        self.waiting = 0  # bytes in them
        self.since = 0.0  # when it was seen that they had to wait
        self.ending = False  # the last byte is among them
        self.trailers: Headers | None = None
        self.sent = False  # END_STREAM is out
        self.brake = False  # the sink knows that it is congested
        # what arrives
        self.grant = grant  # bytes that the peer may send
        self.unread = 0  # bytes that were taken, and for which it has not been told so
        self.debt: int | None = None  # bytes that came while the sink held; None: it does not
        self.expected: int | None = None  # content-length
        self.got = 0
        self.had_head = False  # the final response's head has passed
        self.interim = 0  # responses before it
        self.method = ""  # a client's
        self.upgrade = ""
        self.key = ""  # of a websocket
        self.mark = 0  # bytes that the connection had read when it began
        self.ended = False  # END_STREAM was there
        self.heard = False  # the sink has had its end
        self.gone = False

    def head(self, head: Head | Reply, end: bool) -> None:
        if not self.gone and not self.ending:
            self.ending = end
            self.wire.send_head(self, head, end)

    def data(self, data: bytes) -> None:
        if data and not self.gone and not self.ending:
            self.chunks.append(data)
            self.waiting += len(data)
            self.wire.waiting += len(data)
            self.wire.want(self)

    def end(self, trailers: Headers | None = None) -> None:
        if not self.gone and not self.ending:
            self.ending = True
            self.trailers = trailers
            self.wire.want(self)

    def reset(self, reset: Reset) -> None:
        if not self.gone:
            self.wire.give_up(self, reset)

    def hold(self, on: bool) -> None:
        if on and self.debt is None:
            self.debt = 0
        elif not on and self.debt is not None:
            owed, self.debt = self.debt, None
            if owed and not self.gone:
                self.wire.read(self, owed)

    def take(self, most: int) -> bytes:
        """At most so many of the bytes that wait."""
        chunk = self.chunks.popleft()
        if len(chunk) > most:
            self.chunks.appendleft(chunk[most:])
            chunk = chunk[:most]
        self.waiting -= len(chunk)
        return chunk
