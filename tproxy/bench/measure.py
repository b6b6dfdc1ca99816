"""How it is measured: iperf3, wrk, h2load, and the whole machine's CPU time, softirq and all (proc(5), /proc/stat)."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from tproxy.bench.figures import BULK, CLOSE, KEEP_ALIVE, MEMORY, MORE, STEADY
from tproxy.bench.pairs import Pair

LUA = """done = function(summary, latency, requests)
  io.write(string.format("took %d us, %d requests, p50 %d us, p99 %d us, p99.9 %d us, errors %d\\n",
    summary.duration, summary.requests, latency:percentile(50), latency:percentile(99), latency:percentile(99.9),
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status
      + summary.errors.timeout))
end
"""
_WRK = re.compile(r"took (\d+) us, (\d+) requests, p50 (\d+) us, p99 (\d+) us, p99\.9 (\d+) us, errors (\d+)")
Found = dict[str, float]


def busy() -> float:
    """Seconds that all processors together have worked since boot."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _wait, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def one_round(pair: Pair, seconds: float, steady: float) -> Found:
    """Every figure of one pair, once; ``steady`` is the constant load in requests/s."""
    found: Found = {}
    if KEEP_ALIVE in pair.kinds:
        rate, *percentiles, cpu = requests(pair, seconds, 32, close=False)
        found |= dict(zip(("p50", "p99", "p99.9"), percentiles, strict=True))
        found |= {"requests/s": rate, "CPU per 1000 requests": cpu}
    if STEADY in pair.kinds and steady:
        found["p99 at half of Envoy's load"] = at_constant_rate(pair, seconds, steady)
    if MORE in pair.kinds:
        _, found["p50, 1 connection"], found["p99, 1 connection"], _, _ = requests(pair, seconds / 2, 1, close=False)
        rate, _, found["p99, 256 connections"], _, _ = requests(pair, seconds, 256, close=False)
        found["requests/s, 256 connections"] = rate
    if CLOSE in pair.kinds:
        found["new connections/s"], *_, found["CPU per 1000 connections"] = requests(pair, seconds, 32, close=True)
    if BULK in pair.kinds:
        found["bulk, 1 stream"], found["CPU per GB, 1 stream"] = _bulk(pair, seconds, 1)
        found["bulk, 8 streams"], found["CPU per GB, 8 streams"] = _bulk(pair, seconds, 8)
    if MEMORY in pair.kinds:
        found["memory"] = pair.memory() / 2**20
    return found


def requests(pair: Pair, seconds: float, connections: int, close: bool) -> tuple[float, float, float, float, float]:
    """wrk: requests/s; p50, p99 and p99.9 in ms; CPU seconds per 1000 requests."""
    script = pair.client.world.directory / "bench.lua"
    script.write_text(LUA)
    header = ["-H", "Connection: close"] if close else []
    url = f"http://{pair.server.v4}/"
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(script), *header, url]
    output, cpu = _with_cpu(lambda: pair.client.run(argv, timeout=seconds + 30, check=True).stdout)
    try:
        took, count, *percentiles = wrk(output)
    except ValueError as error:
        raise RuntimeError(f"wrk through {pair.name} failed: {error}") from error
    p50, p99, p999 = percentiles
    return count / took, p50, p99, p999, cpu / count * 1000


def wrk(output: str) -> tuple[float, float, float, float, float]:
    """Seconds, requests, p50, p99 and p99.9 in ms, from what our script printed. ValueError if any request failed."""
    found = _WRK.search(output)
    if found is None or "Non-2xx" in output or found[6] != "0":
        raise ValueError(output)
    took, count, p50, p99, p999 = (float(found[index]) for index in range(1, 6))
    return took / 1e6, count, p50 / 1e3, p99 / 1e3, p999 / 1e3


def at_constant_rate(pair: Pair, seconds: float, rate: float) -> float:
    """h2load, 32 connections that send at fixed times: p99 in ms, counted only over what was sent on time."""
    log = pair.client.world.directory / "h2load.log"
    log.unlink(missing_ok=True)
    each = max(1, round(rate / 32))
    argv = ["h2load", "--h1", "-c32", f"--rps={each}", f"--duration={seconds:g}", f"--log-file={log}"]
    pair.client.run([*argv, f"http://{pair.server.v4}/"], timeout=seconds + 30, check=True)
    return h2load(log.read_text())


def h2load(log: str) -> float:
    """p99 in ms of a log whose lines are start, status, microseconds. ValueError if any request failed."""
    times = []
    for line in log.splitlines():
        _start, status, taken = line.split("\t")[:3]
        if status != "200":
            raise ValueError(f"h2load: {line}")
        times.append(int(taken))
    return statistics.quantiles(times, n=100)[98] / 1e3


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
