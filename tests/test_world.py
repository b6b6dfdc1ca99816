"""The world: pods that reach each other, applications that serve, and nothing that stays behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tproxy.kernel import netns
from tproxy.world import apps, cgroup
from tproxy.world.pods import Pod, World, sweep, wait_for

PEER = (sys.executable, "-m", "tproxy.world.peer")
MADE = """
import os, signal, sys, time
from tproxy.world.pods import World
with World() as world:
    process = world.pod("a").start(["sleep", "300"])
    print(world.directory, process.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def two(world: World) -> tuple[Pod, Pod]:
    """Two pods."""
    return world.pod("one"), world.pod("two")


def test_pods_reach_each_other_by_both_families(two: tuple[Pod, Pod]) -> None:
    apps.nginx(two[0], {"index.html": b"page\n"})
    for host in (two[0].v4, f"[{two[0].v6}]"):
        assert two[1].run(["curl", "-s", "-m", "5", f"http://{host}/"]).stdout == "page\n"


def test_a_pod_has_a_control_group_of_its_own(two: tuple[Pod, Pod]) -> None:
    if cgroup.root() is None:
        pytest.skip("there is no cgroup2 to be written here")
    for pod in two:
        assert pod.cgroup is not None
        assert pod.run(["cat", "/proc/self/cgroup"]).stdout.splitlines()[-1].endswith(f"/{pod.cgroup.name}")
    assert two[0].cgroup != two[1].cgroup


def test_memory_counts_children_too(two: tuple[Pod, Pod]) -> None:
    alone, parent = two[0].start(["sleep", "60"]), two[0].start(["sh", "-c", "sleep 60; true"])
    wait_for(lambda: Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text(), 5, "a child", parent)
    assert parent.pss() > alone.pss() > 0


def test_the_bridge_can_be_watched(two: tuple[Pod, Pod]) -> None:
    path = two[0].world.directory / "wire.pcap"
    with two[0].world.tcpdump(path):
        two[1].run(["curl", "-s", "-m", "5", f"http://{two[0].v4}/"], check=True)
    assert b"GET / HTTP/1.1" in path.read_bytes()


@pytest.mark.parametrize("count", [0, 1, 64 << 20])
def test_the_peer_moves_exact_bytes_both_ways(two: tuple[Pod, Pod], count: int) -> None:
    port = 9000 + count % 1000
    apps.peer(two[0], port, "duplex", count)
    argv = [*PEER, "connect", "--to", f"{two[0].v4}:{port}", "--bytes", str(count), "--expect", str(count)]
    found = json.loads(two[1].run(argv, check=True).stdout)
    assert (found["exact"], found["received"]) == (True, count)


def test_the_peer_notices_a_byte_that_is_wrong(two: tuple[Pod, Pod]) -> None:
    apps.peer(two[0], 9500, "duplex", 1000)
    done = two[1].run([*PEER, "connect", "--to", f"{two[0].v4}:9500", "--expect", "1001"])
    assert done.returncode == 1
    assert json.loads(done.stdout)["exact"] is False


@pytest.mark.parametrize("end", ["left", "SIGTERM", "SIGINT", "SIGKILL"])
def test_nothing_stays_behind(end: str) -> None:
    """After kill -9 the processes die at once, and the next world removes the namespaces."""
    maker = subprocess.Popen([sys.executable, "-c", MADE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert maker.stdin and maker.stdout
    directory, pid = maker.stdout.readline().split()
    if end == "left":
        maker.stdin.close()
    else:
        subprocess.run(["kill", f"-{end.removeprefix('SIG')}", str(maker.pid)], check=True)
    maker.wait(20)
    maker.stdout.close()
    if end != "left":
        maker.stdin.close()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 5, "the pod's process dies")
    if end == "SIGKILL":
        World().__enter__().close()
    assert not Path(directory).exists()
    assert not [name for name in netns.names() if name.startswith(Path(directory).name)]
    assert Path(directory).name not in cgroup.worlds()


SCRATCH = """
import sys
from tests.scratch import netns
with netns() as made:
    made.echo(7)
    print(made.name, flush=True)
    sys.stdin.read()
"""


def test_a_killed_test_s_namespace_is_swept_and_a_living_one_s_is_not() -> None:
    with subprocess.Popen([sys.executable, "-c", SCRATCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
        assert maker.stdout
        name = maker.stdout.readline().decode().strip()
        sweep()
        assert name in netns.names() and netns.pids(name)
        maker.kill()
        maker.wait(5)
        sweep()
        assert name not in netns.names()


def test_waiting_has_a_deadline_and_says_for_what() -> None:
    with pytest.raises(TimeoutError, match="the moon: not within"):
        wait_for(lambda: False, 0.05, "the moon")
