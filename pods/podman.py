"""The cluster of ``make pod-demo``: the overlay ``podman``, injected by ``tproxy inject``, in podman's pods."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml

from images.engine import Engine, EngineError
from pods import kubelet
from pods.adapt import Playable, playable
from pods.cluster import Ended, Probed
from pods.kubelet import Running
from pods.render import Object, find, render

NETWORK = "tproxy"
CONTROL, DOMAIN = "tproxy-control", "cluster.local"
SIDECAR, ROOTS = "tproxy-sidecar", "tproxy-ca-roots"
TPROXY = (sys.executable, "-m", "tproxy")


class Podman:
    """Everything lives in the engine's folder, and is gone after ``remove``."""

    def __init__(self, engine: Engine, overlay: Path) -> None:
        self.engine, self.objects = engine, render(overlay)
        self.pods: dict[str, Running] = {}
        self.bridge = ""
        self.configs = [one for one in self.objects if one["kind"] == "ConfigMap"]
        self.remarks, self.templates = self._inject()

    def __enter__(self) -> Podman:
        self.remove()  # what a run that was killed has left
        self.engine.run("podman", "network", "create", NETWORK)
        found = self.engine.run("podman", "network", "inspect", "--format", "{{.NetworkInterface}}", NETWORK)
        self.bridge = found.strip()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def up(self) -> None:
        """The authority, then control, then the workloads with tokens from it."""
        ca = authority(self.engine.folder / "ca")
        control = find(self.objects, "Deployment", CONTROL)["spec"]["template"]
        self._play(CONTROL, playable(control, CONTROL, {}, files=str(ca)))
        roots = {"root-cert.pem": (ca / "bundle.pem").read_text()}
        self.configs.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ROOTS}, "data": roots})
        for name in ("web", "client", "outsider"):
            self._workload(name)

    def injected(self) -> Mapping[str, bool]:
        names = {name: template["spec"].get("initContainers", []) for name, template in self.templates.items()}
        return {name: any(one["name"] == SIDECAR for one in inits) for name, inits in names.items()}

    def started(self) -> Mapping[str, float]:
        return {name: pod.took[SIDECAR] for name, pod in self.pods.items() if SIDECAR in pod.took}

    def execute(self, workload: str, container: str, *argv: str) -> tuple[int, str]:
        done = self.engine.ask("podman", "exec", self.pods[workload].container(container), *argv, timeout=30)
        return done.returncode, done.stdout + done.stderr

    def logs(self, workload: str, container: str) -> str:
        return self.engine.ask("podman", "logs", self.pods[workload].container(container)).stdout

    def address(self, workload: str) -> str:
        return self.pods[workload].address

    def probes(self, workload: str) -> list[Probed]:
        pod, before = self.pods[workload], _templates(self.objects)[workload]["spec"]["containers"]
        declared = {one["name"]: one for one in before}
        found = []
        for container, kinds in pod.given.probes.items():
            for kind, probe in kinds.items():
                said = declared.get(container, {}).get(kind, {})  # before injection
                was = "".join(f" ({ask})" for ask in ("httpGet", "tcpSocket", "grpc") if ask in said)
                why = kubelet.ask(pod.address, probe)
                found.append(Probed(f"{container}: {kind}{was}", not why, why))
        return found

    def plain_from_node(self, workload: str, port: int) -> str:
        return kubelet.get(self.address(workload), port, "/healthz", 3)

    @contextmanager
    def wire(self, pcap: Path) -> Iterator[None]:
        """tcpdump on podman's bridge."""
        pcap.parent.mkdir(parents=True, exist_ok=True)
        argv = ["tcpdump", "--immediate-mode", "-Z", "root", "-i", self.bridge, "-U", "-s", "0", "-w", str(pcap)]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as tcpdump:
            assert tcpdump.stderr is not None
            if "listening on" not in tcpdump.stderr.readline():
                raise EngineError(f"tcpdump: {tcpdump.stderr.read()}")
            try:
                yield
                _settle(pcap)
            finally:
                tcpdump.terminate()

    def kill_sidecar(self, workload: str) -> None:
        name = self.pods[workload].container(SIDECAR)
        self.engine.run("podman", "kill", "--signal", "KILL", name)
        self.engine.run("podman", "wait", name)

    def restart_sidecar(self, workload: str) -> None:
        kubelet.restart(self.engine, self.pods[workload], SIDECAR)

    def job(self, workload: str) -> Ended:
        self._workload(workload)
        return kubelet.finish(self.engine, self.pods[workload])

    def stop_control(self) -> None:
        self.engine.run("podman", "stop", "--time", "10", self.pods[CONTROL].container("control"))

    def remove(self) -> str:
        for what in ("pod rm --force --time 0 --all", "volume rm --force --all", f"network rm --force {NETWORK}"):
            self.engine.ask("podman", *what.split())
        for folder in ("ca", "tokens"):
            shutil.rmtree(self.engine.folder / folder, ignore_errors=True)
        self.pods = {}
        left = [self.engine.run("podman", *what.split()) for what in ("pod ps -q", "ps -aq", "volume ls -q")]
        bridge = [self.bridge] if self.bridge and (Path("/sys/class/net") / self.bridge).exists() else []
        return " ".join((*left, *bridge)).strip()

    def _inject(self) -> tuple[str, dict[str, Object]]:
        """What the webhook would do: pods of the labelled namespace, with the cluster's settings; and its remarks."""
        settings = self.engine.folder / "inject.yaml"
        settings.write_text(yaml.safe_dump(injection(find(self.objects, "ConfigMap", CONTROL))))
        apps = [one for one in self.objects if one["metadata"].get("namespace") == "demo"]
        path = self.engine.folder / "apps.yaml"
        path.write_text(yaml.safe_dump_all(apps))
        argv = [*TPROXY, "inject", "-f", str(path), "--settings", str(settings)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EngineError(done.stderr)
        return done.stderr, _templates(yaml.safe_load_all(done.stdout))

    def _workload(self, name: str) -> None:
        """Its pod, with a join token of its own if it has a sidecar."""
        hosts = {"tproxy-control.tproxy-system.svc": self.address(CONTROL)}
        if "web" in self.pods:
            hosts["web.demo.svc"] = self.address("web")
        account, token = self.templates[name]["spec"]["serviceAccountName"], self.engine.folder / "tokens" / name
        if self.injected()[name]:
            who = f"spiffe://{DOMAIN}/ns/demo/sa/{account}"
            token.mkdir(parents=True)
            (token / "istio-token").write_text(self._token(who))
        self._play(name, playable(self.templates[name], name, hosts, token=str(token)))

    def _token(self, who: str) -> str:
        """From control; not through ``run``, which would log it."""
        argv = ["tproxy", "ca", "token", "--dir", "/var/lib/tproxy-ca", "--id", who]
        done = self.engine.ask("podman", "exec", self.pods[CONTROL].container("control"), *argv)
        if done.returncode:
            raise EngineError(f"no token for {who}: {done.stderr}")
        return done.stdout.strip()

    def _play(self, name: str, given: Playable) -> None:
        self.pods[name] = kubelet.start(self.engine, given, self.configs, NETWORK)


def _templates(objects: Iterable[Object]) -> dict[str, Object]:
    """The pods of the applications, by name."""
    workloads = [one for one in objects if one["kind"] in ("Deployment", "Job")]
    return {one["metadata"]["name"]: one["spec"]["template"] for one in workloads}


def injection(config: Object) -> Object:
    """The settings of injection in control's ConfigMap: a section, or a file of its own where there is no webhook."""
    data = config["data"]
    found: Object = yaml.safe_load(data["inject.yaml"] if "inject.yaml" in data else data["control.yaml"])
    inner: Object = found.get("injection", found)
    return inner


def _settle(pcap: Path) -> None:
    """Until tcpdump has written what it has seen: nothing more for a third of a second."""
    size, end = -1, time.monotonic() + 5
    while size != (size := pcap.stat().st_size) and time.monotonic() < end:
        time.sleep(0.3)


def authority(folder: Path) -> Path:
    """What a person does once, with the files as the kubelet would mount them from a Secret."""
    shutil.rmtree(folder, ignore_errors=True)
    argv = [*TPROXY, "ca", "init", "--dir", str(folder), "--trust-domain", DOMAIN]
    subprocess.run(argv, capture_output=True, check=True)
    for path in folder.iterdir():
        os.chown(path, 0, 1337)
        path.chmod(0o440)
    return folder
