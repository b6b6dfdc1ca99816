"""HTTP/1.1 codecs without sockets: a transport that keeps what is written, and sinks that keep what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tproxy.core.http.head import Head, Headers, Reply
from tproxy.gateway.http.h1_client import H1Client
from tproxy.gateway.http.h1_head import Refusal
from tproxy.gateway.http.h1_server import H1Server
from tproxy.gateway.http.limits import Limits
from tproxy.gateway.http.stream import Reset, Stream
from tproxy.gateway.http.wheel import Wheel


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.reading, self.closed, self.eof, self.aborted = True, False, False, False

    def write(self, data: Any) -> None:
        assert not self.closed
        assert not self.eof
        self.sent += data

    def write_eof(self) -> None:
        self.eof = True

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


@dataclass
class Heard:
    """A sink: what it was told, in order."""

    stream: Stream | None = None
    head_: Head | None = None
    replies: list[Reply] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    trailers: Headers | None = None
    broken: Reset | None = None
    ended: bool = False
    congestion: list[bool] = field(default_factory=list)
    then: Callable[[Heard], None] = lambda _: None  # when it has ended

    def head(self, reply: Reply, end: bool) -> None:
        assert not self.ended
        self.replies.append(reply)
        if end:
            self.ended = True
            self.then(self)

    def data(self, data: bytes) -> None:
        assert not self.ended
        assert data
        self.body += data

    def end(self, trailers: Headers) -> None:
        assert not self.ended
        self.ended, self.trailers = True, trailers
        self.then(self)

    def reset(self, reset: Reset) -> None:
        assert self.broken is None
        self.broken = reset

    def congested(self, on: bool) -> None:
        self.congestion.append(on)


def answer(heard: Heard) -> None:
    """200 and nothing else."""
    assert heard.stream is not None
    heard.stream.head(Reply(200), True)


@dataclass
class Server:
    """A server's codec, its requests, and what it wrote."""

    scheme: str = "http"
    limits: Limits = field(default_factory=Limits)
    then: Callable[[Heard], None] = answer
    requests: list[Heard] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    gone: list[Exception | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.wheel = Wheel(asyncio.get_running_loop())
        self.conn = H1Server(self._accept, self.scheme, self.wheel, self.limits, self.refused.append, self.gone.append)
        self.wire = Wire()
        self.conn.connection_made(self.wire)

    def _accept(self, stream: Stream, head: Head, end: bool) -> Heard:
        heard = Heard(stream, head, then=self.then)
        self.requests.append(heard)
        if end:
            heard.ended, heard.trailers = True, []
            self.then(heard)
        return heard

    async def feed(self, pieces: Iterable[bytes]) -> Server:
        """As a socket would: nothing while reading is paused, nothing after the end."""
        for piece in pieces:
            for _ in range(100):
                if self.wire.reading or self.wire.closed:
                    break
                await asyncio.sleep(0)
            if self.wire.closed or not self.wire.reading:
                break
            self.conn.data_received(piece)
        for _ in range(3):
            await asyncio.sleep(0)
        return self


@dataclass
class Client:
    """A client's codec, and how often it became free."""

    freed: int = 0
    gone: int = 0

    def __post_init__(self) -> None:
        self.conn = H1Client(65536, self._freed, self._closed)
        self.wire = Wire()
        self.conn.connection_made(self.wire)

    def _freed(self, _: H1Client) -> None:
        self.freed += 1

    def _closed(self, _: H1Client) -> None:
        self.gone += 1

    def ask(self, head: Head, end: bool = True) -> tuple[Heard, Stream]:
        """Begin an exchange."""
        heard = Heard()
        stream = heard.stream = self.conn.open(heard)
        stream.head(head, end)
        return heard, stream
