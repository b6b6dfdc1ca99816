"""What we want to reach against Envoy, and whether a run reached it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from tproxy.bench import figures
from tproxy.bench.figures import Ratio, Results

OURS, ENVOY = "ours", "theirs"  # stand for the pairs of figures.best and figures.reference
IDLE_KIB = 40.0


@dataclass(frozen=True, slots=True)
class Wish:
    """A ratio that shall be at least, or at most, so much."""

    name: str
    figure: str
    least: float | None = None
    most: float | None = None
    ours: str = OURS
    theirs: str = ENVOY


@dataclass(frozen=True, slots=True)
class Goal:
    """A wish and what came of it; ``met`` is None if it was not measured."""

    name: str
    wanted: str
    measured: str
    met: bool | None


WISHES = (
    Wish("requests/s, 32 connections, keep-alive", figures.rate(32), least=1.3),
    Wish("p99 at the same offered load", figures.LOADED["99"], most=0.8),
    Wish("bulk, 1 stream", figures.bulk(1), least=1.2),
    Wish("bulk, 8 streams", figures.bulk(8), least=1.2),
    Wish("whole-machine CPU per request", figures.CPU_REQUESTS, most=0.8),
    Wish("whole-machine CPU per GB, 1 stream", figures.per_gigabyte(1), most=0.8),
    Wish("whole-machine CPU per GB, 8 streams", figures.per_gigabyte(8), most=0.8),
    Wish("new mTLS connections/s, no resumption", figures.NEW, least=1.0),
    Wish("new mTLS connections/s, with resumption (Envoy without)", figures.NEW, least=1.5, ours="resumption"),
    Wish("memory of the pair, after load", figures.MEMORY, most=0.6),
    *(
        Wish(f"plain passthrough, {figures.bulk(n)}", figures.bulk(n), least=1.0, ours="hop", theirs="envoyhop")
        for n in figures.STREAMS
    ),
    *(
        Wish(f"plain passthrough, {name}", name, most=0.7, ours="hop", theirs="envoyhop")
        for name in map(figures.per_gigabyte, figures.STREAMS)
    ),
)


def goals(results: Results) -> list[Goal]:
    """Every goal, measured or not, in the order of the list."""
    found = [judge(wish, ratio_of(wish, results)) for wish in WISHES]
    return [*found[:10], idle_goal(results), *found[10:]]


def ratio_of(wish: Wish, results: Results) -> Ratio | None:
    """What a wish is about, or None."""
    stand_in = {OURS: figures.best(results), ENVOY: figures.reference(results)}
    ours, theirs = stand_in.get(wish.ours, wish.ours), stand_in.get(wish.theirs, wish.theirs)
    return results.ratio(ours, theirs, wish.figure) if ours and theirs else None


def judge(wish: Wish, ratio: Ratio | None) -> Goal:
    """Met or missed, by the median."""
    wanted = f"at least {wish.least}x" if wish.least is not None else f"at most {wish.most}x"
    if ratio is None:
        return Goal(wish.name, wanted, "not measured", None)
    met = ratio.median >= wish.least if wish.least is not None else ratio.median <= (wish.most or 0)
    return Goal(wish.name, wanted, str(ratio), met)


def idle_goal(results: Results) -> Goal:
    """The sidecar that needs more counts."""
    name, wanted = "memory per idle mTLS connection", f"at most {IDLE_KIB:g} KiB per sidecar"
    key = next((key for key in ("sockmap", "mtls") if key in results.idle), None)
    found = figures.per_connection(results.idle[key]) if key else None
    if found is None:
        return Goal(name, wanted, "not measured", None)
    most = max(found[0]) / 1024
    return Goal(name, wanted, f"{most:.1f} KiB", most <= IDLE_KIB)
