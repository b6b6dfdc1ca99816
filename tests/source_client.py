"""A process that follows one source as the sidecar does, under uvloop, and tells what that cost: a child of the tests.

Arguments: JSON with ``kind`` and its settings, ``seconds`` to follow after the first snapshot, ``uid`` to become first.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from pathlib import Path

MIB = 1024.0  # KiB


def memory() -> dict[str, float]:
    """MiB: ``rss``, and ``alone``: as if no other process had our packages mapped, only Python itself."""
    rss = alone = 0.0
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, rest = line.partition(" ")
        if not key.endswith(":"):
            name = line[73:].strip()
        elif key == "Rss:":
            rss += int(rest.split()[0]) / MIB
            alone += int(rest.split()[0]) / MIB if "site-packages" in name else 0
        elif key == "Pss:":
            alone += int(rest.split()[0]) / MIB if "site-packages" not in name else 0
    return {"rss": rss, "alone": alone}


def cpu() -> float:
    """Seconds that this process has worked."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(want: dict[str, object]) -> None:
    """Import what a sidecar imports, follow, print one line of JSON."""
    import uvloop

    from tproxy.admin import dump, http, metrics  # noqa: F401
    from tproxy.core.config import Config
    from tproxy.core.identity import Snapshot
    from tproxy.core.settings import IstioCa, Trust, WorkloadApi
    from tproxy.identity.keeper import Keeper
    from tproxy.identity.open import open_source
    from tproxy.kernel import privileges
    from tproxy.proxy import sidecar  # noqa: F401
    from tproxy.proxy.tls import contexts

    settings = {"istio": IstioCa, "workload": WorkloadApi}[str(want.pop("kind"))]
    seconds, uid = float(str(want.pop("seconds"))), want.pop("uid", None)
    source = open_source(settings(**want), "test.local", Trust())  # type: ignore[arg-type]
    if isinstance(uid, int):
        privileges.drop(uid, uid)

    async def follow() -> dict[str, object]:
        first: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()

        def taken(found: Snapshot) -> None:
            contexts(found, Config.parse({"trustDomain": "test.local"}))  # as a sidecar would
            if not first.done():
                first.set_result(found)

        keeper = Keeper(source, taken)
        running = asyncio.create_task(keeper.run())
        async with asyncio.timeout(20):
            who = (await first).svid.id
        await asyncio.sleep(0.5)
        before, used = memory(), cpu()
        await asyncio.sleep(seconds)
        after, status = memory(), keeper.status
        running.cancel()
        return {
            "id": str(who),
            "loop": type(asyncio.get_running_loop()).__module__,
            "renewals": status.renewals,
            "error": status.error,
            "growth": after["rss"] - before["rss"],
            "alone": after["alone"],
            "cpu": (cpu() - used) / seconds,
            "uid": os.geteuid(),
        }

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(follow())))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
