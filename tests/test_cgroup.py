"""Where the pod's cgroup is, for every layout that kubelet, podman and bare machines make."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.cgroup import Found, pod_cgroup

PURE = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
HYBRID = "31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
UID = "0f2a1c9e-11aa-4b5c-8d6e-7f8091a2b3c4"
SLICE = f"kubepods-burstable-pod{UID.replace('-', '_')}.slice"

LAYOUTS = {
    "kubelet, cgroupfs driver": (f"0::/kubepods/burstable/pod{UID}/c0ffee\n", PURE, f"/kubepods/burstable/pod{UID}"),
    "kubelet, systemd driver": (
        f"0::/kubepods.slice/kubepods-burstable.slice/{SLICE}/cri-containerd-c0ffee.scope\n",
        PURE,
        f"/kubepods.slice/kubepods-burstable.slice/{SLICE}",
    ),
    "podman": (
        "0::/machine.slice/libpod_pod_ab12.slice/libpod-c0ffee.scope/container\n",
        PURE,
        "/machine.slice/libpod_pod_ab12.slice",
    ),
    "a bare process": ("0::/user.slice/session-1.scope\n", PURE, "/user.slice/session-1.scope"),
    "the root": ("0::/\n", PURE, ""),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_pod_is_found_above_the_container(name: str) -> None:
    own, mounts, path = LAYOUTS[name]
    found = pod_cgroup(own, mounts)
    assert found is not None and found.path == "/sys/fs/cgroup" + path


def test_in_hybrid_mode_the_unified_mount_is_taken() -> None:
    own = "8:pids:/\n1:name=systemd:/\n0::/\n"
    assert pod_cgroup(own, HYBRID) == Found("/sys/fs/cgroup/unified", "our own, no pod above it, hybrid")


def test_without_cgroup_v2_there_is_none() -> None:
    assert pod_cgroup("8:pids:/\n", PURE) is None
    assert pod_cgroup("0::/a\n", "30 23 0:26 / /sys rw - sysfs sysfs rw\n") is None


@given(st.text(max_size=200), st.text(max_size=200))
def test_nothing_that_proc_could_say_raises(own: str, mounts: str) -> None:
    pod_cgroup(own, mounts)
