"""Many short connections through both sidecars: none fails, no byte is lost, nothing grows."""

from __future__ import annotations

import json
import os
import sys

from tests.conftest import Mesh
from tproxy.world.pods import wait_for
from tproxy.world.sidecars import Sidecar

COUNT = int(os.environ.get("TPROXY_SOAK", "3000"))  # make soak says 100000
CALLER = """
import asyncio, hashlib, json, sys
host, count = sys.argv[1], int(sys.argv[2])
errors, wrong = [], 0

async def one(number):
    global wrong
    data = hashlib.shake_128(str(number).encode()).digest(number % 5000 + 1)
    try:
        reader, writer = await asyncio.open_connection(host, 7)
        writer.write(data)
        writer.write_eof()
        wrong += await reader.read(-1) != data
        writer.close()
        await writer.wait_closed()
    except OSError as error:
        errors.append(str(error))

async def main():
    numbers = iter(range(count))
    async def worker():
        for number in numbers:
            await one(number)
    await asyncio.gather(*(worker() for _ in range(16)))

asyncio.run(main())
print(json.dumps({"errors": len(errors), "first": errors[:3], "wrong": wrong}))
"""


def settle(sidecar: Sidecar) -> tuple[int, int]:
    """Memory and files once all connections have ended."""
    wait_for(lambda: sidecar.metrics()["tproxy_connections_open"] == 0, 30, "every connection has ended")
    return sidecar.pss(), sidecar.files()


def storm(mesh: Mesh, count: int) -> dict[str, object]:
    """This many short connections, and what went wrong."""
    done = mesh.client.run([sys.executable, "-c", CALLER, mesh.web.v4, str(count)], timeout=800, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_short_connections_lose_nothing_and_leave_nothing(mesh: Mesh) -> None:
    storm(mesh, 500)  # what is allocated once is allocated now
    before = [settle(side) for side in (mesh.server, mesh.caller)]
    assert storm(mesh, COUNT) == {"errors": 0, "first": [], "wrong": 0}
    after = [settle(side) for side in (mesh.server, mesh.caller)]
    for (memory, files), (memory_now, files_now) in zip(before, after, strict=True):
        assert files_now <= files
        assert memory_now - memory < 4 << 20
    for side in (mesh.server, mesh.caller):
        records = side.records()
        assert len(records) == COUNT + 500
        assert {record["outcome"] for record in records} == {"closed"}
