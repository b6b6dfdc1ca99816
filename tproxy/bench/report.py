"""Medians, ratios, goals, a table, a few sentences, JSON and a plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

from tproxy.bench.figures import FIGURES, Figure, Goal, goals
from tproxy.bench.pairs import ENVOY, ENVOY_ONE_HOP, MTLS, ONE_HOP, RESUMED, SOCKMAP

Rounds = dict[str, list[dict[str, float]]]
GOALS = goals(MTLS, SOCKMAP, RESUMED, ENVOY, ONE_HOP, ENVOY_ONE_HOP)
COLOURS = ("#999", "#b8d8e8", "#7fb8d6", "#1f6fa8", "#4fa89a", "#d08a3c", "#7fb8d6", "#d08a3c")


def summary(rounds: Rounds) -> dict[str, dict[str, dict[str, float]]]:
    """Median, minimum and maximum of every figure of every pair that has it."""
    return {
        pair: {
            figure.name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for figure in FIGURES
            if (values := [one[figure.name] for one in runs if figure.name in one])
        }
        for pair, runs in rounds.items()
    }


def ratio(rounds: Rounds, figure: str, ours: str = SOCKMAP, theirs: str = ENVOY) -> tuple[float, float, float] | None:
    """Median, minimum and maximum over the rounds of one pair against another in the same round."""
    both = zip(rounds.get(ours, []), rounds.get(theirs, []), strict=False)
    found = [a[figure] / b[figure] for a, b in both if figure in a and figure in b]
    return (statistics.median(found), min(found), max(found)) if found else None


def table(rounds: Rounds) -> str:
    """Markdown; a row a figure, a column a pair, and ours against Envoy's with the spread over the rounds."""
    found, names = summary(rounds), list(rounds)
    head = ["", *names, *(["mTLS + sockmap against Envoy"] if ENVOY in rounds and SOCKMAP in rounds else [])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for figure in FIGURES:
        cells = [_shown(found[name].get(figure.name)) for name in names]
        against = ratio(rounds, figure.name)
        if against is not None:
            cells.append(f"{against[0]:.2f}x ({against[1]:.2f}-{against[2]:.2f})")
        lines.append(f"| {figure.name} ({figure.unit}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(value: dict[str, float] | None) -> str:
    if value is None or not value["median"]:
        return "-"
    return f"{value['median']:,.0f}" if value["median"] >= 1000 else f"{value['median']:.3g}"


def goal_table(rounds: Rounds) -> str:
    """Markdown: what we want against Envoy, and what was measured."""
    lines = ["| goal | wanted | measured | |", "|---|---|---|---|"]
    for goal in GOALS:
        measured = ratio(rounds, goal.figure, goal.ours, goal.theirs)
        if measured is not None:
            sign = "at least" if _more(goal) else "at most"
            verdict = "met" if met(goal, measured[0]) else "missed"
            name = f"{goal.figure}, {goal.ours} against {goal.theirs}"
            lines.append(f"| {name} | {sign} {goal.wanted:g}x | {measured[0]:.2f}x | {verdict} |")
    return "\n".join(lines)


def met(goal: Goal, measured: float) -> bool:
    """Whether the ratio is as good as we want it."""
    return measured >= goal.wanted if _more(goal) else measured <= goal.wanted


def _more(goal: Goal) -> bool:
    return next(figure for figure in FIGURES if figure.name == goal.figure).more


def words(rounds: Rounds) -> str:
    """What the figures mean, in sentences made from them."""
    said = []
    for name, much, little in (
        ("requests/s", "carries {0:.2f} times the requests of", "carries {0:.2f} times the requests of"),
        ("CPU per 1000 requests", "needs {0:.2f} times the processor time a request of", ""),
        ("new connections/s", "opens {0:.2f} times the connections a second of", ""),
        ("bulk, 1 stream", "moves bulk at {0:.2f} times the rate of", ""),
        ("memory", "holds {0:.2f} times the memory of", ""),
    ):
        found = ratio(rounds, name)
        if found is not None:
            said.append((much or little).format(found[0]))
    if not said:
        return ""
    return "With the short cut, our pair " + "; ".join(f"{one} an Envoy pair" for one in said) + "."


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from cryptography.hazmat.backends.openssl import backend

    return {
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "openssl": backend.openssl_version_text(),
    }


def write(rounds: Rounds, growth: dict[str, dict[int, float]], folder: Path) -> list[Path]:
    """bench.json and bench.png."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bench.json"
    document = {"machine": machine(), "rounds": rounds, "summary": summary(rounds), "KiB per idle connection": growth}
    path.write_text(json.dumps(document, indent=2) + "\n")
    return [path, *_plot(rounds, folder / "bench.png")]


def _plot(rounds: Rounds, path: Path) -> list[Path]:
    try:
        import matplotlib
    except ImportError:  # an extra: pip install 'tproxy[bench]'
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = summary(rounds)
    drawing, axes = pyplot.subplots(3, 6, figsize=(26, 11))
    for axis, figure in zip(axes.flat, FIGURES, strict=False):
        _bars(axis, found, figure)
    for axis in axes.flat[len(FIGURES) :]:
        axis.set_visible(False)
    drawing.suptitle("medians and spread of interleaved rounds")
    drawing.tight_layout()
    drawing.savefig(path, dpi=100)
    pyplot.close(drawing)
    return [path]


def _bars(axis: Any, found: dict[str, dict[str, dict[str, float]]], figure: Figure) -> None:
    names = [name for name in found if found[name].get(figure.name, {}).get("median")]
    cells = [found[name][figure.name] for name in names]
    medians = [cell["median"] for cell in cells]
    spread = [[cell["median"] - cell["min"] for cell in cells], [cell["max"] - cell["median"] for cell in cells]]
    colours = [COLOURS[list(found).index(name) % len(COLOURS)] for name in names]
    axis.barh(names, medians, xerr=spread, color=colours)
    axis.invert_yaxis()
    axis.set_title(f"{figure.name} ({figure.unit}), {'more' if figure.more else 'less'} is better", fontsize=9)
    axis.tick_params(labelsize=7)
