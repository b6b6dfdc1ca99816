"""Control groups of the world's pods (cgroups(7), version 2), as a kubelet would give them: one for each pod.

No controller is switched on, so nothing is limited; what matters is which sockets belong to which pod.
"""

from __future__ import annotations

import os
from pathlib import Path

from tproxy.world.process import wait_for

MOUNTS = Path("/proc/mounts")


def root() -> Path | None:
    """Where cgroup2 is mounted, alone or beside version 1 (hybrid), and may be written; None if nowhere."""
    for line in MOUNTS.read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(where, os.W_OK):
            return Path(where)
    return None


def create(world: str, pod: str) -> Path | None:
    """A group for one pod, or None where there are none to be had: then the pod lives in ours."""
    top = root()
    if top is None:
        return None
    path = top / world / pod
    try:
        path.mkdir(parents=True)
    except OSError:  # mounted, but not delegated to us
        return None
    return path


def remove(world: str) -> None:
    """Every group of one world. Its processes have ended; the kernel lets go of them a moment later."""
    top = root()
    if top is not None and (top / world).is_dir():
        wait_for(lambda: _removed(top / world), 10, f"the control groups of {world} are empty")


def worlds() -> list[str]:
    """The names of all worlds that have control groups."""
    top = root()
    return [] if top is None else [path.name for path in top.glob("tp*-*") if path.is_dir()]


def _removed(path: Path) -> bool:
    try:
        for below in [entry for entry in path.iterdir() if entry.is_dir()]:
            if not _removed(below):
                return False
        path.rmdir()
    except FileNotFoundError:  # another process may sweep, too
        return True
    except OSError:  # EBUSY: a process is still ending
        return False
    return True
