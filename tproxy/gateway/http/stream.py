"""The seam between codecs (HTTP/1.1, HTTP/2; servers and clients) and what joins them.

A codec is an asyncio.Protocol of one connection. For each message exchange on it there is one ``Stream``, which the
codec makes and others send with, and one ``Sink``, which others make and the codec tells what arrives. Nothing here
awaits; nothing raises for what a peer does: that is ``reset``.

Order on both: head (responses: after any number of interim ones), data, then ``end`` with trailers; or ``reset`` at any
time, after which nothing comes and what is sent is dropped silently. After ``end`` of both directions a stream is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol, TypeAlias

from tproxy.core.http.head import Head, Headers, Reply


class Broken(Enum):
    """Why an exchange ended before its end."""

    CONNECT = auto()  # no connection could be had
    UNPROCESSED = auto()  # the peer says that it has not looked at it: REFUSED_STREAM, GOAWAY, closed before any byte
    CLOSED = auto()  # the connection ended within it
    RESET = auto()  # RST or RST_STREAM
    MALFORMED = auto()  # the peer's bytes are not HTTP
    TIMEOUT = auto()
    OVERLOAD = auto()  # a limit of ours


@dataclass(frozen=True, slots=True)
class Reset:
    """An early end, with a sentence for the log."""

    kind: Broken
    why: str = ""


class Stream(Protocol):
    """Our sending side of one exchange, and the brake on what arrives."""

    def head(self, head: Head | Reply, end: bool) -> None:
        """A server's codec takes a Reply, a client's a Head; with ``end`` there is no body and no trailer."""

    def data(self, data: bytes) -> None:
        """Bytes of the body; never refused, but see ``Sink.congested``."""

    def end(self, trailers: Headers | None = None) -> None:
        """The direction is complete."""

    def reset(self, reset: Reset) -> None:
        """Give up both directions; a client's HTTP/1.1 connection is closed, an HTTP/2 stream is reset."""

    def hold(self, on: bool) -> None:
        """Stop or resume reading of this exchange's body: at most one read or one flow window more arrives."""


class Sink(Protocol):
    """What one exchange's peer sent. A server's codec never calls ``head``: the Head made the sink."""

    def head(self, reply: Reply, end: bool) -> None:
        """A response began; 1xx may come before it."""

    def data(self, data: bytes) -> None:
        """Bytes of the body."""

    def end(self, trailers: Headers) -> None:
        """The peer's direction is complete."""

    def reset(self, reset: Reset) -> None:
        """The peer or its connection gave up; nothing comes any more."""

    def congested(self, on: bool) -> None:
        """More than the limit is waiting to be sent on our side (True), or it has gone down again (False)."""


class Nobody:
    """The sink of a stream that is done: keeping its last one would make a circle that only the collector breaks."""

    def head(self, reply: Reply, end: bool) -> None:
        """Nothing."""

    def data(self, data: bytes) -> None:
        """Nothing."""

    def end(self, trailers: Headers) -> None:
        """Nothing."""

    def reset(self, reset: Reset) -> None:
        """Nothing."""

    def congested(self, on: bool) -> None:
        """Nothing."""


NOBODY: Final = Nobody()

Accept: TypeAlias = Callable[[Stream, Head, bool], Sink]
"""What a server's codec calls for each request: its stream, its head, and whether that is all of it."""


class Client(Protocol):
    """A client's codec on a connection: made by a pool."""

    @property
    def room(self) -> int:
        """How many more exchanges may begin on it now; 0 for ever once it is closing."""

    def open(self, sink: Sink) -> Stream:
        """A new exchange; its head comes next."""

    def close(self) -> None:
        """No new exchanges; the connection ends with its last one."""
