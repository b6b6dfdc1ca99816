"""Plaintext connections: the first bytes say whether it is HTTP/2 (prior knowledge: RFC 9113, 3.3) or HTTP/1.1."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from tproxy.gateway.http.h1_server import H1Server
from tproxy.gateway.http.h2_frames import PREFACE
from tproxy.gateway.http.h2_server import H2Server
from tproxy.gateway.http.wheel import Timer, Wheel

ENOUGH = 18  # bytes of the preface, until which nothing else looks like it


class Either(asyncio.Protocol):
    """Hands the transport to one of two codecs, and speaks for that one from then on."""

    def __init__(
        self,
        one: Callable[[], H1Server],
        two: Callable[[], H2Server],
        wheel: Wheel,
        seconds: float,
        ended: Callable[[Exception | None], None],
    ) -> None:
        self._one, self._two, self._wheel, self._seconds, self._ended = one, two, wheel, seconds, ended
        self._codec: H1Server | H2Server | None = None
        self._transport: asyncio.Transport
        self._first = b""
        self._timer = Timer(self._expired)
        self._draining = False

    @property
    def received(self) -> int:
        """Bytes."""
        return len(self._first) if self._codec is None else self._codec.received

    @property
    def sent(self) -> int:
        """Bytes."""
        return 0 if self._codec is None else self._codec.sent

    def drain(self) -> None:
        """No request after those at hand."""
        self._draining = True
        if self._codec is not None:
            self._codec.drain()
        elif not self._first:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._wheel.arm(self._timer, self._seconds)

    def data_received(self, data: bytes) -> None:
        first = self._first = self._first + data
        if len(first) < ENOUGH and PREFACE.startswith(first):
            return
        self._wheel.end(self._timer)
        self._codec = codec = self._two() if first.startswith(PREFACE[:ENOUGH]) else self._one()
        self._transport.set_protocol(codec)
        codec.connection_made(self._transport)
        codec.data_received(first)
        if self._draining:
            codec.drain()

    def _expired(self) -> None:
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wheel.end(self._timer)
        self._ended(exc)
