"""A copy of a request for somebody whose answer nobody reads, and who may neither slow nor break the original."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeAlias

from tproxy.core.address import Endpoint
from tproxy.core.http.head import Head, Headers, Reply
from tproxy.core.routes import Backend
from tproxy.gateway.http.engine import Engine
from tproxy.gateway.http.pool import Pool
from tproxy.gateway.http.stream import Broken, Client, Reset, Stream

Mirrors: TypeAlias = tuple[tuple[Backend, Head], ...]


def shadows(engine: Engine, mirrors: Mirrors, end: bool) -> tuple[Shadow, ...]:
    """One for each mirror that somebody stands behind."""
    return tuple(
        Shadow(
            head, end, engine.pool(backend, random.choice(_left(engine, backend)), head.authority), engine.limits.buffer
        )
        for backend, head in mirrors
        if backend.endpoints
    )


def _left(engine: Engine, backend: Backend) -> Sequence[Endpoint]:
    """Those that are not left out for failing; all, where all are."""
    return (
        backend.endpoints
        if backend.care is None
        else engine.guards.of(backend).left(backend.endpoints) or backend.endpoints
    )


class Shadow:
    """Given up when more than ``most`` bytes would have to wait for it."""

    __slots__ = ("_ended", "_head", "_kept", "_most", "_over", "_pool", "_size", "_stream")

    def __init__(self, head: Head, end: bool, pool: Pool, most: int) -> None:
        self._head, self._ended, self._pool, self._most = head, end, pool, most
        self._stream: Stream | None = None
        self._kept: list[bytes] = []
        self._size = 0
        self._over = False
        client = pool.take(self)
        if client is not None:
            self.connected(client)

    def pass_on(self, data: bytes) -> None:
        """More of the body."""
        if self._over:
            return
        if self._stream is not None:
            self._stream.data(data)
            return
        self._size += len(data)
        self._kept.append(data)
        if self._size > self._most:
            self.give_up(Reset(Broken.OVERLOAD, "the mirror is slow"))

    def finish(self, trailers: Headers) -> None:
        """All of the request."""
        self._ended = True
        if self._stream is not None and not self._over:
            self._stream.end(trailers)

    def give_up(self, reset: Reset) -> None:
        """It gets no more."""
        if self._over:
            return
        self._over = True
        self._kept.clear()
        if self._stream is not None:
            self._stream.reset(reset)
        else:
            self._pool.leave(self)

    def connected(self, client: Client) -> None:
        """Say what was said so far."""
        self._stream = client.open(self)
        self._stream.head(self._head, self._ended and not self._kept)
        for data in self._kept:
            self._stream.data(data)
        if self._ended and self._kept:
            self._stream.end()
        self._kept.clear()

    def failed(self, reset: Reset) -> None:
        """Nobody is told."""
        self._over = True

    def head(self, reply: Reply, end: bool) -> None:
        """Of no interest."""

    def data(self, data: bytes) -> None:
        """Of no interest."""

    def end(self, trailers: Headers) -> None:
        """Of no interest."""

    def reset(self, reset: Reset) -> None:
        """It broke; the original does not care."""
        self._over = True

    def congested(self, on: bool) -> None:
        """Who cannot keep up gets no more: the original does not wait."""
        if on:
            self.give_up(Reset(Broken.OVERLOAD, "the mirror is slow"))
