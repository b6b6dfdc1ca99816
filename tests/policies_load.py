"""What policies from the API cost: python -m tests.policies_load [objects] [streams]. Numbers for ARCHITECTURE.md, no
assertion.

The server runs on CPU 0 alone; all streams are of one namespace, which has a twentieth of the objects.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.ca_load import cpu, start_alone
from tests.cluster import Cluster
from tests.control import Ca
from tests.istio import auth
from tests.telling_load import CHANGES, Readers, Svids
from tproxy.wire import WATCH_POLICIES
from tproxy.wire.policies_pb2 import PoliciesRequest, PolicySet
from tproxy.world.ports import free_port

SPACES = 20  # namespaces; one of them is demo


def rule(account: str) -> str:
    """As people write them."""
    source = f"{{principals: [cluster.local/ns/demo/sa/{account}], notNamespaces: [other]}}"
    return f"rules: [{{from: [{{source: {source}}}], to: [{{operation: {{ports: ['80', '443']}}}}]}}]"


async def streams(port: int, svids: Svids, count: int, cluster: Cluster, pid: int) -> None:
    """All of them at once, then a change a second."""
    request = PoliciesRequest().SerializeToString()
    readers = Readers(WATCH_POLICIES, request, lambda raw: not PolicySet.FromString(raw).more)
    began, used = time.monotonic(), cpu(pid)
    readers.begin(port, svids, count)
    await readers.everyone(1)
    print(
        f"{count} streams: a set of {readers.sizes[0]} bytes each after {time.monotonic() - began:.1f} s, "
        f"{(cpu(pid) - used) / count * 1000:.1f} ms of CPU each"
    )
    used, late = await readers.changes(lambda turn: cluster.apply(auth(rule(f"turn-{turn}"), "demo/turning")), pid)
    print(
        f"a change a second: {used / CHANGES * 1000:.1f} ms of CPU each, "
        f"all know after {late[CHANGES // 2] * 1000:.0f} ms, the slowest {late[-1] * 1000:.0f} ms"
    )
    readers.end()


def main(objects: int, count: int) -> None:
    """All figures."""
    with tempfile.TemporaryDirectory() as name:
        cluster, port = Cluster(Path(name)), free_port()
        cluster.define("v1")
        for number in range(objects):
            space = f"space-{number % SPACES}" if number % SPACES else "demo"
            cluster.apply(auth(rule(f"account-{number}"), f"{space}/policy-{number}"))
        cluster.forget()
        ca = Ca(Path(name), kubernetes=cluster.config, directory={"port": port}, policies={})
        try:
            began = time.monotonic()
            start_alone(ca)
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
