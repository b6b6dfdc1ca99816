"""What the directory costs: python -m tests.directory_load [pods] [streams]. Numbers for ARCHITECTURE.md, no assertion.

The server runs on CPU 0 alone; the cluster of tests/cluster.py and the streams, each a TLS connection of its own, on
the others. Then one client as sidecars have it, alone in a process.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from multiprocessing import Process as Child
from pathlib import Path

from tests.ca_load import cpu, start_alone
from tests.cluster import PODS, SERVICES, SLICES, Cluster, endpoints, pod, service
from tests.control import DOMAIN, Ca
from tests.telling_load import CHANGES, Readers, Svids
from tproxy.core.settings import Directory as Settings
from tproxy.identity.directory import Directory
from tproxy.wire import WATCH_DIRECTORY
from tproxy.wire import directory_pb2 as wire
from tproxy.world.ports import free_port


def address(number: int) -> str:
    """Of the pod with this number."""
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def fill(cluster: Cluster, pods: int) -> None:
    """Pods of a hundred accounts, twenty to a service."""
    for number in range(pods):
        made = pod(f"workload-{number // 20}-7d9f8b6c5-{number:05}", f"account-{number // 20 % 100}", address(number))
        made["metadata"]["managedFields"] = [{"fieldsV1": "x" * 4000}]  # real ones are as large
        cluster.put(PODS, made)
    for number in range(pods // 20):
        behind = [address(number * 20 + one) for one in range(20)]
        cluster.put(SERVICES, service(f"workload-{number}", f"172.20.{number >> 8}.{number & 255}"))
        cluster.put(SLICES, endpoints(f"workload-{number}", *behind))


async def streams(port: int, svids: Svids, count: int, cluster: Cluster, pid: int) -> None:
    """All of them at once, then a change a second."""
    request = wire.WatchRequest().SerializeToString()
    readers = Readers(WATCH_DIRECTORY, request, lambda raw: not wire.Update.FromString(raw).more)
    began, used = time.monotonic(), cpu(pid)
    readers.begin(port, svids, count)
    await readers.everyone(1)
    span, used = time.monotonic() - began, cpu(pid) - used
    print(
        f"{count} streams: everything ({readers.sizes[0]} bytes) is there after {span:.1f} s, "
        f"{used / count * 1000:.1f} ms of CPU each"
    )
    before = sum(readers.sizes)
    used, late = await readers.changes(
        lambda turn: cluster.put(PODS, pod(f"new-{turn}", "account-1", f"10.200.0.{turn}")), pid
    )
    print(
        f"a pod a second, {count} streams: {(sum(readers.sizes) - before) / count / CHANGES:.0f} bytes a change and "
        f"stream, {used / CHANGES * 1000:.1f} ms of CPU a change ({used / CHANGES / count * 1e6:.0f} us a stream), "
        f"all know after {late[CHANGES // 2] * 1000:.0f} ms"
    )
    readers.end()


def client(port: int, svids: Svids, entries: int) -> None:
    """A sidecar's side, in a process that has loaded everything and does nothing else."""

    async def scene() -> None:
        pid, before = os.getpid(), memory()
        made = Directory(Settings(f"127.0.0.1:{port}", "localhost"), DOMAIN)
        made.renewed(svids.snapshot)
        began = cpu(pid)
        running = asyncio.create_task(made.run(lambda _: None))
        while made.status.entries < entries:  # noqa: ASYNC110  # its numbers are what is measured
            await asyncio.sleep(0.05)
        print(f"a client: {memory() - before:.1f} MiB for {entries} entries, {(cpu(pid) - began) * 1000:.0f} ms of CPU")
        updates, used = made.status.updates, cpu(pid)
        await asyncio.sleep(CHANGES)
        count = made.status.updates - updates
        print(f"a client: {count} changes, {(cpu(pid) - used) / max(1, count) * 1000:.1f} ms of CPU each")
        running.cancel()

    asyncio.run(scene())


def memory() -> float:
    """Our PSS in MiB."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def main(pods: int, count: int) -> None:
    """All figures."""
    with tempfile.TemporaryDirectory() as name:
        cluster, port = Cluster(Path(name)), free_port()
        ca = Ca(Path(name), kubernetes=cluster.config, directory={"port": port})
        try:
            start_alone(ca)
            pid, idle = ca.running().pid, ca.running().pss()
            ca.kill()
            fill(cluster, pods)
            cluster.forget()
            size = sum(len(json.dumps(one)) for objects in cluster.objects.values() for one in objects.values())
            began = time.monotonic()
            start_alone(ca)
            pid = ca.running().pid
            print(
                f"{pods} pods, {pods // 20} services ({size >> 20} MiB of JSON): known "
                f"{time.monotonic() - began:.1f} s after the start, {cpu(pid):.1f} s of CPU, "
                f"PSS {ca.running().pss() >> 20} MiB ({idle >> 20} MiB without)"
            )
            svids = Svids(ca)
            asyncio.run(streams(port, svids, count, cluster, pid))
            print(f"PSS {ca.running().pss() >> 20} MiB after {count} streams")
            one = Child(target=client, args=(port, svids, pods + pods // 20 + CHANGES))
            one.start()
            for turn in range(CHANGES * 3):
                cluster.put(PODS, pod("turning", f"account-{turn}", "10.200.0.1"))
                time.sleep(1)
                if not one.is_alive():
                    break
            one.join()
        finally:
            ca.kill()
            cluster.stop()


if __name__ == "__main__":
    numbers = [int(one) for one in sys.argv[1:]]
    main(*(numbers or [10_000, 200]))
