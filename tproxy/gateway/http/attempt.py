"""One try of an exchange at a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tproxy.core.address import Endpoint
from tproxy.core.http.head import Headers, Reply
from tproxy.gateway.http.pool import Pool
from tproxy.gateway.http.stream import Client, Reset, Stream
from tproxy.gateway.http.wheel import Timer

if TYPE_CHECKING:
    from tproxy.gateway.http.exchange import Exchange


class Attempt:
    """One try at a backend: waits for a connection, then is the sink of its answer."""

    __slots__ = ("_exchange", "_over", "client", "pool", "stream", "timer")

    def __init__(self, exchange: Exchange, pool: Pool) -> None:
        self._exchange, self.pool = exchange, pool
        self.client: Client | None = None
        self.stream: Stream | None = None
        self.timer: Timer | None = None
        self._over = False

    @property
    def over(self) -> bool:
        """Whether what becomes of it is nobody's any more."""
        return self._over

    def connected(self, client: Client) -> None:
        """Send what there is."""
        self.client = client
        self.stream = client.open(self)
        self._exchange.request(self, self.stream)

    def local(self) -> str:
        """Our address towards the backend."""
        transport = getattr(self.client, "transport", None)
        name = transport.get_extra_info("sockname") if transport is not None else None
        return str(Endpoint.of_socket(name)) if name else ""

    def failed(self, reset: Reset) -> None:
        """No connection."""
        self.reset(reset)

    def pass_on(self, data: bytes) -> None:
        """More of the request."""
        if self.stream is not None and not self._over:
            self.stream.data(data)

    def finish(self, trailers: Headers) -> None:
        """All of the request."""
        if self.stream is not None and not self._over:
            self.stream.end(trailers)

    def head(self, reply: Reply, end: bool) -> None:
        if not self._over and self._exchange.replied(self, reply, end) and (reply.status >= 200 or reply.status == 101):
            self.unwatch()

    def data(self, data: bytes) -> None:
        if not self._over:
            self._exchange.received(data)

    def end(self, trailers: Headers) -> None:
        if not self._over:
            self._exchange.completed(trailers)

    def reset(self, reset: Reset) -> None:
        if not self._over:
            self._over = True
            self.unwatch()
            self._exchange.failed(self, reset)

    def congested(self, on: bool) -> None:
        if not self._over:
            self._exchange.slow(on)

    def late(self) -> None:
        """Its own deadline."""
        self.timer = None
        if not self._over:
            self._exchange.late_try(self)

    def unwatch(self) -> None:
        """An answer began, or none is awaited."""
        if self.timer is not None:
            self._exchange.engine.wheel.stop(self.timer)
            self.timer = None

    def give_up(self, reset: Reset) -> None:
        """Another one takes its place, or nobody waits any more."""
        self._over = True
        self.unwatch()
        if self.stream is not None:
            self.stream.reset(reset)
        else:
            self.pool.leave(self)
