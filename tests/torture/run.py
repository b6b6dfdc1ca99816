"""``make torture``: every way through the sidecars, undisturbed, reloading, and with sidecars killed.

python -m tests.torture.run --seconds 1800 --seed 1
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tproxy.world import apps
from tproxy.world.pods import Pod, World, wait_for
from tproxy.world.sidecars import Authority, Sidecar

DOMAIN = "torture.local"
PORTS = (7000, 7001)
PLAIN = [{"cidr": "10.77.0.0/24", "mtls": False}, {"cidr": "fd77::/64", "mtls": False}]
COUNTED = ("connections", "messages", "bytes", "broken")
WAYS = ("mtls", "permissive", "passthrough")
FILES = 16  # that a sidecar may keep: spare pipes, a netlink socket, a log
MEMORY = 200 << 20  # bytes of PSS that a sidecar may have under this load
PEER = [sys.executable, "-m", "tests.torture.peer"]


@dataclass
class Way:
    """One combination, up and running."""

    name: str
    client: Pod
    server: Pod
    sidecars: list[Sidecar]
    reissue: Callable[[], None]
    skipped: str = ""
    seen: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    wrong: list[str] = field(default_factory=list)


def ways(world: World, relays: tuple[str, ...], sockmaps: tuple[str, ...]) -> list[Way]:
    """Every combination of relay, short cut and way."""
    ca = Authority(world, DOMAIN)
    return [_way(world, ca, relay, sockmap, kind) for relay, sockmap, kind in itertools.product(relays, sockmaps, WAYS)]


def _way(world: World, ca: Authority, relay: str, sockmap: str, kind: str) -> Way:
    name = f"{relay[0]}{'n' if sockmap == 'off' else 's'}{kind[:2]}"
    client, server = world.pod(f"{name}-c"), world.pod(f"{name}-s")
    fast = {"relay": relay, "sockmap": sockmap}
    sides = []
    if kind != "permissive":
        mesh = {"mesh": PLAIN} if kind == "passthrough" else {}
        sides.append(Sidecar(client, ca.issue(client.name), DOMAIN, fast=fast, **mesh).up())
    if kind != "passthrough":
        inbound = {"inbound": {"mode": "permissive"}} if kind == "permissive" else {}
        sides.append(Sidecar(server, ca.issue(server.name), DOMAIN, fast=fast, **inbound).up())

    def reissue() -> None:
        for side in sides:
            ca.issue(side.pod.name, renew=True)

    way = Way(f"{relay}, sockmap {sockmap}, {kind}", client, server, sides, reissue)
    for side in sides:
        found = re.search(r"sockmap is off: (?!fast)[^\n]*|the compiled relay is not there[^\n]*", side.log.read_text())
        way.skipped = found[0] if found else way.skipped
    return way


def go(way: Way, seconds: float, first: int, at_once: int, disturb: Callable[[Way], None] | None, killed: bool) -> None:
    """One stretch of connections, with something happening every second or so."""
    extra = ["--disturbed"] if killed else []
    server = way.server.start([*PEER, "serve", *extra], log=way.server.world.directory / f"{way.server.name}.peer")
    apps.listening(server, way.server, PORTS[0])
    log = way.client.world.directory / f"{way.client.name}.peer"
    argv = [*PEER, "connect", "--to", way.server.v4, "--first", str(first), "--seconds", str(seconds)]
    client = way.client.start([*argv, "--at-once", str(at_once), *extra], log=log)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(min(1.0, seconds / 4))
        if disturb is not None and time.monotonic() < until:
            disturb(way)
    client.wait(seconds + 90)
    server.stop(20)
    for place in (log, way.server.world.directory / f"{way.server.name}.peer"):
        _add(way, place.read_text())
    _afterwards(way)


def _add(way: Way, text: str) -> None:
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if not lines:
        way.wrong.append(f"a peer ended without a summary: {text[-300:]}")
        return
    found: dict[str, Any] = json.loads(lines[-1])
    way.wrong += found.pop("wrong")
    for name, value in found.items():
        way.seen[name] += value


def _afterwards(way: Way) -> None:
    """Nothing may be left of the connections."""
    for side in way.sidecars:
        if side.pss() > MEMORY:
            way.wrong.append(f"{side.pod.name} uses {side.pss() >> 20} MiB")
        try:
            wait_for(lambda side=side: not side.metrics().get("tproxy_connections_open"), 20, "no open connection")
        except Exception as error:
            way.wrong.append(f"{side.pod.name}: {error}")


def reload(way: Way) -> None:
    """New certificates, read anew."""
    way.reissue()
    for side in way.sidecars:
        side.reload()


def kill(way: Way) -> None:
    """SIGKILL of each sidecar, and a new one."""
    for side in way.sidecars:
        side.kill()
        side.start()


def torture(seconds: float, seed: int, at_once: int, relays: tuple[str, ...], sockmaps: tuple[str, ...]) -> list[Way]:
    """All ways, each undisturbed, reloading, and killed."""
    with World() as world:
        made = ways(world, relays, sockmaps)
        share = seconds / sum(not way.skipped for way in made)
        for index, way in enumerate(made):
            if not way.skipped:
                first = (seed * 1000 + index) << 32
                files = [side.files() for side in way.sidecars]
                go(way, share * 0.4, first, at_once, None, killed=False)
                go(way, share * 0.4, first + (1 << 30), at_once, reload, killed=False)
                more = [side.files() - before for side, before in zip(way.sidecars, files, strict=True)]
                if max(more) > FILES:
                    way.wrong.append(f"files left open: {more}")
                go(way, share * 0.2, first + (1 << 31), at_once, kill, killed=True)
            print(line(way), flush=True)
        return made


def line(way: Way) -> str:
    """One combination in words."""
    if way.skipped:
        return f"skipped  {way.name}: {way.skipped}"
    seen, verdict = way.seen, "WRONG" if way.wrong else "exact"
    figures = f"{seen['connections']} ends, {seen['messages']} messages, {seen['bytes'] / 1e9:.2f} GB"
    return "\n    ".join((f"{verdict:<8} {way.name}: {figures}, {seen['broken']} broken", *way.wrong))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=60)
    args = parser.parse_args()
    made = torture(args.seconds, args.seed, args.at_once, ("compiled", "python"), ("both", "off"))
    messages, wrong = sum(way.seen["messages"] for way in made), sum(len(way.wrong) for way in made)
    skipped = sum(bool(way.skipped) for way in made)
    print(f"{messages} messages, {wrong} differences, {skipped} combinations skipped; seed {args.seed}")
    return 1 if wrong or not messages else 0


if __name__ == "__main__":
    sys.exit(main())
