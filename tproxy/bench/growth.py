"""What idle connections cost: memory of each sidecar, a connection, as their number grows."""

from __future__ import annotations

import sys

from tproxy.bench.pairs import DOMAIN, LIKE_ENVOY
from tproxy.world import apps
from tproxy.world.pods import World, wait_for
from tproxy.world.sidecars import Authority, Sidecar

STEPS = (1, 100, 1000, 3000, 9000)  # two files a connection, of the 20 000 that a process may have here
SERVER = """
import asyncio
async def one(reader, writer):
    writer.write(await reader.read(1))
    await reader.read(1)
    writer.close()
async def main():
    async with await asyncio.start_server(one, "0.0.0.0", 7070, backlog=4096, limit=1024) as server:
        await server.serve_forever()
asyncio.run(main())
"""
CLIENT = """
import asyncio, sys
async def main():
    kept, gate = [], asyncio.Semaphore(64)
    async def one():
        async with gate:
            reader, writer = await asyncio.open_connection(sys.argv[1], 7070, limit=1024)
            writer.write(b"x")
            assert await reader.read(1) == b"x"
            kept.append((reader, writer))
    for line in sys.stdin:
        await asyncio.gather(*(one() for _ in range(int(line) - len(kept))))
        print(len(kept), flush=True)
        with open(sys.argv[2], "w") as file:
            file.write(str(len(kept)))
asyncio.run(main())
"""


def idle(steps: tuple[int, ...] = STEPS) -> dict[str, dict[int, float]]:
    """KiB of PSS a connection, above the first, for the egress and the ingress sidecar, by number of connections."""
    found: dict[str, dict[int, float]] = {"egress": {}, "ingress": {}}
    with World() as world:
        ca = Authority(world, DOMAIN)
        client, server = world.pod("idle-client"), world.pod("idle-server")
        limits = {"limits": {"connections": steps[-1] + 100}, **LIKE_ENVOY}
        sides = [Sidecar(pod, ca.issue(pod.name), DOMAIN, **limits).up() for pod in (client, server)]
        apps.listening(server.start([sys.executable, "-c", SERVER]), server, 7070)
        base: list[int] = []
        for step in steps:
            done = world.directory / f"idle-{step}"
            argv = [sys.executable, "-c", f"{CLIENT}", server.v4, str(done)]
            extra = step - (steps[steps.index(step) - 1] if step != steps[0] else 0)
            holder = client.start(["sh", "-c", f'(echo {extra}; sleep 600) | "$@"', "sh", *argv])
            wait_for(done.exists, 120, f"{step} connections are open", holder)
            sizes = [side.pss() for side in sides]
            base = base or sizes
            if step > 1:
                for name, size, first in zip(found, sizes, base, strict=True):
                    found[name][step] = (size - first) / 1024 / (step - 1)
    return found
