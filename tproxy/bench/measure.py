"""How it is measured: iperf3, wrk, and the whole machine's CPU time from /proc/stat (proc(5)); softirq counts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tproxy.bench.pairs import Pair

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True, slots=True)
class Figure:
    """One kind of figure: its unit, and whether more of it is better."""

    name: str
    unit: str
    more: bool


FIGURES = (
    Figure("requests/s", "1/s", True),
    Figure("p50", "ms", False),
    Figure("p99", "ms", False),
    Figure("CPU per 1000 requests", "s", False),
    Figure("new connections/s", "1/s", True),
    Figure("CPU per 1000 connections", "s", False),
    Figure("bulk, 1 stream", "Gbit/s", True),
    Figure("bulk, 8 streams", "Gbit/s", True),
    Figure("CPU per GB", "s", False),
    Figure("memory of the pair", "MiB", False),
)


def busy() -> float:
    """Seconds that all processors together have worked since boot."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _wait, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def one_round(pair: Pair, seconds: float) -> dict[str, float]:
    """Every figure of one pair, once."""
    found: dict[str, float] = {}
    rate, p50, p99, cpu = _requests(pair, seconds, close=False)
    found |= {"requests/s": rate, "p50": p50, "p99": p99, "CPU per 1000 requests": cpu}
    rate, _, _, cpu = _requests(pair, seconds, close=True)
    found |= {"new connections/s": rate, "CPU per 1000 connections": cpu}
    found["bulk, 1 stream"], found["CPU per GB"] = _bulk(pair, seconds, 1)
    found["bulk, 8 streams"], _ = _bulk(pair, seconds, 8)
    found["memory of the pair"] = pair.memory() / 2**20
    return found


def _requests(pair: Pair, seconds: float, close: bool) -> tuple[float, float, float, float]:
    """wrk with 32 connections: requests/s, p50 and p99 in ms, CPU seconds per 1000 requests."""
    header = ["-H", "Connection: close"] if close else []
    argv = ["wrk", "-t1", "-c32", f"-d{seconds:g}s", "--latency", *header, f"http://{pair.server.v4}/"]
    output, cpu = _with_cpu(lambda: pair.client.run(argv, timeout=seconds + 30, check=True).stdout)
    count = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)", output)
    if count is None or "Non-2xx" in output:
        raise RuntimeError(f"wrk through {pair.name} failed:\n{output}")
    requests = int(count[1])
    return (
        requests / (float(count[2]) * UNITS[count[3]]),
        _latency(output, 50),
        _latency(output, 99),
        cpu / requests * 1000,
    )


def _latency(output: str, percentile: int) -> float:
    found = re.search(rf"{percentile}%\s+([\d.]+)(us|ms|s|m)", output)
    return float(found[1]) * UNITS[found[2]] * 1000 if found else float("nan")


def _bulk(pair: Pair, seconds: float, streams: int) -> tuple[float, float]:
    """iperf3: Gbit/s and CPU seconds per GB."""
    argv = ["iperf3", "-c", pair.server.v4, "-t", f"{seconds:g}", "-P", str(streams), "-J"]
    output, cpu = _with_cpu(lambda: pair.client.run(argv, timeout=seconds + 30).stdout)
    document = json.loads(output)
    if "error" in document:
        raise RuntimeError(f"iperf3 through {pair.name} failed: {document['error']}")
    total = document["end"]["sum_received"]
    return total["bits_per_second"] / 1e9, cpu / (total["bytes"] / 1e9)


def _with_cpu(work: Callable[[], str]) -> tuple[str, float]:
    before = busy()
    output = work()
    return output, busy() - before
