"""Ports that several processes share (SO_REUSEPORT), claimed for one family of them.

The kernel lets any process of the same user join, and would give a second gateway half of the first one's connections.
A claim is two abstract unix sockets (unix(7)): of this network namespace as ports are, and gone with their process. One
says that the port is claimed, the other, which comes after it, for which family, a name that it has drawn.
"""

from __future__ import annotations

import errno
import socket
import time

from tproxy.kernel.errors import KernelError

_PATIENCE, _TURN = 0.1, 0.002  # seconds: for a sibling that is between the two


class Claim:
    """Kept as long as the port is."""

    def __init__(self, *socks: socket.socket) -> None:
        self._socks = socks

    def close(self) -> None:
        """Somebody else may have it."""
        for sock in self._socks:
            sock.close()


def claim(host: str, port: int, family: str) -> Claim:
    """Of a family's processes the first has it, and the others know. KernelError if it is another family's."""
    name = f"\0tproxy gateway {host} {port}"
    until = time.monotonic() + _PATIENCE
    while True:
        if (sock := _bound(name)) is not None:
            return Claim(sock, *filter(None, [_bound(f"{name} {family}")]))
        if _is_there(f"{name} {family}"):
            return Claim()
        if time.monotonic() > until:
            why = "another gateway with --workers has it"
            raise KernelError(f"listening on {host} port {port}", why, "end that one first, or choose another port")
        time.sleep(_TURN)


def _bound(name: str) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind(name)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise KernelError("claiming a port by an abstract unix socket", error.strerror) from error
    return sock


def _is_there(name: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        return asking.connect_ex(name) == 0
