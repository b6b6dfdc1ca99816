"""How the application's connection is refused: with RST, or, where it speaks HTTP and that is configured, with 503."""

from __future__ import annotations

import asyncio
import re
import socket

from tproxy.core.config import Config
from tproxy.core.reason import Deny
from tproxy.kernel.sock import abort, reset_on_close
from tproxy.proxy.compiled import AnyReactor
from tproxy.proxy.trace import Trace
from tproxy.proxy.wait import send_all

REQUEST = re.compile(rb"[A-Z]{3,16} ")  # RFC 9112, 3: a method and one space
SECONDS = 1.0  # for the request to come, and for the caller to hang up


async def refuse(down: socket.socket, deny: Deny, trace: Trace, config: Config, reactor: AnyReactor) -> None:
    """Either way the socket is closed."""
    try:
        if trace.target.port in config.egress_routes.http503:
            async with asyncio.timeout(SECONDS):
                await _answer(down, deny, reactor)
    except (OSError, TimeoutError):
        pass
    finally:
        if down.fileno() >= 0:
            abort(down)


async def _answer(down: socket.socket, deny: Deny, reactor: AnyReactor) -> None:
    await reactor.readable(down)
    if not REQUEST.match(down.recv(64, socket.MSG_PEEK)):
        return
    body = f"tproxy: {deny.reason}: {deny.why}\n{deny.advice}\n".encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: {len(body)}\r\n"
    await send_all(down, head.encode() + b"connection: close\r\n\r\n" + body)
    down.shutdown(socket.SHUT_WR)
    while True:  # what is left unread would make a reset of the end, and the answer would be lost
        await reactor.readable(down)
        if not down.recv(65536):
            break
    reset_on_close(down, False)
    down.close()
