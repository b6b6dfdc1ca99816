"""What a peer of HTTP/2 may cost. Pure; clocks are arguments.

A ``Budget`` is spent by frames that are legal and useless in numbers: once it is gone, the connection is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Numbers of one connection. Bytes and seconds."""

    streams: int = 100  # at once, of the peer's
    header_list: int = 61_440  # uncompressed, as SETTINGS_MAX_HEADER_LIST_SIZE counts; Envoy's 60 KiB
    header_frames: int = 8  # of one block, empty ones too (CONTINUATION flood, CVE-2024-27316 and others)
    stream_window: int = 262_144  # that a peer may send unread on a stream,
    window: int = 1_048_576  # and on all of them
    waiting: int = 65_536  # of one stream, not sent: then the sink is told that it is congested
    resumed: int = 16_384  # and below this, that it is no more
    resets: int = 100  # streams that ended early, beyond as many as ended well (CVE-2023-44487, CVE-2025-8671)
    resets_per_second: int = 33
    frames: int = 1000  # that carry nothing (PING, SETTINGS, PRIORITY, empty DATA, WINDOW_UPDATE, unknown ones)
    frames_per_second: int = 200
    unsent: int = 262_144  # answers to control frames which the peer does not read
    hello: float = 10.0  # until the preface and SETTINGS have come, and until ours are acknowledged
    block: float = 10.0  # until a frame or a header block that has begun is complete
    stall: float = 60.0  # that a peer keeps a stream's bytes waiting
    idle: float = 3600.0  # without a stream
    ping: float = 60.0  # that a peer with streams says nothing before it is asked whether it is there; 0: never
    pong: float = 20.0  # for its answer; never longer than the silence
    upload: float = 300.0  # in each of which a request's body must bring ``rate`` bytes a second, but for gRPC's:
    rate: int = 4  # those are streams, and may be silent as long as they like; 0: all may
    farewell: float = 2.0  # until a connection that was ended is cut


class Budget:
    """A number that goes down when spent, up with time and when earned, and is never more than at the beginning."""

    __slots__ = ("_clock", "_left", "_most", "_per_second", "_since")

    def __init__(self, most: int, per_second: int, clock: Callable[[], float]) -> None:
        self._left = self._most = float(most)
        self._per_second = per_second
        self._clock = clock  # seconds
        self._since = clock()

    def spend(self) -> bool:
        """Whether there was one left. The clock is asked only when there is none."""
        if self._left < 1:
            now = self._clock()
            self._left = min(self._most, self._left + (now - self._since) * self._per_second)
            self._since = now
        self._left -= 1
        return self._left >= 0

    def earn(self, count: int) -> None:
        """Something useful was done meanwhile."""
        self._left = min(self._most, self._left + count)
