"""HTTP connections of a gateway: accept -> read a request -> plan -> exchange -> record, until the client leaves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import cast

from tproxy.core.hostnames import HostTable
from tproxy.core.http import Head
from tproxy.core.http_forwarded import Client as Caller
from tproxy.core.http_routes import HttpTable
from tproxy.core.reason import Deny
from tproxy.core.record import Outcome, Record
from tproxy.core.routes import HttpListener, Terminate, TlsListener, by_sni
from tproxy.gateway.gate import Door
from tproxy.gateway.http.begin import accept
from tproxy.gateway.http.either import Either
from tproxy.gateway.http.h1_server import H1Server
from tproxy.gateway.http.h2_limits import Limits as H2Limits
from tproxy.gateway.http.h2_server import H2Server
from tproxy.gateway.http.stream import Sink, Stream
from tproxy.gateway.tls import Told, secure
from tproxy.kernel.sock import reset_on_close
from tproxy.proxy.pump import Moved
from tproxy.proxy.trace import Trace

Codec = Callable[[Caller, str], asyncio.Protocol]  # with what ALPN agreed on
H2_LIMITS = H2Limits()
NO_TABLE = HttpTable(HostTable(()))


async def plain(down: socket.socket, trace: Trace, door: Door) -> Record:
    """Plaintext HTTP on a port."""
    caller = Caller(str(trace.source.ip), "http", trace.target.port)

    def table() -> HttpTable:
        listener = door.listener
        return listener.table if isinstance(listener, HttpListener) else NO_TABLE

    async def begin(make: Codec) -> asyncio.BaseTransport:
        reset_on_close(down, False)
        conn = make(caller, "")
        return (await asyncio.get_running_loop().connect_accepted_socket(lambda: conn, down))[0]

    return await serve(begin, trace, door, table)


async def ended(down: socket.socket, chain: Terminate, trace: Trace, door: Door) -> Record:
    """HTTP within TLS that we end. The name's table may be replaced meanwhile, but not what is asked of clients."""

    def table() -> HttpTable:
        listener = door.listener
        if not isinstance(listener, TlsListener):
            return NO_TABLE
        match by_sni(listener, trace.sni or door.gate.settings.default_sni):
            case Terminate(tls=tls, inside=HttpTable() as found) if tls.check == chain.tls.check:
                return found
            case _:
                return NO_TABLE

    async def begin(make: Codec) -> asyncio.BaseTransport | Deny:
        def made(told: Told) -> asyncio.Protocol:
            return make(Caller(str(trace.source.ip), "https", trace.target.port, trace.sni, told.xfcc), told.alpn)

        return await secure(down, chain, made, trace, door)

    return await serve(begin, trace, door, table)


async def serve(
    begin: Callable[[Codec], Awaitable[asyncio.BaseTransport | Deny]],
    trace: Trace,
    door: Door,
    table: Callable[[], HttpTable],
) -> Record:
    """Requests on a connection until it ends, or until we stop."""
    web = door.gate.web
    ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def gone(error: Exception | None) -> None:
        if not ended.done():
            ended.set_result(error)

    def codec(caller: Caller, alpn: str) -> asyncio.Protocol:
        def each(stream: Stream, head: Head, end: bool) -> Sink:
            return accept(web.engine, table(), caller, stream, head, end)

        def one() -> H1Server:
            return H1Server(each, caller.scheme, web.engine.wheel, web.engine.limits, web.refused, gone)

        def two() -> H2Server:
            return H2Server(each, caller.scheme, H2_LIMITS, web.refused_stream, gone)

        conn = two() if alpn == "h2" else Either(one, two, web.engine.wheel, web.engine.limits.head, gone)
        made.append(conn)
        return conn

    made: list[H2Server | Either] = []
    transport = await begin(codec)
    if isinstance(transport, Deny):
        return trace.refused(transport)
    conn = made[0]
    web.open.add(conn)
    if web.draining:
        conn.drain()
    try:
        error = await ended
    except asyncio.CancelledError:
        cast(asyncio.Transport, transport).abort()
        return trace.moved(Moved(conn.received, conn.sent, Outcome.CUT, "sidecar"))
    finally:
        web.open.discard(conn)
    outcome = Outcome.CLOSED if error is None else Outcome.RESET
    return trace.moved(Moved(conn.received, conn.sent, outcome, "source"))
