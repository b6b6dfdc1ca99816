"""What the suite's tests expect of statuses, read from ``statuses.txt``, which says how it is written."""

from __future__ import annotations

from pathlib import Path

ALL = "*"
ACCEPTED = "Accepted=True:Accepted ResolvedRefs=True:ResolvedRefs"


def _read() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = ""
    for line in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").split("\n"):
        if line.startswith(" "):
            found[name].append(line.strip())
        elif line and not line.startswith("#"):
            found[name := line] = []
    return found


STATUSES = _read()
