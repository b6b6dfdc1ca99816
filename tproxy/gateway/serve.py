"""HTTP connections of a gateway: accept -> read a request -> plan -> exchange -> record, until the client leaves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias, cast

from tproxy.core.hostnames import HostTable
from tproxy.core.http.forwarded import Client as Caller
from tproxy.core.http.head import Head
from tproxy.core.http.local import Answer
from tproxy.core.http.plan import fallen
from tproxy.core.http.routes import HttpTable
from tproxy.core.policy.policy import Policy
from tproxy.core.reason import Deny, Reason
from tproxy.core.record import Outcome, Record
from tproxy.core.routes import HttpListener, Listener, Terminate, TlsListener, by_sni
from tproxy.gateway.gate import Door
from tproxy.gateway.http.begin import accept
from tproxy.gateway.http.either import Either
from tproxy.gateway.http.h1_head import Refusal
from tproxy.gateway.http.h1_server import H1Server
from tproxy.gateway.http.h2_server import H2Server
from tproxy.gateway.http.stream import Broken, Reset, Sink, Stream
from tproxy.gateway.tls import Told, secure
from tproxy.kernel.sock import reset_on_close
from tproxy.proxy.legs import PlainLeg, TruncatedError
from tproxy.proxy.pump import Moved
from tproxy.proxy.trace import Trace

NO_TABLE = HttpTable(HostTable(()))
Codec: TypeAlias = "Either | H2Server"


async def plain(down: socket.socket, trace: Trace, door: Door) -> Record:
    """Plaintext HTTP on a port."""

    def table() -> HttpTable:
        listener = door.listener
        return listener.table if isinstance(listener, HttpListener) else NO_TABLE

    served = _Served(door, trace, Caller(str(trace.source.ip), "http", trace.target.port, link=trace), table)
    conn = served.codec("")
    reset_on_close(down, False)
    leg = PlainLeg(
        socket.socket(fileno=down.detach())
    )  # the transport's alone, which may outlive the connection's task
    return await served.until_end(conn, door.gate.reactor.attach(leg, conn))


async def ended(down: socket.socket, chain: Terminate, trace: Trace, door: Door) -> Record:
    """HTTP within TLS that we end. The name's table may be replaced meanwhile, but not what is asked of clients."""

    seen: Listener | None = None
    found = NO_TABLE

    def table() -> HttpTable:
        nonlocal seen, found
        if (listener := door.listener) is not seen:  # another one after a reload
            seen, found = listener, _within(listener, chain, trace.sni or door.gate.settings.default_sni)
        return found

    caller = Caller(str(trace.source.ip), "https", trace.target.port, trace.sni, link=trace)
    served = _Served(door, trace, caller, table)

    def made(told: Told) -> Codec:
        served.caller = replace(served.caller, xfcc=told.xfcc, peer=told.peer)
        return served.codec(told.alpn)

    transport = await secure(down, chain, made, trace, door)
    if isinstance(transport, Deny):
        served.web.journal.no_connection(transport, trace)
        return trace.refused(transport)
    return await served.until_end(served.made, transport)


def _within(listener: Listener | None, chain: Terminate, name: str) -> HttpTable:
    """What a name's requests meet now."""
    if not isinstance(listener, TlsListener):
        return NO_TABLE
    match by_sni(listener, name):
        case Terminate(tls=tls, inside=HttpTable() as table) if tls.check == chain.tls.check:
            return table
        case _:
            return NO_TABLE


class _Served:
    """One connection, whichever codec it gets."""

    def __init__(self, door: Door, trace: Trace, caller: Caller, table: Callable[[], HttpTable]) -> None:
        self.door, self.web, self.trace, self.caller, self.table = door, door.gate.web, trace, caller, table
        self.loop = asyncio.get_running_loop()
        self.made: Codec
        self._ended: asyncio.Future[Exception | None] = self.loop.create_future()

    def codec(self, alpn: str) -> Codec:
        """As was agreed on; where nothing was, as the first bytes say."""
        web = self.web
        if alpn == "h2":
            self.made = self._two()
        else:
            self.made = Either(self._one, self._two, web.engine.wheel, web.limits.head, self._gone)
        return self.made

    def _one(self) -> H1Server:
        wheel, limits = self.web.engine.wheel, self.web.limits
        return H1Server(self._accept, self.caller.scheme, wheel, limits, self._refused, self._gone)

    def _two(self) -> H2Server:
        return H2Server(self._accept, self.caller.scheme, self.web.h2, self._refused_stream, self._gone)

    def _accept(self, stream: Stream, head: Head, end: bool) -> Sink:
        return accept(self.web.engine, self, self.caller, self.trace, stream, head, end)

    @property
    def policy(self) -> Policy | None:
        """That of this moment."""
        return self.door.policy

    def fallen(self, head: Head, caller: Caller) -> Answer | None:
        """By the policy of this moment."""
        policy = self.policy
        return None if policy is None else fallen(policy, self.table(), head, caller)

    def cut(self, answer: Answer, head: Head) -> None:
        """With HTTP/1.1 the connection breaks off with it."""
        if head.version != "HTTP/2":
            self.trace.verdict = Deny(Reason.CUT_BY_POLICY, answer.why, answer.rule)

    def _refused(self, refusal: Refusal) -> None:
        self.web.journal.refused(refusal, self.trace)

    def _refused_stream(self, reset: Reset) -> None:
        self.web.journal.refused(Refusal(408 if reset.kind is Broken.TIMEOUT else 400, reset.why), self.trace)

    def _gone(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(error)

    async def until_end(self, conn: Codec, transport: asyncio.BaseTransport) -> Record:
        """Requests until it ends, or until we stop."""
        self.web.open.add(conn)
        if self.web.draining:
            conn.drain()
        try:
            error = await self._ended
        except asyncio.CancelledError:
            cast(asyncio.Transport, transport).abort()
            return self.trace.moved(Moved(conn.received, conn.sent, Outcome.CUT, "sidecar"))
        finally:
            self.web.open.discard(conn)
            del self.made  # each holds the other: its memory goes now, and not with a collection
        if self.trace.verdict is not None:
            return self.trace.moved(Moved(conn.received, conn.sent, Outcome.CUT, "sidecar"))
        left = error is None or isinstance(error, TruncatedError)  # no close_notify: HTTP itself says what is whole
        outcome = Outcome.CLOSED if left else Outcome.RESET
        why = error if isinstance(error, TimeoutError) else None
        return self.trace.moved(Moved(conn.received, conn.sent, outcome, "source", why))
