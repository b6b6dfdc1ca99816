"""Where the pod's cgroup is, read from /proc/self/cgroup and /proc/self/mountinfo (cgroups(7), cgroup_namespaces(7)).

>>> pod_cgroup("0::/kubepods/besteffort/pod0f2a/c1b2\\n", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\\n")
Found(path='/sys/fs/cgroup/kubepods/besteffort/pod0f2a', how='the pod above our container, cgroup v2')
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# what holds a pod's containers: kubelet's cgroupfs and systemd drivers, podman's
_POD = re.compile(r"(?:pod[0-9a-f][0-9a-f_-]*|kubepods[a-z-]*-pod[0-9a-f_-]+\.slice|libpod_pod_[0-9a-f]+(?:\.slice)?)")
_PODMAN = "libpod_parent"  # with the cgroupfs driver: libpod_parent/POD/libpod-CONTAINER


@dataclass(frozen=True, slots=True)
class Found:
    """The folder of the cgroup that the application shares with us, and how we know."""

    path: str
    how: str


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount of cgroup v2: its line, root and mount point; ``above``: levels that it begins above our namespace."""

    line: str
    root: str
    point: str

    @property
    def above(self) -> int:
        """How many; 0 for an ordinary one."""
        parts = [part for part in self.root.split("/") if part]
        return len(parts) if parts and set(parts) == {".."} else 0


def pod_cgroup(own: str, mountinfo: str) -> Found | None:
    """None without cgroup v2, hybrid or pure."""
    place = next((line.removeprefix("0::") for line in own.splitlines() if line.startswith("0::")), None)
    mounted = mounts(mountinfo)
    if place is None or not mounted:
        return None
    root, point = mounted[0].root, mounted[0].point
    kind = "cgroup v2" if not any(":" in line and not line.startswith("0::") for line in own.splitlines()) else "hybrid"
    inside = place.removeprefix(root) if root != "/" and place.startswith(root) else place
    return pod_above(point, [part for part in inside.split("/") if part], kind)


def pod_above(point: str, parts: list[str], kind: str) -> Found:
    """The pod among the folders that lead to our own cgroup, or our own."""
    for at in range(len(parts) - 1, -1, -1):
        if _POD.fullmatch(parts[at]) or (at and parts[at - 1] == _PODMAN):
            how = f"the pod above our container, {kind}" if at < len(parts) - 1 else f"the pod's own, {kind}"
            return Found("/".join((point, *parts[: at + 1])), how)
    return Found("/".join((point, *parts)), f"our own, no pod above it, {kind}")


def mounts(mountinfo: str) -> list[Mount]:
    """Every mount of cgroup v2, first things first (proc(5), mountinfo)."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if after.startswith("cgroup2 ") and len(fields) > 4:
            found.append(Mount(line, fields[3], fields[4]))
    return found
