"""Connecting without blocking: to a pod, an application, a backend, a router."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING

from tproxy.core.address import Address, Endpoint
from tproxy.core.reason import Deny, Reason
from tproxy.kernel.sock import dialer
from tproxy.proxy.compiled import AnyReactor

if TYPE_CHECKING:
    from tproxy.core.config import Config

BORROWED = 16  # ports that are tried where the caller's address is borrowed


async def dial(
    target: Endpoint, config: Config, reactor: AnyReactor, source: Address | None = None
) -> socket.socket | Deny:
    """A connected socket, or why there is none."""
    return await reach(target, config.marks.own, config.limits.connect, reactor, source)


async def reach(
    target: Endpoint, mark: int, seconds: float, reactor: AnyReactor, source: Address | None = None
) -> socket.socket | Deny:
    """A connected socket with this mark (0: none), or why there is none."""
    try:
        return await _connected(target, mark, seconds, reactor, source)
    except TimeoutError:
        return Deny(Reason.CONNECT_TIMEOUT, f"{target} did not answer in {seconds:g} s")
    except OSError as error:
        refused = error.errno == errno.ECONNREFUSED
        name = Reason.CONNECT_REFUSED if refused else Reason.CONNECT_FAILED
        return Deny(name, f"connecting to {target}: {error.strerror}")


async def _connected(
    target: Endpoint, mark: int, seconds: float, reactor: AnyReactor, source: Address | None
) -> socket.socket:
    """Another borrowed port is tried when the one we drew is in use towards this target, which is known at once."""
    left = 1 if source is None else BORROWED
    while True:
        sock = dialer(target, mark, source)
        try:
            await _connect(sock, target, seconds, reactor)
        except OSError as error:
            sock.close()
            left -= 1
            if not left or error.errno != errno.EADDRNOTAVAIL:
                raise
        except BaseException:
            sock.close()
            raise
        else:
            return sock


async def _connect(sock: socket.socket, target: Endpoint, seconds: float, reactor: AnyReactor) -> None:
    """OSError as the kernel reports it; TimeoutError."""
    name = str(target.ip), target.port
    code = sock.connect_ex(name)
    if code == errno.EINPROGRESS:
        code = sock.connect_ex(name)  # on one node the peer's answer is there before the first call has returned
    if code == errno.EALREADY:
        async with asyncio.timeout(seconds):
            await reactor.writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
