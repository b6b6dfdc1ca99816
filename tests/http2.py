"""HTTP/2 codecs in this process: a loop in a thread that serves a toy application, and frames for hostile clients."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvloop

from tproxy.core.http import Head, Headers, Reply
from tproxy.gateway.http.h2_limits import Limits
from tproxy.gateway.http.h2_server import H2Server
from tproxy.gateway.http.stream import Accept, Reset, Stream


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
def in_thread(begin: Callable[[], asyncio.Protocol]) -> Iterator[tuple[int, asyncio.AbstractEventLoop]]:
    """A port on loopback where a codec serves each connection, and the loop it runs in."""
    listener = socket.create_server(("127.0.0.1", 0))
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> asyncio.Server:
        return await loop.create_server(begin, sock=listener)

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(5)
    try:
        yield listener.getsockname()[1], loop
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


@contextmanager
def serving(accept: Accept, limits: Limits | None = None, said: Callable[[Reset], None] = print) -> Iterator[int]:
    """A port where HTTP/2 is served in cleartext, with prior knowledge."""
    with in_thread(lambda: H2Server(accept, limits or Limits(), said)) as (port, _):
        yield port
