"""What a client's HTTP/1.1 connection sends: a head and its body as one packet."""

from __future__ import annotations

import asyncio
from typing import Final

_SMALL: Final = 16 * 1024  # bytes that are worth copying to save a packet


class Outgoing(asyncio.Protocol):
    """The sending side of a connection."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.sent = 0  # bytes
        self._out: list[bytes] = []  # one packet
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes) -> None:
        """Send, behind what waits."""
        self.sent += len(data)
        if self._out:
            self._out.append(data)
            if len(data) > _SMALL:
                self.flush()
        else:
            self.transport.write(data)

    def write_later(self, data: bytes) -> None:
        """Send with what follows in this turn of the loop: a head and its body are one packet."""
        self.sent += len(data)
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out.append(data)

    def flush(self) -> None:
        """What waits goes now."""
        if self._out:
            self.transport.write(b"".join(self._out))
            self._out.clear()
