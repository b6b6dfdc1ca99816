"""What wrk, iperf3 and h2load write, as values. Pure; ValueError says what was wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

OK = 200
# Its own summary rounds; this is run by wrk at its end (SCRIPTING, in its documentation).
WRK_SCRIPT = """\
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{"requests": %d, "microseconds": %d, "errors": %d}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout))
end
"""
PERCENTILES = ("50", "99", "99.9")


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests of one run: how many, how many failed, in how many seconds; percentiles in ms, if they are known."""

    count: int
    errors: int
    seconds: float
    percentiles: dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One request in h2load's log: when it was sent (us since the epoch), its status, us until the answer's end."""

    start: int
    status: int
    latency: int

    @property
    def end(self) -> int:
        """When the answer was there."""
        return self.start + self.latency


@dataclass(frozen=True, slots=True)
class Bulk:
    """Bytes that arrived, and bits a second."""

    count: int
    bits: float


def wrk(output: str) -> Requests:
    """The line of ``WRK_SCRIPT`` in the output of wrk."""
    line = next((line for line in reversed(output.splitlines()) if line.startswith("{")), None)
    if line is None:
        raise ValueError(f"wrk said nothing of its result: {output!r}")
    found = json.loads(line)
    if not found["requests"]:
        raise ValueError("wrk had no answer at all")
    return Requests(found["requests"], found["errors"], found["microseconds"] / 1e6, {})


def iperf3(output: str) -> Bulk:
    """The output of ``iperf3 -J``: what the server received."""
    document = json.loads(output)
    if "error" in document:
        raise ValueError(f"iperf3: {document['error']}")
    total = document["end"]["sum_received"]
    if not total["bytes"]:
        raise ValueError("iperf3 moved no byte")
    return Bulk(total["bytes"], total["bits_per_second"])


def h2load(log: str) -> list[Row]:
    """``h2load --log-file``, in the order in which requests were sent."""
    try:
        rows = [Row(int(a), int(b), int(c)) for a, b, c in (line.split() for line in log.splitlines())]
    except ValueError as error:
        raise ValueError(f"h2load's log: {error}") from error
    return sorted(rows, key=lambda row: row.start)


def closed(rows: Sequence[Row]) -> Requests:
    """Of connections that ask again as soon as they have their answer.

    h2load gives status 0 to the one whose answer had begun when the warm-up ended; it does not count.
    """
    rows = [row for row in rows if row.status != 0]
    return _requests(rows, [row.latency / 1000 for row in rows if row.status == OK])


def offered(rows: Sequence[Row], ramp: float, interval: float) -> Requests:
    """Of a load that does not depend on the answers.

    The first and last ``ramp`` seconds, when not all connections are there, do not count. ``interval`` is the time
    between two requests of one connection. A request that takes longer delays those behind it, and h2load counts from
    when it sends; so each that should have begun meanwhile counts too, with the time that it waited: the correction of
    HdrHistogram (recordValueWithExpectedInterval).
    """
    if not rows:
        raise ValueError("h2load logged no request")
    begin, end = rows[0].start + ramp * 1e6, rows[-1].start - ramp * 1e6
    inner = [row for row in rows if begin <= row.start <= end]
    found = _requests(inner, waited([row.latency / 1000 for row in inner if row.status == OK], interval * 1000))
    return replace(found, seconds=(end - begin) / 1e6)  # in which they were sent


def finished(rows: Sequence[Row], begin: float, end: float) -> int:
    """How many answers were complete between two times (seconds since the epoch)."""
    return sum(begin * 1e6 <= row.end < end * 1e6 for row in rows)


def _requests(rows: Sequence[Row], latencies: Sequence[float]) -> Requests:
    if not latencies:
        raise ValueError("h2load had no answer at all")
    ordered = sorted(latencies)
    percentiles = {name: percentile(ordered, float(name)) for name in PERCENTILES}
    seconds = (max(row.end for row in rows) - rows[0].start) / 1e6
    return Requests(len(rows), sum(row.status != OK for row in rows), seconds, percentiles)


def waited(latencies: Sequence[float], interval: float) -> list[float]:
    """The latencies, and those of the requests that a slow one held up; same unit as ``interval``."""
    held = [late - interval * n for late in latencies for n in range(1, math.ceil(late / interval))]
    return [*latencies, *held]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that so many per cent do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
