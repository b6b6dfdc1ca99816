"""HTTP connections of a gateway: accept -> read a request -> plan -> exchange -> record, until the client leaves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from tproxy.core.hostnames import HostTable
from tproxy.core.http import Head
from tproxy.core.http_forwarded import Client as Caller
from tproxy.core.http_routes import HttpTable
from tproxy.core.record import Outcome, Record
from tproxy.core.routes import HttpListener
from tproxy.gateway.gate import Door
from tproxy.gateway.http.begin import accept
from tproxy.gateway.http.either import Either
from tproxy.gateway.http.h1_server import H1Server
from tproxy.gateway.http.h2_limits import Limits as H2Limits
from tproxy.gateway.http.h2_server import H2Server
from tproxy.gateway.http.stream import Sink, Stream
from tproxy.kernel.sock import reset_on_close
from tproxy.proxy.pump import Moved
from tproxy.proxy.trace import Trace

H2_LIMITS = H2Limits()
NO_TABLE = HttpTable(HostTable(()))


async def plain(down: socket.socket, trace: Trace, door: Door) -> Record:
    """Plaintext HTTP on a port."""
    caller = Caller(str(trace.source.ip), "http", trace.target.port)

    def table() -> HttpTable:
        listener = door.listener
        return listener.table if isinstance(listener, HttpListener) else NO_TABLE

    return await serve(down, trace, door, caller, table)


async def serve(
    down: socket.socket, trace: Trace, door: Door, caller: Caller, table: Callable[[], HttpTable]
) -> Record:
    """Requests on a connected socket until it ends, or until we stop."""
    web = door.gate.web
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Exception | None] = loop.create_future()

    def begin(stream: Stream, head: Head, end: bool) -> Sink:
        return accept(web.engine, table(), caller, stream, head, end)

    def gone(error: Exception | None) -> None:
        if not ended.done():
            ended.set_result(error)

    reset_on_close(down, False)

    def one() -> H1Server:
        return H1Server(begin, caller.scheme, web.engine.wheel, web.engine.limits, web.refused, gone)

    def two() -> H2Server:
        return H2Server(begin, caller.scheme, H2_LIMITS, web.refused_stream, gone)

    conn = Either(one, two, web.engine.wheel, web.engine.limits.head, gone)
    transport, _ = await loop.connect_accepted_socket(lambda: conn, down)
    web.open.add(conn)
    if web.draining:
        conn.drain()
    try:
        error = await ended
    except asyncio.CancelledError:
        transport.abort()
        return trace.moved(Moved(conn.received, conn.sent, Outcome.CUT, "sidecar"))
    finally:
        web.open.discard(conn)
    outcome = Outcome.CLOSED if error is None else Outcome.RESET
    return trace.moved(Moved(conn.received, conn.sent, outcome, "source"))
