"""How memory grows with idle connections: of each sidecar (PSS), and of the kernel, whose sockets are nobody's PSS."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tproxy.bench.figures import Point
from tproxy.bench.pairs import Pair
from tproxy.world.pods import Process, wait_for

SETTLE = 0.3  # seconds: buffers are given back
STILL = 256 << 10  # bytes: the kernel's memory changes less than this while nothing happens
SECONDS = 120.0


def grow(pair: Pair, counts: Iterable[int], notes: list[str]) -> list[Point]:
    """Memory at each number of connections. At the end all are asked again: those that do not answer are noted."""
    argv = [sys.executable, "-m", "tproxy.world.crowd", f"{pair.server.v4}:80"]
    log = pair.client.world.directory / f"crowd-{pair.client.name}.log"
    crowd = pair.client.start(argv, log=log, stdin=subprocess.PIPE)
    points = []
    _wait_until_still()
    try:
        for number, count in enumerate(counts):
            found = _told(crowd, str(count), number)
            if found["open"] < count:
                notes.append(f"{pair.name}: {found['failed']:.0f} of {count} idle connections could not be opened")
            time.sleep(SETTLE)
            points.append(Point(int(found["open"]), tuple(pair.memory()), kernel()))
            if found["open"] < count:
                break
        found = _told(crowd, "ask", len(points))
        if found["open"] < points[-1].connections:
            notes.append(f"{pair.name}: {points[-1].connections - found['open']:.0f} idle connections died")
    finally:
        crowd.kill()
    return points


def kernel() -> int:
    """Bytes of the kernel's objects (slabinfo(5)) and of TCP's buffers (sockstat, in pages), of all namespaces."""
    try:
        rows = [line.split() for line in Path("/proc/slabinfo").read_text().splitlines()[2:]]
        objects = sum(int(row[1]) * int(row[3]) for row in rows)
    except OSError:  # hidden in some containers
        lines = Path("/proc/meminfo").read_text().splitlines()
        objects = next(int(line.split()[1]) for line in lines if line.startswith("Slab:")) * 1024
    tcp = next(line for line in Path("/proc/net/sockstat").read_text().splitlines() if line.startswith("TCP:")).split()
    return objects + int(tcp[tcp.index("mem") + 1]) * 4096


def _wait_until_still(seconds: float = 5) -> None:
    """What was closed before is freed a little later; without this it would make the growth look smaller."""
    deadline, before = time.monotonic() + seconds, kernel()
    while time.monotonic() < deadline:
        time.sleep(SETTLE)
        now = kernel()
        if abs(now - before) < STILL:
            return
        before = now


def _told(crowd: Process, line: str, number: int) -> dict[str, float]:
    """Tell the crowd one thing, and wait for its answer."""
    assert crowd.popen.stdin is not None
    crowd.popen.stdin.write(f"{line}\n".encode())
    crowd.popen.stdin.flush()

    def answers() -> list[str]:
        return crowd.log.read_text().splitlines()

    wait_for(lambda: len(answers()) > number, SECONDS, f"the crowd's answer to {line!r}", crowd)
    found: dict[str, float] = json.loads(answers()[number])
    return found
