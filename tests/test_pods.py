"""What stands between the manifests and podman's or kind's containers; the rest is ``make pod-demo``."""

from __future__ import annotations

import asyncio
import copy
import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from images import engine
from pods import kind, kubelet
from pods.adapt import playable
from pods.load import Answers, Load
from pods.render import find, render
from tproxy.admin.http import Asked
from tproxy.admin.probes import Probes
from tproxy.core.inject import checks
from tproxy.core.inject.injection import Injection
from tproxy.core.inject.pod import Patch, inject
from tproxy.world import health
from tproxy.world.process import wait_for

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def web() -> dict[str, Any]:
    """The example's pod, injected."""
    template = find(render(HERE / "manifests/examples"), "Deployment", "web")["spec"]["template"]
    result = inject(template, Injection())
    assert isinstance(result, Patch)
    return result.pod


def test_podman_gets_every_container_in_the_order_in_which_the_kubelet_starts_them(web: dict[str, Any]) -> None:
    before = copy.deepcopy(web)
    given = playable(web, "web", {"a.svc": "10.0.0.1", "b.svc": "10.0.0.1"}, token="/tokens/web")
    names = [one["name"] for one in given.pod["spec"]["containers"]]
    assert names == [*given.first, *given.sidecars, *given.apps]
    assert (given.first, given.sidecars, given.apps) == (("tproxy-init",), ("tproxy-sidecar",), ("nginx", "health"))
    assert "initContainers" not in given.pod["spec"]
    assert given.pod["spec"]["hostAliases"] == [{"ip": "10.0.0.1", "hostnames": ["a.svc", "b.svc"]}]
    assert web == before


