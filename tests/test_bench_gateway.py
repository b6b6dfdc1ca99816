"""The gateway's benchmark: a short run is real, and nothing of it stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tproxy.bench.front_run import MEASURES


def holders(folder: Path) -> list[str]:
    """Processes with a file of that folder open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()).startswith(str(folder)):
                found.append(link.parts[2])
        except OSError:
            continue
    return found


def test_all_is_measured_on_both_and_none_of_their_processes_is_left(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tproxy.bench.front_run", "--rounds", "1", "--seconds", "1", "--clients", "40"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=200, env=env)
    assert done.returncode == 0, done.stderr
    rows = {row[0].strip(): row for line in done.stdout.splitlines() if len(row := line.strip("|").split("|")) == 7}
    for name, _ in MEASURES.values():
        assert all(float(rows[name][column].strip().removesuffix("/s").replace(",", "")) > 0 for column in (1, 2, 3))
    weights = [
        [float(row[column].removesuffix("MiB ")) for column in (1, 2)] for row in rows.values() if "memory" in row[0]
    ]
    assert len(weights) == 3 and all(20 < weight < 500 for pair in weights for weight in pair), done.stdout
    assert holders(tmp_path) == []
