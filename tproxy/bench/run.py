"""One whole run: pairs are made, measured in rounds, and their growth with idle connections last."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from OpenSSL import SSL

from tproxy.bench import figures, idle, pairs, plan
from tproxy.bench.figures import KINDS, Results
from tproxy.bench.measure import Bench, take
from tproxy.bench.pairs import DOMAIN, Pair
from tproxy.bench.progress import Progress
from tproxy.world.pods import World
from tproxy.world.sidecars import Authority

FAULTS = (
    RuntimeError,
    ValueError,
    TimeoutError,
    OSError,
    subprocess.SubprocessError,
)  # of one measurement; the others go on


@dataclass(frozen=True, slots=True)
class Order:
    """What the user asked for."""

    rounds: int
    seconds: float
    pairs: list[str]
    measures: list[str]
    most_idle: int


def run(order: Order) -> Results:
    """Measure everything; what failed stands in the notes, beside the figures that there are. Ctrl-C ends it early."""
    results = Results()
    present = _present(order, results)
    steps = list(plan.steps(order.rounds, order.seconds, present, order.measures))
    last = plan.idle_pairs(present, order.measures)
    built = sorted({step.pair for step in steps}, key=present.index)
    results.about = machine() | {"rounds": order.rounds, "seconds": order.seconds, "others": pairs.versions(present)}
    total = plan.BUILD * len(built) + sum(s.seconds for s in steps) + len(last) * plan.idle_seconds(order.most_idle)
    progress, began = Progress(total), time.monotonic()
    try:
        with World() as world:
            ca = Authority(world, DOMAIN)
            made = _made(world, ca, built, progress, results)
            if "memory" in order.measures:
                _idle_memory(made.values(), results)
            _rounds(order, steps, made, results, progress)
            for key in last:
                progress.step(f"idle connections, {KINDS[key].name}", plan.idle_seconds(order.most_idle))
                _grow(order, world, ca, key, results)
    except KeyboardInterrupt:
        results.notes.append("failed: interrupted; the figures are those until then")
    progress.end()
    results.about["took"] = round(time.monotonic() - began, 1)
    results.notes = list(dict.fromkeys(results.notes))
    return results


def _made(world: World, ca: Authority, keys: list[str], progress: Progress, results: Results) -> dict[str, Pair]:
    """The pairs that can be made."""
    made = {}
    for key in keys:
        progress.step(f"making {KINDS[key].name}", plan.BUILD)
        try:
            made[key] = pairs.make(world, ca, key)
        except FAULTS as error:
            results.notes.append(f"failed: making {KINDS[key].name}: {_first_line(error)}")
    return made


def _idle_memory(made: Iterable[Pair], results: Results) -> None:
    """Of all pairs that have sidecars, before they have done anything."""
    for pair in made:
        if "memory" in KINDS[pair.key].measures:
            results.add(pair.key, 0, {figures.IDLE_MEMORY: sum(pair.memory()) / 2**20})


def _present(order: Order, results: Results) -> list[str]:
    found = []
    for key in order.pairs:
        if why := pairs.missing(key):
            results.notes.append(f"{KINDS[key].name} is left out: {why}")
        else:
            found.append(key)
    return found


def _rounds(order: Order, steps: list[plan.Step], made: dict[str, Pair], results: Results, progress: Progress) -> None:
    bench = Bench(order.seconds, notes=results.notes)
    for step in (step for step in steps if step.pair in made):
        progress.step(str(step), step.seconds)
        bench.offered = half(results, step.number)
        try:
            results.add(step.pair, step.number, take(step, made[step.pair], bench))
        except FAULTS as error:
            results.notes.append(f"failed: {step}: {_first_line(error)}")
    for pair in made.values():
        results.notes += pair.warnings()


def half(results: Results, number: int) -> float | None:
    """The load to offer in a round: half of what Envoy's pair carried in it; without Envoy, the slowest pair."""
    name = figures.rate(32)
    rates = {key: run[name] for key, runs in results.rounds.items() for run in runs[number : number + 1] if name in run}
    return rates.get("envoy", min(rates.values())) / 2 if rates else None


def _grow(order: Order, world: World, ca: Authority, key: str, results: Results) -> None:
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    counts = plan.idle_counts(order.most_idle, files)
    if counts[-1] < order.most_idle:
        note = f"idle connections end at {counts[-1]}: RLIMIT_NOFILE is {files}, and a sidecar needs two files for each"
        results.notes.append(note)
    try:
        pair = pairs.make(world, ca, key, "-idle")
        results.idle[key] = idle.grow(pair, counts, results.notes)
    except FAULTS as error:
        results.notes.append(f"failed: idle connections, {KINDS[key].name}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def machine() -> dict[str, Any]:
    """What the figures are measured on, and how busy it was before."""
    return {
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "openssl": SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode(),
        "load before": round(os.getloadavg()[0], 2),
    }
