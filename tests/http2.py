"""HTTP/2 codecs in this process: a loop in a thread that serves a toy application, and frames for hostile clients."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ParamSpec

import uvloop

from tproxy.core.http.head import Head, Headers, Reply
from tproxy.gateway.http.h2_client import H2Client
from tproxy.gateway.http.h2_codec import Codec
from tproxy.gateway.http.h2_frames import (
    ACK,
    FRAME,
    GOAWAY,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Code,
    frame,
    header_block,
    settings,
)
from tproxy.gateway.http.h2_hpack import Encoder
from tproxy.gateway.http.h2_limits import Limits
from tproxy.gateway.http.h2_server import H2Server
from tproxy.gateway.http.stream import Accept, Reset, Stream

P = ParamSpec("P")
Frames = list[tuple[int, int, int, bytes]]


@dataclass
class Echo:
    """Answers when the request is complete: the method, the target and the number of bytes; more by the target.

    ``/big/N`` is N bytes of body, ``/early`` answers before the request's body has come, ``/held`` takes none of it.
    """

    stream: Stream
    asked: Head
    got: bytearray = field(default_factory=bytearray)
    trailers: Headers = field(default_factory=list)
    resets: list[Reset] = field(default_factory=list)
    brakes: list[bool] = field(default_factory=list)

    def head(self, reply: Reply, end: bool) -> None:
        raise AssertionError

    def data(self, data: bytes) -> None:
        self.got += data

    def end(self, trailers: Headers) -> None:
        self.trailers = trailers
        if self.asked.target != "/early":
            self.answer()

    def answer(self) -> None:
        target = self.asked.target
        if target.startswith("/big/"):
            body = b"x" * int(target.removeprefix("/big/"))
        else:
            body = f"{self.asked.method} {target} {len(self.got)}\n".encode()
        self.stream.head(Reply(200, [("content-type", "text/plain"), ("content-length", str(len(body)))]), False)
        if self.asked.method != "HEAD":
            self.stream.data(body)
        self.stream.end()

    def reset(self, reset: Reset) -> None:
        self.resets.append(reset)

    def congested(self, on: bool) -> None:
        self.brakes.append(on)


@dataclass
class Site:
    """What came: one sink for each request, and what was refused."""

    sinks: list[Echo] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def accept(self, stream: Stream, head: Head, end: bool) -> Echo:
        sink = Echo(stream, head)
        self.sinks.append(sink)
        if head.target == "/held":
            stream.hold(True)
        if end or head.target == "/early":
            sink.answer()
        return sink

    def said(self, reset: Reset) -> None:
        self.refused.append(reset.why)


@contextmanager
def in_thread(begin: Callable[[], Codec]) -> Iterator[tuple[int, asyncio.AbstractEventLoop]]:
    """A port on loopback where a codec serves each connection, and the loop it runs in."""
    listener = socket.create_server(("127.0.0.1", 0))
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    made: list[Codec] = []

    def one() -> Codec:
        made.append(begin())
        return made[-1]

    async def start() -> asyncio.Server:
        return await loop.create_server(one, sock=listener)

    async def stop() -> None:
        server.close()
        for codec in made:
            if codec.transport is not None:
                codec.transport.abort()
        await asyncio.sleep(0.01)

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(5)
    try:
        yield listener.getsockname()[1], loop
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


@contextmanager
def serving(accept: Accept, limits: Limits | None = None, said: Callable[[Reset], None] = print) -> Iterator[int]:
    """A port where HTTP/2 is served in cleartext, with prior knowledge."""
    with in_thread(lambda: H2Server(accept, "http", limits or Limits(), said, lambda _: None)) as (port, _):
        yield port


class Memory(asyncio.Transport):
    """A transport that keeps what is written; ``full`` as long as the other end does not read."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = bytearray()
        self.closed = self.aborted = False
        self.over = asyncio.Event()
        protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True
        self.over.set()

    def abort(self) -> None:
        self.closed = self.aborted = True
        self.over.set()

    def take(self) -> bytes:
        """What was written since the last time."""
        data = bytes(self.written)
        self.written.clear()
        return data


def frames(data: bytes) -> Frames:
    """Type, flags, stream and payload of whole frames."""
    found = []
    while data:
        size = int.from_bytes(data[:3])
        assert len(data) >= 9 + size, "half a frame was written"
        found.append((data[3], data[4], int.from_bytes(data[5:9]), data[9 : 9 + size]))
        data = data[9 + size :]
    return found


@dataclass
class Raw:
    """A client that says what it likes to an ``H2Server``, and a toy application behind that."""

    limits: Limits = field(default_factory=Limits)
    site: Site = field(default_factory=Site)
    encoder: Encoder = field(default_factory=Encoder)

    def __post_init__(self) -> None:
        self.server = H2Server(self.site.accept, "https", self.limits, self.site.said, lambda _: None)
        self.transport = Memory(self.server)

    def greet(self) -> None:
        """The preface, SETTINGS and an acknowledgement; what the server says to them is dropped."""
        self.server.data_received(PREFACE + settings([]) + frame(SETTINGS, ACK, 0))
        self.transport.take()

    def say(self, *said: bytes) -> Frames:
        """Send frames; those that come back at once."""
        self.server.data_received(b"".join(said))
        return frames(self.transport.take())

    def get(self, number: int, target: str = "/", end: bool = True, *more: tuple[str, str]) -> bytes:
        """HEADERS of a plain request."""
        method = "GET" if end else "POST"
        fields = [(":method", method), (":scheme", "https"), (":authority", "a.test"), (":path", target), *more]
        return header_block(number, self.encoder.encode(fields), end, FRAME)


def ended(seen: Frames) -> Code | None:
    """How GOAWAY says that the connection ended; None when there is none."""
    return next((Code(int.from_bytes(payload[4:8])) for kind, _, _, payload in seen if kind == GOAWAY), None)


def reset(seen: Frames) -> dict[int, Code]:
    """Streams that were reset, and why."""
    return {number: Code(int.from_bytes(payload)) for kind, _, number, payload in seen if kind == RST_STREAM}


def in_loop(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """A test that runs in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **named: P.kwargs) -> None:
        asyncio.run(test(*args, **named))

    return run


class Joined:
    """A toy gateway: each request goes to one HTTP/2 backend as it is, and back. The sink of the client's side."""

    def __init__(self, client: H2Client, down: Stream, head: Head, end: bool) -> None:
        self.up: Stream = client.open(Back(down, self))
        self.over = False
        self.up.head(head, end)

    def head(self, reply: Reply, end: bool) -> None:
        raise AssertionError

    def data(self, data: bytes) -> None:
        self.up.data(data)

    def end(self, trailers: Headers) -> None:
        self.up.end(trailers)

    def reset(self, reset: Reset) -> None:
        if not self.over:
            self.up.reset(reset)

    def congested(self, on: bool) -> None:
        self.up.hold(on)


@dataclass
class Back:
    """The sink of the backend's side."""

    down: Stream
    joined: Joined

    def head(self, reply: Reply, end: bool) -> None:
        self.joined.over = end
        self.down.head(reply, end)

    def data(self, data: bytes) -> None:
        self.down.data(data)

    def end(self, trailers: Headers) -> None:
        self.joined.over = True
        self.down.end(trailers)

    def reset(self, reset: Reset) -> None:
        self.joined.over = True
        self.down.reset(reset)

    def congested(self, on: bool) -> None:
        self.down.hold(on)
