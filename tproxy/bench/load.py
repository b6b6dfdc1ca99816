"""Two kinds of load, made by h2load of nghttp2: connections that ask without a pause, and a rate that never waits.

Both log every request. *Closed* (``Busy``): so many connections, each asking again as soon as it has its answer. What
happens while they are made does not count (``--warm-up-time``): else all handshakes would lie in the first requests.

*Open* (``Load``): the same number of requests a second for every pair, whether answers come or not.

h2load's ``--rps`` is a schedule for each connection: when an answer is late, the requests that should have begun
meanwhile are sent as soon as it is there; none is left out. Two things have to be mended, seen in its source and logs:

- Without more, all connections tick together, and 128 requests arrive within one millisecond. So they are opened one
  a millisecond (``-r``), which spreads their ticks; ``-r`` excludes ``-D``, hence a number of requests, not of seconds.
- A request that waited in h2load is timed from when it was sent. ``parse.offered`` corrects that.

``tests/test_bench.py`` stops the server for a while: the number of requests is complete all the same, and the corrected
p99 is about as long as the stop, as it must be when more than one request in a hundred found a server that stood still.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tproxy.bench.plan import warm_up

INTERVAL = 0.0128  # seconds between two requests of one connection: far more than most answers take
PERIOD = 0.001  # seconds between two connections' beginnings: h2load's finest


@dataclass(frozen=True, slots=True)
class Load:
    """Open: so many requests a second for so many seconds, and what h2load has to be told for it."""

    rate: float
    seconds: float

    @property
    def connections(self) -> int:
        """As many as the interval asks for, within reason."""
        return min(256, max(16, math.ceil(self.rate * INTERVAL)))

    @property
    def interval(self) -> float:
        """Seconds between two requests of one connection."""
        return self.connections / self.rate

    @property
    def ramp(self) -> float:
        """Seconds until all connections are there."""
        return self.connections * PERIOD + 0.02

    @property
    def requests(self) -> int:
        """All together, the same number for each connection."""
        return self.connections * max(1, round((self.seconds + 2 * self.ramp) / self.interval))

    def argv(self, host: str, log: Path) -> list[str]:
        """The command; h2load(1)."""
        many = ["-t", "1", "-c", str(self.connections), "-n", str(self.requests)]
        pace = ["-r", "1", "--rate-period", f"{PERIOD * 1000:g}ms", "--rps", f"{1 / self.interval:g}"]
        return ["h2load", "--h1", *many, *pace, "--log-file", str(log), f"http://{host}/"]


@dataclass(frozen=True, slots=True)
class Busy:
    """Closed: so many connections for so many seconds."""

    connections: int
    seconds: float

    @property
    def warm_up(self) -> float:
        """Seconds before it counts: until the slowest pair has made all connections, more or less."""
        return warm_up(self.connections)

    def argv(self, host: str, log: Path) -> list[str]:
        """The command; h2load(1)."""
        times = ["-D", f"{self.seconds * 1000:.0f}ms", f"--warm-up-time={self.warm_up * 1000:.0f}ms"]
        return [
            "h2load",
            "--h1",
            "-t",
            "1",
            "-c",
            str(self.connections),
            *times,
            "--log-file",
            str(log),
            f"http://{host}/",
        ]
