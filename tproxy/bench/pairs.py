"""Who is measured: pairs of pods that differ only in what stands between the client and the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tproxy.world import apps
from tproxy.world.envoy import Envoy
from tproxy.world.pods import Pod, World
from tproxy.world.sidecars import Authority, Sidecar

DOMAIN = "bench.local"
PLAIN = [{"cidr": "10.77.0.0/24", "mtls": False}, {"cidr": "fd77::/64", "mtls": False}]


@dataclass(frozen=True, slots=True)
class Pair:
    """A client, a server, and the memory of what stands between (bytes of PSS, both sides together)."""

    name: str
    client: Pod
    server: Pod
    memory: Callable[[], int]


def pairs(world: World, envoy: bool) -> list[Pair]:
    """All of them, up and ready; nginx on 80 and iperf3 on 5201 serve each."""
    ca = Authority(world, DOMAIN)
    made = [_direct(world), _ours(world, ca, "plain"), _ours(world, ca, "mtls")]
    if envoy:
        made.append(_envoy(world, ca))
    for pair in made:
        apps.nginx(pair.server, {"index.html": b"x" * 1024}, access_log=False)
        apps.listening(pair.server.start(["iperf3", "-s"]), pair.server, 5201)
    return made


def _pods(world: World, name: str) -> tuple[Pod, Pod]:
    return world.pod(f"{name}-client"), world.pod(f"{name}-server")


def _direct(world: World) -> Pair:
    return Pair("no proxy", *_pods(world, "direct"), lambda: 0)


def _ours(world: World, ca: Authority, kind: str) -> Pair:
    client, server = _pods(world, kind)
    plain = {"inbound": {"mode": "disable"}, "mesh": PLAIN} if kind == "plain" else {}
    sides = [Sidecar(pod, ca.issue(f"{kind}-{pod.name}"), DOMAIN, **plain).up() for pod in (client, server)]
    name = "tproxy, plain" if kind == "plain" else "tproxy, mTLS"
    return Pair(name, client, server, lambda: sum(side.pss() for side in sides))


def _envoy(world: World, ca: Authority) -> Pair:
    client, server = _pods(world, "envoy")
    sides = [Envoy(pod, ca.issue(pod.name), DOMAIN).up() for pod in (client, server)]
    return Pair("Envoy, mTLS", client, server, lambda: sum(side.pss() for side in sides))
