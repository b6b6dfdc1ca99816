"""Plots: bars of the figures, and curves of what grows with active and idle connections. Needs the extra ``bench``."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from tproxy.bench import figures
from tproxy.bench.figures import ACTIVE, FIGURES, KINDS, REQUESTS, Results
from tproxy.bench.report import curve_pairs

COLOURS = {
    "direct": "#999999",
    "plain": "#a9cfe3",
    "mtls": "#5ba3cf",
    "sockmap": "#1f6fa8",
    "resumption": "#0c3c60",
    "envoy": "#d08a3c",
    "envoy1": "#e6bd8a",
    "haproxy": "#6b9e52",
    "nginx": "#9d7bb0",
    "hop": "#1f6fa8",
    "envoyhop": "#d08a3c",
}
COLUMNS = 4


def draw(results: Results, folder: Path) -> list[Path]:
    """bench.png and growth.png; none without matplotlib."""
    try:
        import matplotlib
    except ImportError:  # an extra: pip install 'tproxy[bench]'
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    return [
        path
        for made, path in (
            (_bars(pyplot, results), folder / "bench.png"),
            (_curves(pyplot, results), folder / "growth.png"),
        )
        if _saved(pyplot, made, path)
    ]


def _saved(pyplot: Any, drawing: Any, path: Path) -> bool:
    if drawing is None:
        return False
    drawing.savefig(path, dpi=80)
    pyplot.close(drawing)
    return True


def _bars(pyplot: Any, results: Results) -> Any:
    """A panel a figure: medians, and the spread from the smallest to the largest."""
    known = [figure for figure in FIGURES if any(results.values(key, figure.name) for key in results.pairs)]
    rows = [figure for figure in known if not figure.name.startswith("p50")]  # the table has it
    if not rows:
        return None
    height = (len(rows) + COLUMNS - 1) // COLUMNS
    drawing, axes = pyplot.subplots(height, COLUMNS, figsize=(20, 3.2 * height), squeeze=False, layout="constrained")
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis, figure in zip(axes.flat, rows, strict=False):
        found = {key: values for key in results.pairs if (values := results.values(key, figure.name))}
        medians = [statistics.median(values) for values in found.values()]
        low = [middle - min(values) for middle, values in zip(medians, found.values(), strict=True)]
        high = [max(values) - middle for middle, values in zip(medians, found.values(), strict=True)]
        names = [KINDS[key].name for key in found]
        axis.barh(names, medians, xerr=[low, high], color=[COLOURS[key] for key in found], ecolor="#555555")
        axis.invert_yaxis()
        axis.set_title(f"{figure.name} ({figure.unit}), {'more' if figure.more else 'less'} is better", fontsize=9)
        axis.tick_params(labelsize=8)
    drawing.suptitle("medians and spread of interleaved rounds")
    return drawing


def _curves(pyplot: Any, results: Results) -> Any:
    """Requests/s and p99 by active connections; memory of both sidecars and of the kernel by idle ones."""
    active = curve_pairs(results)
    if not active and not results.idle:
        return None
    drawing, axes = pyplot.subplots(2, 2, figsize=(13, 9), layout="constrained")
    counts = sorted({*REQUESTS, *ACTIVE})
    for key in active:
        for axis, name in ((axes[0][0], figures.rate), (axes[0][1], lambda count: figures.slowest("99", count))):
            points = [(count, value) for count in counts if (value := results.median(key, name(count))) is not None]
            axis.plot(*zip(*points, strict=True), marker="o", color=COLOURS[key], label=KINDS[key].name)
    for key, found in results.idle.items():
        numbers = [point.connections for point in found]
        if not found:
            continue
        kernel = [(point.kernel - found[0].kernel) / 2**20 for point in found]
        axes[1][1].plot(numbers, kernel, marker="o", color=COLOURS[key], label=KINDS[key].name)
        if found[0].memory:
            memory = [sum(point.memory) / 2**20 for point in found]
            axes[1][0].plot(numbers, memory, marker="o", color=COLOURS[key], label=KINDS[key].name)
    titles = ("requests/s", "p99 (ms)", "memory of the pair (MiB)", "growth of the kernel's memory, all pods (MiB)")
    for axis, title, kind in zip(axes.flat, titles, ("active", "active", "idle", "idle"), strict=True):
        axis.set_xscale("log")
        axis.set_title(f"{title} by {kind} connections", fontsize=10)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    axes[0][1].set_yscale("log")
    return drawing
