"""Medians, ratios, a table, JSON and a plot."""

from __future__ import annotations

import json
import os
import platform
import ssl
import statistics
from pathlib import Path
from typing import Any

from tproxy.bench.measure import FIGURES

Rounds = dict[str, list[dict[str, float]]]
MTLS, ENVOY = "tproxy, mTLS", "Envoy, mTLS"


def summary(rounds: Rounds) -> dict[str, dict[str, dict[str, float]]]:
    """Median, minimum and maximum of every figure of every pair."""
    return {
        pair: {
            figure.name: {
                "median": statistics.median(values := [one[figure.name] for one in runs]),
                "min": min(values),
                "max": max(values),
            }
            for figure in FIGURES
        }
        for pair, runs in rounds.items()
    }


def ratio(rounds: Rounds, figure: str) -> float | None:
    """The median over the rounds of ours against Envoy's in the same round."""
    if ENVOY not in rounds:
        return None
    both = zip(rounds[MTLS], rounds[ENVOY], strict=True)
    return statistics.median(ours[figure] / theirs[figure] for ours, theirs in both)


def table(rounds: Rounds) -> str:
    """Markdown; a row a figure, a column a pair, and ours against Envoy's."""
    found, names = summary(rounds), list(rounds)
    head = ["", *names, *(["mTLS against Envoy"] if ENVOY in rounds else [])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for figure in FIGURES:
        cells = [_shown(found[name][figure.name]["median"]) for name in names]
        against = ratio(rounds, figure.name)
        better = "" if against is None or (against >= 1) == figure.more else " (worse)"
        lines.append(
            f"| {figure.name} ({figure.unit}) | "
            + " | ".join(cells + ([f"{against:.2f}x{better}"] if against is not None else []))
            + " |"
        )
    return "\n".join(lines)


def _shown(value: float) -> str:
    return "-" if value == 0 else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
    }


def write(rounds: Rounds, folder: Path) -> list[Path]:
    """bench.json and bench.png."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bench.json"
    path.write_text(json.dumps({"machine": machine(), "rounds": rounds, "summary": summary(rounds)}, indent=2) + "\n")
    return [path, *_plot(rounds, folder / "bench.png")]


def _plot(rounds: Rounds, path: Path) -> list[Path]:
    try:
        import matplotlib
    except ImportError:  # an extra: pip install 'tproxy[bench]'
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found, names = summary(rounds), list(rounds)
    shown = [figure for figure in FIGURES if figure.name not in ("p50", "CPU per 1000 connections")]
    drawing, axes = pyplot.subplots(2, 4, figsize=(15, 7))
    for axis, figure in zip(axes.flat, shown, strict=True):
        medians = [found[name][figure.name]["median"] for name in names]
        low = [found[name][figure.name]["median"] - found[name][figure.name]["min"] for name in names]
        high = [found[name][figure.name]["max"] - found[name][figure.name]["median"] for name in names]
        axis.barh(names, medians, xerr=[low, high], color=["#999", "#7fb8d6", "#1f6fa8", "#d08a3c"][: len(names)])
        axis.invert_yaxis()
        axis.set_title(f"{figure.name} ({figure.unit}), {'more' if figure.more else 'less'} is better", fontsize=9)
        axis.tick_params(labelsize=8)
    drawing.suptitle("medians and spread of interleaved rounds")
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)
    pyplot.close(drawing)
    return [path]
