"""Injected containers, started as a container runtime starts them: with their env, their rights, and nothing else."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DOMAIN, LIMITS, PAGE
from tests.pods import pod
from tests.test_pod import container, unescaped
from tproxy.core.inject.injection import Injection
from tproxy.core.inject.pod import Patch, inject
from tproxy.kernel.privileges import NET_RAW
from tproxy.world import apps
from tproxy.world.control import Control
from tproxy.world.pods import Pod, Process, World, wait_for
from tproxy.world.sidecars import Authority, Sidecar

TPROXY = (sys.executable, "-m", "tproxy")


class Injected:
    """The patched pod, in a pod of the world."""

    def __init__(self, place: Pod, identity: dict[str, Any], given: dict[str, Any], **settings: Any) -> None:
        mesh = [{"cidr": "10.77.0.0/24"}, {"cidr": "fd77::/64"}]
        config = {"trustDomain": DOMAIN, "identity": identity, "mesh": mesh, "limits": LIMITS}
        result = inject(given, Injection(config=config, **settings))
        assert isinstance(result, Patch)
        self.place, self.pod, self.log = place, result.pod, place.world.directory / f"{place.name}.log"

    def argv(self, name: str, command: list[str] | None = None) -> tuple[list[str], dict[str, str]]:
        """As its container would be executed: bounding set, no_new_privs, and the kubelet's reading of env."""
        found = container(self.pod, name)
        rights = ",".join(f"+{one.lower()}" for one in found["securityContext"]["capabilities"]["add"])
        assert found["securityContext"]["allowPrivilegeEscalation"] is False
        prefix = ["setpriv", "--no-new-privs", f"--bounding-set=-all,{rights}", "--inh-caps=-all"]
        env = {one["name"]: unescaped(one["value"]) for one in found["env"]}
        return [*prefix, *TPROXY, *(command or found["args"])], env

    def run(self, name: str, command: list[str] | None = None) -> str:
        argv, env = self.argv(name, command)
        return self.place.run(argv, env=env, check=True).stdout

    def start(self, name: str) -> Process:
        argv, env = self.argv(name)
        return self.place.start(argv, env=env, log=self.log)


def from_secret(world: World) -> tuple[dict[str, Any], Path | dict[str, Any]]:
    """The injected pod's identity, in files as the kubelet writes them where there is an fsGroup, and the client's."""
    ca, folder = Authority(world, DOMAIN), world.directory / "secret"
    folder.mkdir(mode=0o755)
    for path in ca.issue("web").glob("*.pem"):
        copy = folder / path.name
        copy.write_bytes(path.read_bytes())
        os.chown(copy, 0, 1337)
        copy.chmod(0o440)
    return {name: str(folder / f"{name}.pem") for name in ("cert", "key", "ca")}, ca.issue("client")


def from_ca(world: World) -> tuple[dict[str, Any], Path | dict[str, Any]]:
    """The same from ``tproxy control``; the token as the kubelet writes it where there is no fsGroup."""
    control = Control(world.pod("control"), DOMAIN).start()
    web, client = control.identity("web"), control.identity("client")
    os.chown(web["istioCa"]["token"], 0, 0)
    Path(web["istioCa"]["token"]).chmod(0o644)
    Path(web["istioCa"]["roots"]).chmod(0o644)
    return web, client


@pytest.fixture(scope="module", params=[from_secret, from_ca])
def injected(world: World, request: pytest.FixtureRequest) -> tuple[Injected, Process, Sidecar, Pod]:
    """nginx on 80 behind an injected sidecar, a client with a sidecar, and a node without."""
    identity, clients = request.param(world)
    web, client, node = (world.pod(f"{name}{len(world.pods)}") for name in ("web", "client", "node"))
    apps.nginx(web, {"index.html": PAGE})
    probes = {
        "readinessProbe": {"httpGet": {"port": "http", "path": "/"}},
        "livenessProbe": {"tcpSocket": {"port": 81}},
        "lifecycle": {"preStop": {"httpGet": {"port": 80}}},
    }
    named = [{"name": "http", "containerPort": 80}]
    made = Injected(web, identity, pod({"name": "web", "ports": named, **probes}), key="k")
    made.run("tproxy-init")
    process = made.start("tproxy-sidecar")
    wait_for(lambda: web.listens(15021, 6), 20, "the injected sidecar listens", process)
    made.run("tproxy-sidecar", ["wait", "--timeout", "20"])
    caller = Sidecar(client, clients, DOMAIN, limits=LIMITS).up()
    return made, process, caller, node


def test_the_injected_sidecar_carries_mtls_with_just_its_rights(
    injected: tuple[Injected, Process, Sidecar, Pod],
) -> None:
    made, process, caller, node = injected
    url = f"http://{made.place.v4}/"
    assert caller.pod.run(["curl", "-s", "-m", "5", url]).stdout.encode() == PAGE
    assert node.run(["curl", "-s", "-m", "5", url]).returncode != 0, "plaintext was let in"
    status = Path(f"/proc/{process.pid}/status").read_text()
    shown = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert shown["Uid"].split() == ["1337"] * 4
    assert int(shown["CapEff"], 16) == int(shown["CapPrm"], 16) == 1 << NET_RAW
    assert shown["NoNewPrivs"].strip() == "1"


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/app-health/web/readyz", "", "200"),
        ("/app-health/web/livez", "", "503"),  # nobody listens on 81
        ("/app-health/web/startupz", "", "404"),
        ("/app-lifecycle/web/prestopz", "", "403"),
        ("/app-lifecycle/web/prestopz", "tproxy-key: k", "200"),
    ],
)
def test_the_node_probes_in_plaintext_what_was_declared_though_the_pod_is_strict(
    injected: tuple[Injected, Process, Sidecar, Pod], path: str, header: str, status: str
) -> None:
    made, _, _, node = injected
    url = f"http://{made.place.v4}:15020{path}"
    words = ["curl", "-s", "-m", "5", "-o", os.devnull, "-w", "%{http_code}", "-H", header or "a: b", url]
    assert node.run(words).stdout == status


def test_wait_says_no_in_time_where_no_sidecar_is(injected: tuple[Injected, Process, Sidecar, Pod]) -> None:
    done = injected[3].run([*TPROXY, "wait", "--timeout", "0.3"])
    assert done.returncode == 1
    assert "after 0.3 s the sidecar on port 15021 is not ready" in done.stdout


def test_the_ordinary_sidecars_hooks_are_commands_that_exist(
    injected: tuple[Injected, Process, Sidecar, Pod],
) -> None:
    old = inject(pod(), Injection(native=False))
    assert isinstance(old, Patch)
    hooks = old.pod["spec"]["containers"][0]["lifecycle"]
    program, *words = hooks["postStart"]["exec"]["command"]
    assert program == "tproxy"
    injected[0].run("tproxy-sidecar", words)
    program, *words = hooks["preStop"]["exec"]["command"]
    injected[0].run("tproxy-sidecar", [*words[:-1], "0.1"])


def test_the_injected_sidecar_ends_when_it_is_told_to(injected: tuple[Injected, Process, Sidecar, Pod]) -> None:
    assert injected[1].stop(20) == 0
    wait_for(lambda: "stopped: " in injected[0].log.read_text(), 5, "its last line")
