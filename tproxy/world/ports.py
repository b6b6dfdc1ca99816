"""Ports of this machine that nobody listens to."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

_USED: set[int] = set()


def free_port() -> int:
    """Another one each time, from below the ephemeral range: from there the kernel gives ports to whoever connects."""
    for port in range(20_000 + os.getpid() % 5000, 32_000):
        if port not in _USED:
            _USED.add(port)
            with socket.socket() as probe, suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise AssertionError("every port is taken")
