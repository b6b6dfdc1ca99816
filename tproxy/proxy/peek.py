"""The first bytes of a connection, looked at and left where they are (MSG_PEEK)."""

from __future__ import annotations

import asyncio
import socket

from tproxy.core.decide import First, Gone, Silence
from tproxy.core.hello import NeedMore, parse
from tproxy.proxy.compiled import AnyReactor

LIMIT = 16 * 1024  # bytes of a ClientHello


async def first(sock: socket.socket, seconds: float, reactor: AnyReactor) -> First:
    """What the caller speaks, as far as it can be told within ``seconds``; never raises on what a caller does."""
    try:
        seen = _look(sock, Silence(seconds))
        return await _later(sock, seen, seconds, reactor) if isinstance(seen, Silence | NeedMore) else seen
    except OSError:
        return Gone()


async def _later(sock: socket.socket, seen: First, seconds: float, reactor: AnyReactor) -> First:
    """It has not said enough yet."""
    try:
        async with asyncio.timeout(seconds):
            while isinstance(seen, Silence | NeedMore):
                if isinstance(seen, NeedMore):  # sleep until there is more than that: readiness is level-triggered
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, max(seen.at_least, seen.have + 1))
                await reactor.readable(sock)
                seen = _look(sock, seen)
    except TimeoutError:
        pass
    finally:
        _reset(sock)
    return seen


def _look(sock: socket.socket, before: First) -> First:
    try:
        data = sock.recv(LIMIT + 1, socket.MSG_PEEK)
    except BlockingIOError:
        return before
    if not data or (isinstance(before, NeedMore) and before.have == len(data)):
        return Gone()  # readable, yet nothing new: the end
    return parse(data, LIMIT)


def _reset(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    except OSError:
        return