def test_what_a_container_may_do_stays_as_the_injector_said(web: dict[str, Any]) -> None:
    given = playable(web, "web", {}, token="/tokens/web")
    injected = {one["name"]: one for one in (*web["spec"]["initContainers"], *web["spec"]["containers"])}
    for one in given.pod["spec"]["containers"]:
        said = injected[one["name"]].get("securityContext", {})
        assert said.items() <= one["securityContext"].items()
        assert one["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert given.pod["spec"]["containers"][-1]["securityContext"]["runAsUser"] == 101


def test_the_token_is_a_folder_at_the_same_place(web: dict[str, Any]) -> None:
    spec = playable(web, "web", {}, token="/tokens/web").pod["spec"]
    token = next(volume for volume in spec["volumes"] if volume["name"] == "tproxy-token")
    assert token == {"name": "tproxy-token", "hostPath": {"path": "/tokens/web", "type": "Directory"}}
    mounts = {one["name"]: one["mountPath"] for found in spec["containers"] for one in found.get("volumeMounts", [])}
    assert mounts["tproxy-token"] == "/var/run/secrets/tokens"


def test_a_file_of_a_secret_comes_from_its_folder_and_the_secret_is_left_out() -> None:
    control = find(render(HERE / "manifests/base"), "Deployment", "tproxy-control")["spec"]["template"]
    spec = playable(control, "control", {}, files="/ca").pod["spec"]
    paths = {volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    assert paths == {"/ca/root.crt", "/ca/root.key", "/ca/bundle.pem"}
    assert not [volume for volume in spec["volumes"] if "secret" in volume]


def test_the_probes_are_the_rewritten_ones_with_ports_as_numbers(web: dict[str, Any]) -> None:
    given = playable(web, "web", {})
    found = {(name, kind): probe["httpGet"] for name, kinds in given.probes.items() for kind, probe in kinds.items()}
    assert set(found) == {
        ("tproxy-sidecar", "startupProbe"),
        ("tproxy-sidecar", "readinessProbe"),
        ("nginx", "readinessProbe"),
        ("nginx", "livenessProbe"),
        ("health", "livenessProbe"),
    }
    assert all(isinstance(probe["port"], int) for probe in found.values())
    assert not [one for one in given.pod["spec"]["containers"] if "livenessProbe" in one]


def test_what_runs_before_sigterm_is_the_kubelets_business(web: dict[str, Any]) -> None:
    given = playable(web, "web", {})
    assert given.before_stop == {"nginx": ("sleep", "3")}
    assert not [one for one in given.pod["spec"]["containers"] if "lifecycle" in one]


def test_a_request_that_failed_or_that_nothing_is_known_of_is_told() -> None:
    seen = Answers().and_those("200 0 1 \n200 0 0 \n", 2).and_those("200 0 1 \n000 56 0 Connection reset by peer\n", 4)
    assert (seen.requests, seen.connections) == (6, 2)
    assert seen.failed == ("000 56 0 Connection reset by peer", "2 requests without a word")


def test_the_load_goes_on_until_it_is_told_to_end_and_asks_in_both_ways() -> None:
    asked: list[tuple[str, ...]] = []

    def execute(*argv: str) -> tuple[int, str]:
        asked.append(argv)
        count = int(argv[-1].rpartition("-")[2].rstrip("]"))
        return 0, "200 0 1 \n" * count

    with Load(execute, "http://10.0.0.1/") as load:
        wait_for(lambda: len(asked) > 20, 10, "it asks again and again")
    assert not load.new.failed and not load.kept.failed
    assert load.new.requests and load.kept.requests
    assert {"Connection: close" in argv for argv in asked} == {True, False}


class Page(http.server.BaseHTTPRequestHandler):
    """200 at /well, 503 elsewhere."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/well" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_probe_passes_or_says_why_not(port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    assert kubelet.ask("127.0.0.1", {"httpGet": {"port": port, "path": "/well"}}) == ""
    assert kubelet.ask("127.0.0.1", {"httpGet": {"port": port, "path": "/ill"}}).startswith("503")
    assert kubelet.ask("127.0.0.1", {"tcpSocket": {"port": port}}) == ""
    assert "refused" in kubelet.ask("127.0.0.1", {"tcpSocket": {"port": closed}})
    assert "refused" in kubelet.ask("127.0.0.1", {"httpGet": {"port": closed, "path": "/well"}})
    with pytest.raises(ValueError, match="exec"):
        kubelet.ask("127.0.0.1", {"exec": {"command": ["true"]}})


def test_the_health_example_answers_a_grpc_probe() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    probes = Probes(checks.parse(f'{{"/app-health/a/livez": {{"grpc": {{"port": {port}}}}}}}', "here"))
    asked = Asked("/app-health/a/livez", {}, "127.0.0.1")
    assert asyncio.run(probes.answer(asked)).status == 503
    server = health.serve(port)
    assert asyncio.run(probes.answer(asked)).status == 200
    server.stop(0).wait()


def run(tool: str, tmp_path: Path, programs: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A demo on a machine that has only these programs."""
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    argv = [sys.executable, "-m", "pods", *([tool] if tool else [])]
    environment = {"PATH": str(tmp_path)}
    return subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=HERE, check=False)


def test_kind_demo_names_what_is_missing_and_ends_with_3(tmp_path: Path) -> None:
    done = run("--kind", tmp_path, {"kubectl": "exit 0"})
    assert done.returncode == 3
    assert done.stderr == (
        f"kind-demo: please install docker ({kind.PROGRAMS['docker']}), kind ({kind.PROGRAMS['kind']}); "
        "without Docker, make pod-demo shows the same\n"
    )


def test_kind_demo_says_that_docker_does_not_answer(tmp_path: Path) -> None:
    away = "echo 'Cannot connect to the Docker daemon' >&2; exit 1"
    done = run("--kind", tmp_path, {"kubectl": "exit 0", "kind": "exit 0", "docker": away})
    assert done.returncode == 3
    assert "kind-demo: Docker does not answer; make pod-demo shows the same without it" in done.stderr
    assert "Cannot connect to the Docker daemon" in done.stderr


def test_pod_demo_names_the_packages_that_are_missing_and_ends_with_3(tmp_path: Path) -> None:
    done = run("", tmp_path, {name: "exit 0" for name in engine.PROGRAMS if name not in ("podman", "nsenter")})
    assert done.returncode == 3
    assert done.stderr == "pod-demo: please install: apt-get install --no-install-recommends podman util-linux\n"
