"""A way out of the pod for gRPC, whose sockets cannot carry our mark: unmarked, they would be captured like anyone's.

The connection is made by us, with the mark, and handed to gRPC through a socket in the abstract namespace (unix(7))
that takes one connection, and only from this process. gRPC speaks its TLS through it; we see ciphertext.
"""

from __future__ import annotations

import asyncio
import contextlib
import encodings.idna  # noqa: F401  # names are resolved through it, when Python's files can no longer be read
import os
import secrets
import socket
import struct
from collections.abc import AsyncIterator
from ipaddress import ip_address

from tproxy.core.address import Endpoint
from tproxy.core.settings import Marks
from tproxy.kernel.sock import dialer

CHUNK = 64 * 1024
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred (unix(7))


@contextlib.asynccontextmanager
async def outward(address: str, seconds: float) -> AsyncIterator[str]:
    """A gRPC target that leads to ``address`` (host:port). OSError or TimeoutError if nobody answers there."""
    async with asyncio.timeout(seconds):
        remote = await _dialled(address)
    name = f"tproxy-{secrets.token_hex(8)}"
    with remote, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as door:
        door.bind("\0" + name)
        door.listen(1)
        carrying = asyncio.create_task(_carry(door, remote))
        try:
            yield f"unix-abstract:{name}"
        finally:
            carrying.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await carrying


async def _dialled(address: str) -> socket.socket:
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    for index, (*_, name) in enumerate(found):
        sock = dialer(Endpoint(ip_address(name[0]), int(port)), Marks().own)
        try:
            await loop.sock_connect(sock, name)
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError) or index == len(found) - 1:
                raise
        else:
            return sock
    raise OSError(f"{host} has no address")


async def _carry(door: socket.socket, remote: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    near, _ = await loop.sock_accept(door)
    with near:
        pid, *_ = _CREDENTIALS.unpack(near.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if pid != os.getpid():  # an application of this pod: not its way
            return
        door.close()
        near.setblocking(False)
        async with asyncio.TaskGroup() as both:
            both.create_task(_pump(near, remote))
            both.create_task(_pump(remote, near))


async def _pump(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(source, CHUNK):
            await loop.sock_sendall(target, data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
