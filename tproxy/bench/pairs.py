"""Who is measured: pairs of pods that differ only in what stands between the client and the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tproxy.bench.figures import BULK, CLOSE, KEEP_ALIVE, MEMORY, MORE, STEADY
from tproxy.world import apps
from tproxy.world.envoy import Envoy
from tproxy.world.pods import Pod, World
from tproxy.world.sidecars import Authority, Sidecar

DOMAIN = "bench.local"
PLAIN = [{"cidr": "10.77.0.0/24", "mtls": False}, {"cidr": "fd77::/64", "mtls": False}]
LIKE_ENVOY: dict[str, Any] = {"tls": {"groups": ["P-256"]}}  # every other one proves itself with P-256 too
ALL = frozenset((KEEP_ALIVE, MORE, STEADY, CLOSE, BULK, MEMORY))
FEW = ALL - {MORE, STEADY}


@dataclass(frozen=True, slots=True)
class Pair:
    """A client, a server, the memory of what stands between (bytes of PSS, all of it), and what is measured."""

    name: str
    client: Pod
    server: Pod
    memory: Callable[[], int]
    kinds: frozenset[str]


@dataclass(frozen=True, slots=True)
class Maker:
    """A pair to be; ``fast`` is our configuration of it."""

    name: str
    kinds: frozenset[str]
    make: Callable[[World, Authority, Maker], Pair]
    fast: dict[str, Any] | None = None

    @property
    def slug(self) -> str:
        """For the names of its pods."""
        return "".join(word[0] for word in self.name.replace(",", "").replace("+", "and").lower().split())


def _pods(world: World, maker: Maker) -> tuple[Pod, Pod]:
    return world.pod(f"{maker.slug}-client"), world.pod(f"{maker.slug}-server")


def _direct(world: World, _ca: Authority, maker: Maker) -> Pair:
    return Pair(maker.name, *_pods(world, maker), lambda: 0, maker.kinds)


def _ours(world: World, ca: Authority, maker: Maker, plain: bool = False) -> Pair:
    client, server = _pods(world, maker)
    config = {"fast": maker.fast, **LIKE_ENVOY}
    if plain:
        config |= {"inbound": {"mode": "disable"}, "mesh": PLAIN}
    sides = [Sidecar(pod, ca.issue(pod.name), DOMAIN, **config).up() for pod in (client, server)]
    return Pair(maker.name, client, server, lambda: sum(side.pss() for side in sides), maker.kinds)


def _ours_plain(world: World, ca: Authority, maker: Maker) -> Pair:
    return _ours(world, ca, maker, plain=True)


def _ours_one_hop(world: World, ca: Authority, maker: Maker) -> Pair:
    client, server = _pods(world, maker)
    side = Sidecar(client, ca.issue(client.name), DOMAIN, mesh=PLAIN, fast=maker.fast).up()
    return Pair(maker.name, client, server, side.pss, maker.kinds)


def _envoy(world: World, ca: Authority, maker: Maker) -> Pair:
    client, server = _pods(world, maker)
    sides = [Envoy(pod, ca.issue(pod.name), DOMAIN).up() for pod in (client, server)]
    return Pair(maker.name, client, server, lambda: sum(side.pss() for side in sides), maker.kinds)


def _envoy_one_hop(world: World, ca: Authority, maker: Maker) -> Pair:
    client, server = _pods(world, maker)
    side = Envoy(client, ca.issue(client.name), DOMAIN, plain=True).up()
    return Pair(maker.name, client, server, side.pss, maker.kinds)


OFF = {"sockmap": "off", "resumption": False}
DIRECT, MTLS, SOCKMAP = "no proxy", "tproxy, mTLS", "tproxy, mTLS + sockmap"
RESUMED, ENVOY = "tproxy, mTLS resumed", "Envoy, mTLS"
ONE_HOP, ENVOY_ONE_HOP = "tproxy, one plain hop", "Envoy, one plain hop"
MAKERS = (
    Maker(DIRECT, FEW, _direct),
    Maker("tproxy, plain", FEW, _ours_plain, OFF),
    Maker(MTLS, ALL, _ours, OFF),
    Maker(SOCKMAP, ALL, _ours, {"resumption": False}),
    Maker(RESUMED, frozenset((CLOSE,)), _ours, {}),
    Maker(ENVOY, ALL, _envoy),
    Maker(ONE_HOP, frozenset((BULK,)), _ours_one_hop, OFF),
    Maker(ENVOY_ONE_HOP, frozenset((BULK,)), _envoy_one_hop),
)


def pairs(world: World, names: Sequence[str]) -> list[Pair]:
    """Those with these names, up and ready; nginx on 80 and iperf3 on 5201 serve each."""
    ca = Authority(world, DOMAIN)
    made = [maker.make(world, ca, maker) for maker in MAKERS if maker.name in names]
    for pair in made:
        apps.nginx(pair.server, {"index.html": b"x" * 1024}, access_log=False)
        apps.listening(pair.server.start(["iperf3", "-s"]), pair.server, 5201)
    return made
