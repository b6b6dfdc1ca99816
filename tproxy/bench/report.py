"""Results as Markdown and JSON. Pure but for ``write``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tproxy.bench import figures, words
from tproxy.bench.figures import CURVES, FIGURES, KINDS, Figure, Point, Results, best, reference
from tproxy.bench.goals import goals

HOPS = ("hop", "envoyhop")


def markdown(results: Results) -> str:
    """The whole report."""
    chain = [key for key in results.pairs if key not in (*HOPS, "resumption")]
    ours, theirs = best(results), reference(results)
    parts = [
        table(results, chain, FIGURES, ours, theirs),
        _part("New connections with resumption", resumption(results)),
        _part("One plain hop", table(results, [key for key in HOPS if key in results.pairs], FIGURES, *HOPS)),
        _part("How it grows: active connections", table(results, curve_pairs(results), CURVES, ours, theirs)),
        _part("How it grows: idle connections", idle(results.idle)),
        _part("Goals", goal_table(results)),
        _part("In words", "\n\n".join(words.text(results))),
        _part("Pairs", "\n".join(f"- {KINDS[key].name}: {KINDS[key].about}" for key in results.pairs)),
        _part("Notes", "\n".join(f"- {note}" for note in results.notes)),
        "\n" + circumstances(results),
    ]
    return "\n".join(part for part in parts if part)


def table(
    results: Results, keys: Sequence[str], rows: Sequence[Figure], ours: str | None = None, theirs: str | None = None
) -> str:
    """A row a figure, a column a pair (medians), and one of ours against theirs; empty if there is nothing to show."""
    against = bool(ours in keys and theirs in keys and ours != theirs)
    last = [f"{KINDS[ours].name} against {KINDS[theirs].name}"] if against and ours and theirs else []
    lines = []
    for figure in rows:
        values = [results.median(key, figure.name) for key in keys]
        if any(value is not None for value in values):
            cells = [shown(value) for value in values]
            cells += [_ratio(results, ours or "", theirs or "", figure)] if against else []
            lines.append(_row([f"{figure.name} ({figure.unit})", *cells]))
    return "\n".join([*_head(["", *(KINDS[key].name for key in keys), *last]), *lines]) if lines else ""


def resumption(results: Results) -> str:
    """New connections: resumed, ours in full, and the reference's in full."""
    keys = [key for key in ("resumption", "mtls", reference(results)) if key in results.rounds]
    rows = [figure for figure in FIGURES if figure.name in (figures.NEW, figures.CPU_CONNECTIONS)]
    return table(results, [key for key in keys if key], rows, "resumption", reference(results))


def idle(found: dict[str, list[Point]]) -> str:
    """Memory of each sidecar by the number of connections, and of one more."""
    keys = [key for key, points in found.items() if points and points[0].memory]
    counts = sorted({point.connections for key in keys for point in found[key]})
    if not keys:
        return ""
    names = {key: f"{KINDS[key].name} (MiB)" for key in keys}
    lines = _head(["idle connections", *names.values()])
    for count in counts:
        lines.append(_row([f"{count:,}", *(_sides(found[key], count) for key in keys)]))
    slopes = {key: figures.per_connection(found[key]) for key in keys}
    each = [" + ".join(f"{side / 1024:.1f}" for side in slope[0]) if slope else "-" for slope in slopes.values()]
    shares = [figures.kernel_share(found, key) for key in keys]
    lines.append(_row(["one more, KiB in each sidecar", *each]))
    lines.append(
        _row(["kernel memory of one more, KiB a sidecar", *("-" if s is None else f"{s / 1024:.1f}" for s in shares)])
    )
    return "\n".join(lines)


def goal_table(results: Results) -> str:
    """Every goal with its measured value; empty if none was measured."""
    found = goals(results)
    if all(goal.met is None for goal in found):
        return ""
    verdict = {True: "met", False: "**missed**", None: "-"}
    rows = [_row([goal.name, goal.wanted, goal.measured, verdict[goal.met]]) for goal in found]
    return "\n".join([*_head(["goal", "wanted", "measured", ""]), *rows])


def circumstances(results: Results) -> str:
    """One line: where and how it was measured."""
    about = results.about
    return (
        f"medians of {about.get('rounds')} interleaved rounds of {about.get('seconds'):g} s; "
        "ratios are medians of the ratio within a round (smallest-largest); CPU is the whole machine's; "
        f"{about.get('processors')} processors, Linux {about.get('kernel')}, {about.get('openssl')}; "
        f"took {about.get('took', 0) / 60:.1f} minutes"
    )


def curve_pairs(results: Results) -> list[str]:
    """The pairs that were measured with more connections."""
    return [key for key in results.pairs if any(results.values(key, figure.name) for figure in CURVES)]


def document(results: Results) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        **results.as_json(),
        "goals": [asdict(goal) for goal in goals(results)],
        "text": words.text(results),
    }


def write(results: Results, folder: Path) -> list[Path]:
    """bench.json and bench.md."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / "bench.json", folder / "bench.md"]
    made[0].write_text(json.dumps(document(results), indent=2) + "\n")
    made[1].write_text(markdown(results) + "\n")
    return made


def shown(value: float | None) -> str:
    """A figure as it stands in a table."""
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _ratio(results: Results, ours: str, theirs: str, figure: Figure) -> str:
    ratio = results.ratio(ours, theirs, figure.name)
    if ratio is None:
        return "-"
    return f"{ratio}" + ("" if (ratio.median >= 1) == figure.more or ratio.median == 1 else ", worse")


def _sides(points: Sequence[Point], count: int) -> str:
    memory = next((point.memory for point in points if point.connections == count), ())
    return " + ".join(f"{side / 2**20:.1f}" for side in memory) or "-"


def _part(title: str, text: str) -> str:
    return f"\n### {title}\n\n{text}" if text else ""


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|" + "---|" * len(cells)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
