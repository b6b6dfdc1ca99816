"""The PROXY header in front of a connection: looked at, judged, and taken off the stream, not a byte more."""

from __future__ import annotations

import asyncio
import socket

from tproxy.core.proxy_protocol import LIMIT, Header, More, NotProxy, parse
from tproxy.core.reason import Deny, Reason
from tproxy.proxy.compiled import AnyReactor


async def header(sock: socket.socket, seconds: float, reactor: AnyReactor) -> Header | Deny:
    """Who the load balancer says the client is; never raises on what it sends."""
    try:
        async with asyncio.timeout(seconds):
            return await _header(sock, reactor)
    except TimeoutError:
        return Deny(Reason.PROXY_HEADER, f"no whole PROXY header arrived in {seconds:g} s")
    except OSError:
        return Deny(Reason.PROXY_HEADER, "the peer left before its PROXY header was complete")
    finally:
        if sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def _header(sock: socket.socket, reactor: AnyReactor) -> Header | Deny:
    seen = b""
    while True:
        await reactor.readable(sock)
        data = sock.recv(LIMIT, socket.MSG_PEEK)
        if data == seen:
            raise ConnectionResetError  # readable, yet nothing new: the end
        seen = data
        match parse(data):
            case Header(size=size) as found:
                sock.recv(size)
                return found
            case NotProxy(why):
                return Deny(Reason.PROXY_HEADER, why)
            case More(at_least):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, at_least)
