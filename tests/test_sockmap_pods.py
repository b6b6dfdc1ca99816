"""The short cut as a sidecar has it: in a pod's cgroup, without privileges, and gone when it is killed."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scratch import until
from tproxy.core.cgroup import mounts
from tproxy.kernel import netns

ROOT = Path(__file__).parent.parent
SIDECAR = """
import socket, sys, time
from tests.test_sockmap import STEP, WINDOW, Pair, loaded
from tproxy.core.config import Marks
from tproxy.kernel import privileges
from tproxy.kernel.sock import SO_MARK
made = loaded(True)
privileges.drop(1337, 1337)
pair, told = Pair(), 0
flow = made.flow(pair.own)
while told < 8 * WINDOW:
    pair.app.sendall(bytes(STEP))
    got = 0
    while got < STEP: got += len(pair.own.recv(STEP - got))
    told += got
    flow.received(told)
print(made.cgroup.path, made.state(pair.key(made, pair.app)) == (told, False), flush=True)
with socket.create_server(("127.0.0.1", 7007)) as listener:
    listener.setsockopt(socket.SOL_SOCKET, SO_MARK, Marks().own)
    print("listening", flush=True)
    while True:
        own, name = listener.accept()
        own.recv(1)
        found = [key for key in made.flows.keys(48) if int.from_bytes(key[42:44], "little") == 7007]
        print("seen" if found else "unseen", flush=True)
        own.close()
"""
APPLICATION = "import socket; s = socket.create_connection(('127.0.0.1', 7007)); s.send(b'x'); s.recv(1)"


class Tree:
    """A cgroup of ours with two pods, two containers in each."""

    def __init__(self, root: Path) -> None:
        self.top = root / f"tpt-{uuid.uuid4().hex[:8]}"
        self.pods = [self.top / f"pod{uuid.uuid4()}" for _ in range(2)]
        for pod in self.pods:
            for name in ("sidecar", "application"):
                (pod / name).mkdir(parents=True)

    def run(self, where: Path, space: str, *command: str, prefix: str = "") -> subprocess.Popen[str]:
        """Start a command in a cgroup and a network namespace."""
        line = f'echo $$ > "$0"/cgroup.procs && exec {prefix} nsenter --net=/run/netns/{space} "$@"'
        return subprocess.Popen(
            ["sh", "-c", line, where, sys.executable, *command],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def remove(self) -> None:
        """Empty folders only; the kernel removes their files."""
        until(lambda: not any(at.read_text() for at in self.top.glob("*/*/cgroup.procs")), "processes gone")
        for folder in (*self.top.glob("*/*/"), *self.top.glob("*/"), self.top):
            if folder.is_dir():
                folder.rmdir()


@pytest.fixture
def tree() -> Iterator[Tree]:
    found = [mount for mount in mounts(Path("/proc/self/mountinfo").read_text()) if not mount.above]
    if not found or os.geteuid():
        pytest.skip("needs root and a cgroup v2 mount")
    made = Tree(Path(found[0].point))
    yield made
    made.remove()


@pytest.fixture
def space() -> Iterator[str]:
    name = f"sm-{uuid.uuid4().hex[:8]}"
    netns.create(name)
    yield name
    netns.delete(name)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def started(tree: Tree, space: str, prefix: str = "") -> tuple[subprocess.Popen[str], str]:
    """The sidecar, and the cgroup that it found."""
    process = tree.run(tree.pods[0] / "sidecar", space, "-c", SIDECAR, prefix=prefix)
    where, _, kept = said(process).rpartition(" ")
    if not where:
        end(process)
        pytest.skip("no sockmap here")
    assert kept == "True", "without privileges a reader's reports keep the flow on the short cut"
    assert said(process) == "listening"
    return process, where


def test_other_containers_of_the_pod_are_seen_and_other_pods_are_not(tree: Tree, space: str) -> None:
    sidecar, where = started(tree, space)
    try:
        assert where == str(tree.pods[0])
        for pod, expected in ((0, "seen"), (1, "unseen")):
            application = tree.run(tree.pods[pod] / "application", space, "-c", APPLICATION)
            assert said(sidecar) == expected
            end(application)
    finally:
        end(sidecar)


def test_the_pod_is_found_from_within_a_cgroup_namespace(tree: Tree, space: str, tmp_path: Path) -> None:
    """As in a container that has the node's cgroups mounted beside its own."""
    mounting = f"unshare -C -m sh -c 'mount -t cgroup2 none {tmp_path} && exec \"$@\"' sh"
    sidecar, where = started(tree, space, mounting)
    end(sidecar)
    assert where == str(tree.pods[0])


def test_nothing_stays_in_the_kernel_when_the_sidecar_is_killed(tree: Tree, space: str) -> None:
    sidecar, _ = started(tree, space)
    ids = objects(sidecar.pid)
    assert {kind for kind, _ in ids} == {"map", "prog", "link"}
    end(sidecar)
    until(lambda: not any(alive(kind, number) for kind, number in ids), "programs and maps gone")


def objects(pid: int) -> set[tuple[str, int]]:
    """What of BPF a process holds by descriptor: kind and number (proc(5), fdinfo)."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/fdinfo").iterdir()]
    return {
        (kind, int(number))
        for text in texts
        for kind, number in re.findall(r"^(map|prog|link)_id:\s+(\d+)", text, re.M)
    }


def alive(kind: str, number: int) -> bool:
    fd = getattr(ctypes.CDLL("libbpf.so.1"), f"bpf_{kind}_get_fd_by_id")(number)
    if fd >= 0:
        os.close(fd)
    return fd >= 0
