"""The pod's cgroup: what proc says (core/cgroup.py), and a search where a cgroup namespace hides the names.

Container runtimes give each container a cgroup namespace: it then calls its own cgroup "/", and the pod's above it can
only be seen through another mount of cgroup v2, say the node's /sys/fs/cgroup mounted into the sidecar. There our own
is the folder with the same inode.
"""

from __future__ import annotations

import os
from pathlib import Path

from tproxy.core.cgroup import Found, Mount, mounts, pod_above, pod_cgroup
from tproxy.kernel.errors import KernelError

ADVICE = "mount the node's /sys/fs/cgroup into the sidecar, where its container has a cgroup namespace"


def find() -> Found:
    """The one that the application shares with us. KernelError without cgroup v2."""
    own, mounted = Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()
    found = _hidden(own, mounted) or pod_cgroup(own, mounted)
    if found is None or not Path(found.path).is_dir():
        raise KernelError("finding the pod's cgroup", found.path if found else "no cgroup2 mount", ADVICE)
    return found


def _hidden(own: str, mounted: str) -> Found | None:
    """The pod's, seen through a mount that shows more than our cgroup namespace."""
    all_mounts = mounts(mounted)
    inside = pod_cgroup(own, "".join(f"{mount.line}\n" for mount in all_mounts if not mount.above))
    if inside is None or not Path(inside.path).is_dir():
        return None
    inode = Path(inside.path).stat().st_ino
    for mount in all_mounts:
        if mount.above and (place := _place(mount, inode)):
            return pod_above(mount.point, place, "seen through a mount of the node's")
    return None


def _place(mount: Mount, inode: int) -> list[str] | None:
    """The names that lead from the mount to the cgroup with this number; as deep as the mount says."""
    level: list[list[str]] = [[]]
    for _ in range(mount.above):
        level = [[*names, entry.name] for names in level for entry in _folders(Path(mount.point, *names))]
    return next((names for names in level if Path(mount.point, *names).stat().st_ino == inode), None)


def _folders(path: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # gone meanwhile
        return []
