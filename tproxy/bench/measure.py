"""How it is measured: h2load, wrk, iperf3, and the whole machine's CPU time (/proc/stat, proc(5)); softirq counts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tproxy.bench import figures, load, parse
from tproxy.bench.figures import Round
from tproxy.bench.pairs import Pair
from tproxy.bench.plan import Step
from tproxy.world.pods import Process

ERRORS = 0.01  # of all requests: more is not a measurement


@dataclass(slots=True)
class Bench:
    """What a measurement needs beside the pair; ``offered`` is the load of this round in requests/s."""

    seconds: float
    offered: float | None = None
    notes: list[str] = field(default_factory=list)


def busy() -> float:
    """Seconds that all processors together have worked since boot."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _wait, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def take(step: Step, pair: Pair, bench: Bench) -> Round:
    """The figures of one step; RuntimeError or ValueError says why there are none."""
    match step.measure:
        case "requests":
            return requests(pair, bench, step.size)
        case "active":
            found = requests(pair, bench, step.size)
            return {name: found[name] for name in (figures.rate(step.size), figures.slowest("99", step.size))}
        case "load":
            return offered(pair, bench)
        case "connections":
            return connections(pair, bench)
        case "bulk":
            return bulk(pair, bench, step.size)
        case "memory":
            return {figures.MEMORY: sum(pair.memory()) / 2**20}
        case other:
            raise ValueError(f"there is no measure {other}")


def requests(pair: Pair, bench: Bench, count: int) -> Round:
    """``count`` connections that ask without a pause: rate, latencies, and what the machine worked meanwhile."""
    wanted = load.Busy(count, bench.seconds)
    log = _log(pair)
    process = pair.client.start(wanted.argv(pair.server.v4, log))
    time.sleep(wanted.warm_up + 0.2 * bench.seconds)
    began, before = time.time(), busy()
    time.sleep(0.6 * bench.seconds)
    ended, after = time.time(), busy()
    rows = _rows(process, log, bench)
    found = parse.closed(rows)
    _judge(pair, bench, found)
    latencies = {figures.slowest(name, count): value for name, value in found.percentiles.items()}
    meanwhile = parse.finished(rows, began, ended)
    spent = {figures.CPU_REQUESTS: (after - before) / meanwhile * 1000} if count == 32 and meanwhile else {}
    return {figures.rate(count): found.count / found.seconds, **latencies, **spent}


def connections(pair: Pair, bench: Bench) -> Round:
    """wrk with 32 connections at a time, each for one request only."""
    found, cpu = _wrk(pair, bench, 32, "-H", "Connection: close")
    return {figures.NEW: found.count / found.seconds, figures.CPU_CONNECTIONS: cpu / found.count * 1000}


def bulk(pair: Pair, bench: Bench, streams: int) -> Round:
    """iperf3, client to server; it knows whole seconds only."""
    seconds = max(1, round(bench.seconds))
    argv = ["iperf3", "-c", pair.server.v4, "-t", str(seconds), "-P", str(streams), "-J"]
    output, cpu = _with_cpu(lambda: pair.client.run(argv, timeout=seconds + 30).stdout)
    found = parse.iperf3(output)
    return {figures.bulk(streams): found.bits / 1e9, figures.per_gigabyte(streams): cpu / (found.count / 1e9)}


def offered(pair: Pair, bench: Bench) -> Round:
    """Latency at a load that does not depend on the answers, the same for every pair."""
    if bench.offered is None:
        raise ValueError("there is no load to offer: no pair's requests/s were measured in this round")
    wanted = load.Load(bench.offered, bench.seconds)
    log = _log(pair)
    rows = _rows(pair.client.start(wanted.argv(pair.server.v4, log)), log, bench)
    found = parse.offered(rows, wanted.ramp, wanted.interval)
    _judge(pair, bench, found)
    achieved = found.count / found.seconds
    if achieved < 0.95 * wanted.rate:
        what = f"{pair.name} answered {achieved:,.0f} of {wanted.rate:,.0f} requests/s offered"
        bench.notes.append(f"{what}: its latency at equal load is a lower bound")
    return {figures.LOADED[name]: value for name, value in found.percentiles.items()}


def _log(pair: Pair) -> Path:
    path = pair.client.world.directory / f"h2load-{pair.client.name}.log"
    path.unlink(missing_ok=True)
    return path


def _rows(process: Process, log: Path, bench: Bench) -> list[parse.Row]:
    """What h2load logged, when it has ended."""
    try:
        if process.wait(bench.seconds * 4 + 60) != 0:
            raise RuntimeError(f"h2load: {process.tail(3)}")
        return parse.h2load(log.read_text())
    finally:
        process.kill()
        process.log.unlink(missing_ok=True)
        log.unlink(missing_ok=True)


def _wrk(pair: Pair, bench: Bench, count: int, *options: str) -> tuple[parse.Requests, float]:
    script = pair.client.world.directory / "wrk.lua"
    script.write_text(parse.WRK_SCRIPT)
    enough = ["timeout", "--preserve-status", "-s", "INT", f"{bench.seconds:g}"]  # wrk knows whole seconds only
    argv = [*enough, "wrk", "-t1", f"-c{count}", "-d1h", "-s", str(script), *options, f"http://{pair.server.v4}/"]
    output, cpu = _with_cpu(lambda: pair.client.run(argv, timeout=bench.seconds + 60, check=True).stdout)
    found = parse.wrk(output)
    _judge(pair, bench, found)
    return found, cpu


def _judge(pair: Pair, bench: Bench, found: parse.Requests) -> None:
    """A few failed requests are noted, many are no measurement."""
    if found.errors > ERRORS * found.count:
        raise ValueError(f"{found.errors} of {found.count} requests failed")
    if found.errors:
        bench.notes.append(f"{pair.name}: {found.errors} of {found.count} requests failed")


def _with_cpu(work: Callable[[], str]) -> tuple[str, float]:
    before = busy()
    output = work()
    return output, busy() - before
