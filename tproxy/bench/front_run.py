"""``make bench-gateway``: tproxy's gateway against Envoy, one core each, in interleaved rounds.

python -m tproxy.bench.front_run --rounds 3 --seconds 3
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tproxy.bench.front import BULK, LOAD_CORE, Front, Fronts
from tproxy.bench.front_config import NAME
from tproxy.bench.front_memory import crowded, rows, weights

PASSED = 4  # for as many clients whose TLS is ended one more is passed through (Envoy takes 1024 of those)
_WRK = re.compile(r"(\d+) requests in ([\d.]+)(m?s)")
_H2LOAD = re.compile(r"requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded")
_FAULTS = re.compile(r"Non-2xx.*|Socket errors.*|(?<=, )[1-9]\d* (?:failed|errored|timeout)")
Measure = Callable[[Front, float], tuple[float, float]]  # how many, in how many seconds


def _load(*argv: str) -> str:
    done = subprocess.run(["taskset", "-c", LOAD_CORE, *argv], capture_output=True, text=True, check=True, timeout=120)
    if fault := _FAULTS.search(done.stdout):
        raise RuntimeError(f"{' '.join(argv)}: {fault[0]}")
    return done.stdout


def _wrk(url: str, seconds: float, *options: str) -> tuple[float, float]:
    found = _WRK.search(_load("wrk", "-t1", "-c64", f"-d{seconds:.0f}s", *options, url))
    if found is None:
        raise RuntimeError(f"wrk said nothing of {url}")
    return int(found[1]), float(found[2]) / (1000 if found[3] == "ms" else 1)


def _http1(front: Front, seconds: float) -> tuple[float, float]:
    return _wrk(f"http://{NAME}:{front.http}/", seconds)


def _https1(front: Front, seconds: float) -> tuple[float, float]:
    return _wrk(f"https://{NAME}:{front.https}/", seconds)


def _http2(front: Front, seconds: float) -> tuple[float, float]:
    said = _load("h2load", "-t1", "-c8", "-m8", f"-D{seconds:.0f}", f"https://{NAME}:{front.https}/")
    found = _H2LOAD.search(said)
    if found is None:
        raise RuntimeError("h2load said nothing")
    return int(found[1]), seconds


def _terminated(front: Front, seconds: float) -> tuple[float, float]:
    return _wrk(f"https://{NAME}:{front.https}/", seconds, "-H", "Connection: close")


def _passed(front: Front, seconds: float) -> tuple[float, float]:
    return _wrk(f"https://{NAME}:{front.passthrough}/", seconds, "-H", "Connection: close")


def _bulk(front: Front, seconds: float) -> tuple[float, float]:
    """One download after the other, each by a connection of its own."""
    began, mebibytes = time.monotonic(), 0.0
    while time.monotonic() - began < seconds:
        _load("curl", "-sSkf", "-o", "/dev/null", f"https://{NAME}:{front.passthrough}/bulk")
        mebibytes += BULK / 2**20
    return mebibytes, time.monotonic() - began


MEASURES: dict[str, tuple[str, Measure]] = {
    "http1": ("HTTP/1.1 requests", _http1),
    "https1": ("HTTPS/1.1 requests", _https1),
    "http2": ("HTTP/2 requests", _http2),
    "terminate": ("new connections, TLS ended", _terminated),
    "passthrough": ("new connections, passed through", _passed),
    "bulk": ("MiB, passed through", _bulk),
}
Taken = dict[tuple[str, str], list[tuple[float, float]]]  # measure and front: a second, and CPU us for each


def run(rounds: int, seconds: float, wanted: list[str], clients: int) -> str:
    """All of it; the table."""
    taken: Taken = {}
    with tempfile.TemporaryDirectory(prefix="tproxy-bench-") as name, Fronts(Path(name)) as fronts:
        at_rest = weights(fronts)
        for number in range(rounds):
            for measure in wanted:
                for front in fronts.made if number % 2 == 0 else reversed(fronts.made):
                    before = front.cpu()
                    count, took = MEASURES[measure][1](front, seconds)
                    each = (front.cpu() - before) / count * 1e6
                    taken.setdefault((measure, front.name), []).append((count / took, each))
        after, passed = weights(fronts), clients // PASSED
        memory = rows(at_rest, after, crowded(fronts, clients, passed), clients, passed)
    return "\n".join([*table(taken, wanted), *memory])


def table(taken: Taken, wanted: list[str]) -> list[str]:
    """Medians, and ours against Envoy's."""
    lines = ["| | tproxy | Envoy | ratio | CPU us each: tproxy | Envoy | ratio |", "|---|---|---|---|---|---|---|"]
    for measure in wanted:
        (ours, cost), (theirs, their_cost) = (
            [statistics.median(values) for values in zip(*taken[measure, name], strict=True)]
            for name in ("tproxy", "envoy")
        )
        rates = f"{ours:,.0f}/s | {theirs:,.0f}/s | {ours / theirs:.2f}"
        costs = f"{cost:,.1f} | {their_cost:,.1f} | {cost / max(their_cost, 0.1):.2f}"
        lines.append(f"| {MEASURES[measure][0]} | {rates} | {costs} |")
    return lines


def main() -> None:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="whole ones, for each measurement")
    parser.add_argument("--clients", type=int, default=2000, help="that stay connected while memory is measured")
    parser.add_argument("--only", nargs="*", choices=MEASURES, default=list(MEASURES))
    args = parser.parse_args()
    before = os.getloadavg()[0]
    print(run(args.rounds, args.seconds, args.only, args.clients))
    print(f"\nload before: {before:.2f}, {os.cpu_count()} processors, {args.rounds} rounds of {args.seconds:g} s")


if __name__ == "__main__":
    main()
