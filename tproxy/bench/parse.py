"""What wrk, iperf3 and h2load write, as values. Pure; ValueError says what was wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

# wrk's own summary has no p99.9 and rounds; this is run by wrk at its end (its SCRIPTING file). Latencies are in us.
WRK_SCRIPT = """\
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{"requests": %d, "microseconds": %d, "errors": %d, "p50": %d, "p99": %d, "p99.9": %d}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"""


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests of one run: how many, how many failed, in how many seconds; percentiles in ms."""

    count: int
    errors: int
    seconds: float
    percentiles: dict[str, float]


@dataclass(frozen=True, slots=True)
class Bulk:
    """Bytes that arrived, and bits a second."""

    count: int
    bits: float


def wrk(output: str) -> Requests:
    """The line of ``WRK_SCRIPT`` in the output of wrk."""
    line = next((line for line in reversed(output.splitlines()) if line.startswith("{")), None)
    if line is None:
        raise ValueError(f"wrk said nothing of its result:\n{output}")
    found = json.loads(line)
    if not found["requests"]:
        raise ValueError(f"wrk had no answer at all:\n{output}")
    percentiles = {name: found[f"p{name}"] / 1000 for name in ("50", "99", "99.9")}
    return Requests(found["requests"], found["errors"], found["microseconds"] / 1e6, percentiles)


def iperf3(output: str) -> Bulk:
    """The output of ``iperf3 -J``: what the server received."""
    document = json.loads(output)
    if "error" in document:
        raise ValueError(f"iperf3: {document['error']}")
    total = document["end"]["sum_received"]
    if not total["bytes"]:
        raise ValueError("iperf3 moved no byte")
    return Bulk(total["bytes"], total["bits_per_second"])


def h2load(log: str, ramp: float, interval: float) -> Requests:
    """``h2load --log-file``: a line a request: start in us since the epoch, status, us until the answer's end.

    The first and last ``ramp`` seconds, when not all connections are there, do not count. ``interval`` is the time
    between two requests of one connection. A request that takes longer delays those behind it, and h2load counts from
    when it sends; so each that should have begun meanwhile counts too, with the time that it waited: the correction of
    HdrHistogram (recordValueWithExpectedInterval) and wrk. With it the arrival of requests does not depend on answers.
    """
    try:
        rows = sorted((int(a), int(b), int(c)) for a, b, c in (line.split() for line in log.splitlines()))
    except ValueError as error:
        raise ValueError(f"h2load's log: {error}") from error
    if not rows:
        raise ValueError("h2load logged no request")
    begin, end = rows[0][0] + ramp * 1e6, rows[-1][0] - ramp * 1e6
    inner = [row for row in rows if begin <= row[0] <= end]
    if not inner:
        raise ValueError("h2load ran for less than it takes to begin")
    good = [latency / 1000 for _, status, latency in inner if status == 200]
    if not good:
        raise ValueError("h2load had no answer at all")
    latencies = sorted(waited(good, interval * 1000))
    percentiles = {name: percentile(latencies, float(name)) for name in ("50", "99", "99.9")}
    return Requests(len(inner), len(inner) - len(good), (end - begin) / 1e6, percentiles)


def waited(latencies: Sequence[float], interval: float) -> list[float]:
    """The latencies, and those of the requests that a slow one held up; same unit as ``interval``."""
    held = [late - interval * n for late in latencies for n in range(1, math.ceil(late / interval))]
    return [*latencies, *held]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that so many per cent do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
