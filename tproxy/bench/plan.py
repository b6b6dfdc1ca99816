"""In which order things are measured, and how long it will take. Pure.

Rounds are interleaved: a measure is taken of one pair after the other, so that what is compared was measured within
seconds; the order of the pairs turns from round to round, so that none is always first. Idle connections come last, on
pods of their own: memory that was used before would hide what they need.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from tproxy.bench.figures import ACTIVE, IDLE, KINDS, MEASURES, REQUESTS, STREAMS

# seconds beside the measurement itself: starting the program, connecting, and what iperf3 says at the end
BESIDE = {"requests": 0.05, "active": 0.05, "load": 0.5, "connections": 0.1, "bulk": 0.3, "memory": 0.03}
BUILD = 1.5  # seconds for a pair of pods, sidecars and servers
OPEN = 0.002  # seconds for an idle connection, on the average of the makes
SIZES = {"requests": REQUESTS, "active": ACTIVE, "bulk": STREAMS}


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement of one pair; ``size`` is the number of connections or streams."""

    number: int
    measure: str
    pair: str
    size: int
    seconds: float

    def __str__(self) -> str:
        size = f" {self.size}" if self.size else ""
        return f"round {self.number + 1}: {self.measure}{size}, {KINDS[self.pair].name}"


def chosen(only: Iterable[str]) -> tuple[list[str], list[str]]:
    """The pairs and the measures that a list of names of either means; ValueError names what is neither."""
    names = list(only)
    if unknown := [name for name in names if name not in KINDS and name not in MEASURES]:
        known = f"pairs are {', '.join(KINDS)}; measures are {', '.join(MEASURES)}"
        raise ValueError(f"there is neither a pair nor a measure called {', '.join(unknown)}; {known}")
    pairs = [key for key in KINDS if key in names] or list(KINDS)
    wanted = {*names, "requests"} if "load" in names else set(names)  # the load is a share of the requests/s
    return pairs, [key for key in MEASURES if key in wanted] or list(MEASURES)


def steps(rounds: int, seconds: float, pairs: list[str], measures: Collection[str]) -> Iterator[Step]:
    """Everything that is measured in rounds, in order."""
    for number in range(rounds):
        turn = number % len(pairs) if pairs else 0
        for measure in (name for name in MEASURES if name in measures and name != "idle"):
            for size in SIZES.get(measure, (0,)):
                for pair in pairs[turn:] + pairs[:turn]:
                    if measure in KINDS[pair].measures:
                        yield Step(number, measure, pair, size, BESIDE[measure] + _length(measure, size, seconds))


def _length(measure: str, size: int, seconds: float) -> float:
    """Without what is beside it."""
    match measure:
        case "memory":
            return 0.0
        case "bulk":
            return max(1, round(seconds))  # iperf3 knows whole seconds only
        case "requests" | "active":
            return seconds + warm_up(size)
        case _:
            return seconds


def warm_up(connections: int) -> float:
    """Seconds in which the slowest pair has made so many connections, more or less."""
    return 0.2 + connections / 400


def idle_pairs(pairs: Iterable[str], measures: Collection[str]) -> list[str]:
    """The pairs whose growth with idle connections is measured."""
    return [pair for pair in pairs if "idle" in measures and "idle" in KINDS[pair].measures]


def quick(pairs: Iterable[str], measures: Iterable[str]) -> tuple[list[str], list[str]]:
    """What the goals need, and no more."""
    left = {"envoy1", "haproxy", "nginx", "active"}
    return [name for name in pairs if name not in left], [name for name in measures if name not in left]


def idle_counts(most: int, files: int) -> list[int]:
    """How many connections, step by step: a sidecar needs two files for each, and may open ``files``."""
    top = max(1, min(most, IDLE[-1], (files - 500) // 2))
    return [*(count for count in IDLE if count < top), top]


def idle_seconds(most: int) -> float:
    """About how long the growth of one pair takes."""
    return BUILD + 1 + len(IDLE) * 0.3 + most * OPEN


def remaining(done: float, total: float, elapsed: float) -> float:
    """Seconds left: what is expected, corrected by how the expectation has held so far.

    >>> remaining(10, 30, 20)
    40.0
    """
    return (total - done) * (elapsed / done if done > 0 else 1.0)
