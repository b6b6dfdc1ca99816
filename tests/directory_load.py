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
from datetime import timedelta
from multiprocessing import Process as Child
from pathlib import Path

import grpc
import grpc.aio
from cryptography.hazmat.primitives.asymmetric import ec

from tests.ca_load import cpu
from tests.cluster import PODS, SERVICES, SLICES, Cluster, endpoints, pod, service
from tests.control import DOMAIN, Ca, free_port
from tproxy.control import authority, store
from tproxy.core.identity import Snapshot, SpiffeId, Svid
from tproxy.core.settings import Directory as Settings
from tproxy.identity.directory import Directory
from tproxy.wire import WATCH_DIRECTORY
from tproxy.wire import directory_pb2 as wire

CHANGES = 20  # one a second


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


class Svids:
    """What every stream shows."""

    def __init__(self, ca: Ca) -> None:
        middle, key = store.signer(ca.dir), ec.generate_private_key(ec.SECP256R1())
        who = SpiffeId.workload(DOMAIN, "demo", "client")
        leaf = authority.issue(middle, who, key.public_key(), timedelta(hours=1), authority.utc_now())
        made = authority.Pair(leaf, key)
        self.roots = (ca.dir / "bundle.pem").read_bytes()
        self.chain, self.key = made.certificate_pem() + middle.certificate_pem(), made.key_pem()
        ends = int(leaf.not_valid_after_utc.timestamp())
        self.snapshot = Snapshot(Svid(who, self.chain, self.key, 1, ends - 3600, ends), {DOMAIN: self.roots})


async def streams(port: int, svids: Svids, count: int, cluster: Cluster, pid: int) -> None:
    """All of them at once, then a change a second."""
    seen, sizes = [0] * count, [0] * count
    news = asyncio.Event()

    async def one(number: int) -> None:
        options = (("grpc.use_local_subchannel_pool", 1), ("tests.number", number))
        credentials = grpc.ssl_channel_credentials(svids.roots, svids.key, svids.chain)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            method = channel.unary_stream(WATCH_DIRECTORY, wire.WatchRequest.SerializeToString)
            async for raw in method(wire.WatchRequest()):
                sizes[number] += len(raw)
                seen[number] += not wire.Update.FromString(raw).more
                news.set()

    async def everyone(version: int) -> None:
        while min(seen) < version:
            news.clear()
            await news.wait()

    began, used = time.monotonic(), cpu(pid)
    tasks = [asyncio.create_task(one(number)) for number in range(count)]
    await everyone(1)
    span, used = time.monotonic() - began, cpu(pid) - used
    snapshot = sizes[0]
    print(
        f"{count} streams: everything ({snapshot} bytes) is there after {span:.1f} s, "
        f"{used / count * 1000:.1f} ms of CPU each"
    )
    before, used, late = list(sizes), cpu(pid), list[float]()
    for turn in range(CHANGES):
        began = time.monotonic()
        cluster.put(PODS, pod(f"new-{turn}", "account-1", f"10.200.0.{turn}"))
        await everyone(turn + 2)
        late.append(time.monotonic() - began)
        await asyncio.sleep(max(0.0, 1 - late[-1]))
    used, each = cpu(pid) - used, (sum(sizes) - sum(before)) / count / CHANGES
    print(
        f"a pod a second, {count} streams: {each:.0f} bytes a change and stream, {used / CHANGES * 1000:.1f} ms of CPU "
        f"a change ({used / CHANGES / count * 1e6:.0f} us a stream), "
        f"all know after {sorted(late)[CHANGES // 2] * 1000:.0f} ms"
    )
    for task in tasks:
        task.cancel()


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
    everywhere = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as name:
        cluster, port = Cluster(Path(name)), free_port()
        ca = Ca(Path(name), kubernetes=cluster.config, directory={"port": port})
        try:
            os.sched_setaffinity(0, {0})  # the child inherits it
            ca.start()
            os.sched_setaffinity(0, everywhere - {0} or everywhere)
            pid, idle = ca.running().pid, ca.running().pss()
            ca.kill()
            fill(cluster, pods)
            cluster.forget()
            size = sum(len(json.dumps(one)) for objects in cluster.objects.values() for one in objects.values())
            os.sched_setaffinity(0, {0})
            began = time.monotonic()
            ca.start()
            os.sched_setaffinity(0, everywhere - {0} or everywhere)
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
