"""Prometheus' text of several processes as one. PURE.

>>> print(added(["# HELP a b\\n# TYPE a counter\\na{x=\\"1\\"} 2.0\\n", "a{x=\\"1\\"} 3.0\\n"]), end="")
# HELP a b
# TYPE a counter
a{x="1"} 5.0
"""

from __future__ import annotations

from collections.abc import Iterable

_EARLIEST = "_timestamp_seconds"  # of such gauges the earliest counts: when the first of something ends


def added(texts: Iterable[str]) -> str:
    """Samples of the same name and labels are added up; a family's lines stay together."""
    comments: dict[str, list[str]] = {}
    samples: dict[str, dict[str, float]] = {}
    for text in texts:
        family = ""
        for line in text.splitlines():
            if line.startswith("#"):
                _, _, name, *_ = line.split(" ", 3)
                family = name
                if line not in comments.setdefault(name, []):
                    comments[name].append(line)
            elif line:
                key, _, value = line.rpartition(" ")
                name = key.partition("{")[0]
                into = samples.setdefault(family if family and name.startswith(family) else name, {})
                _add(into, key, name, float(value))
    lines = []
    for family in dict.fromkeys((*comments, *samples)):
        lines += comments.get(family, [])
        lines += [f"{key} {value}" for key, value in samples.get(family, {}).items()]
    return "\n".join([*lines, ""])


def _add(into: dict[str, float], key: str, name: str, value: float) -> None:
    if key not in into:
        into[key] = value
    elif name.endswith((_EARLIEST, "_created")):
        into[key] = min(into[key], value)
    else:
        into[key] += value
