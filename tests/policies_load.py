"""What policies from the API cost: python -m tests.policies_load [objects] [streams]. Numbers for ARCHITECTURE.md, no
assertion.

The server runs on CPU 0 alone; all streams are of one namespace, which has a twentieth of the objects.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import grpc.aio

from tests.ca_load import cpu
from tests.cluster import Cluster
from tests.control import Ca, free_port
from tests.directory_load import Svids
from tests.istio import auth
from tproxy.wire import WATCH_POLICIES
from tproxy.wire.policies_pb2 import PoliciesRequest, PolicySet

CHANGES = 20  # one a second
SPACES = 20  # namespaces; one of them is demo


def rule(account: str) -> str:
    """As people write them."""
    source = f"{{principals: [cluster.local/ns/demo/sa/{account}], notNamespaces: [other]}}"
    return f"rules: [{{from: [{{source: {source}}}], to: [{{operation: {{ports: ['80', '443']}}}}]}}]"


async def streams(port: int, svids: Svids, count: int, cluster: Cluster, pid: int) -> None:
    """All of them at once, then a change a second."""
    seen, size = [0] * count, 0
    news = asyncio.Event()

    async def one(number: int) -> None:
        nonlocal size
        options = (("grpc.use_local_subchannel_pool", 1), ("tests.number", number))
        credentials = grpc.ssl_channel_credentials(svids.roots, svids.key, svids.chain)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            method = channel.unary_stream(WATCH_POLICIES, PoliciesRequest.SerializeToString)
            async for raw in method(PoliciesRequest()):
                size = len(raw)
                seen[number] += not PolicySet.FromString(raw).more
                news.set()

    async def everyone(version: int) -> None:
        while min(seen) < version:
            news.clear()
            await news.wait()

    began, used = time.monotonic(), cpu(pid)
    tasks = [asyncio.create_task(one(number)) for number in range(count)]
    await everyone(1)
    print(
        f"{count} streams: a set of {size} bytes each after {time.monotonic() - began:.1f} s, "
        f"{(cpu(pid) - used) / count * 1000:.1f} ms of CPU each"
    )
    used, late = cpu(pid), list[float]()
    for turn in range(CHANGES):
        began = time.monotonic()
        cluster.apply(auth(rule(f"turn-{turn}"), "demo/turning"))
        await everyone(turn + 2)
        late.append(time.monotonic() - began)
        await asyncio.sleep(max(0.0, 1 - late[-1]))
    print(
        f"a change a second: {(cpu(pid) - used) / CHANGES * 1000:.1f} ms of CPU each, "
        f"all know after {sorted(late)[CHANGES // 2] * 1000:.0f} ms, the slowest {max(late) * 1000:.0f} ms"
    )
    for task in tasks:
        task.cancel()


def main(objects: int, count: int) -> None:
    """All figures."""
    everywhere = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as name:
        cluster, port = Cluster(Path(name)), free_port()
        cluster.define("v1")
        for number in range(objects):
            space = f"space-{number % SPACES}" if number % SPACES else "demo"
            cluster.apply(auth(rule(f"account-{number}"), f"{space}/policy-{number}"))
        cluster.forget()
        ca = Ca(Path(name), kubernetes=cluster.config, directory={"port": port}, policies={})
        try:
            os.sched_setaffinity(0, {0})  # the child inherits it
            began = time.monotonic()
            ca.start()
            os.sched_setaffinity(0, everywhere - {0} or everywhere)
            pid = ca.running().pid
            print(
                f"{objects} objects in {SPACES} namespaces: known {time.monotonic() - began:.1f} s after the start, "
                f"{cpu(pid):.1f} s of CPU, PSS {ca.running().pss() >> 20} MiB"
            )
            asyncio.run(streams(port, Svids(ca), count, cluster, pid))
            print(f"PSS {ca.running().pss() >> 20} MiB after {count} streams")
        finally:
            ca.kill()
            cluster.stop()


if __name__ == "__main__":
    numbers = [int(one) for one in sys.argv[1:]]
    main(*(numbers or [2000, 200]))
