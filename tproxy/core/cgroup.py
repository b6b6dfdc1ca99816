"""Where the pod's cgroup is, read from /proc/self/cgroup and /proc/self/mountinfo (cgroups(7)).

>>> pod_cgroup("0::/kubepods/besteffort/pod0f2a/c1b2\\n", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\\n")
Found(path='/sys/fs/cgroup/kubepods/besteffort/pod0f2a', how='the pod above our container, cgroup v2')
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# what holds a pod's containers: kubelet's cgroupfs and systemd drivers, podman
_POD = re.compile(r"(?:pod[0-9a-f][0-9a-f_-]*|kubepods[a-z-]*-pod[0-9a-f_-]+\.slice|libpod_pod_[0-9a-f]+(?:\.slice)?)")


@dataclass(frozen=True, slots=True)
class Found:
    """The folder of the cgroup that the application shares with us, and how we know."""

    path: str
    how: str


def pod_cgroup(own: str, mounts: str) -> Found | None:
    """None without cgroup v2, hybrid or pure."""
    place = next((line.removeprefix("0::") for line in own.splitlines() if line.startswith("0::")), None)
    root, mount = _mount(mounts)
    if place is None or mount is None:
        return None
    kind = "cgroup v2" if not any(":" in line and not line.startswith("0::") for line in own.splitlines()) else "hybrid"
    inside = place.removeprefix(root) if root != "/" and place.startswith(root) else place
    parts = [part for part in inside.split("/") if part]
    for at in range(len(parts) - 1, -1, -1):
        if _POD.fullmatch(parts[at]):
            how = f"the pod above our container, {kind}" if at < len(parts) - 1 else f"the pod's own, {kind}"
            return Found("/".join((mount, *parts[: at + 1])), how)
    return Found("/".join((mount, *parts)), f"our own, no pod above it, {kind}")


def _mount(mounts: str) -> tuple[str, str | None]:
    """Root within the file system, and mount point, of the first cgroup2 (proc(5), mountinfo)."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if after.startswith("cgroup2 ") and len(fields) > 4:
            return fields[3], fields[4]
    return "/", None
