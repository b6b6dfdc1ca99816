"""The cluster of ``make pod-demo``: the overlay ``podman``, injected by ``tproxy inject``, in podman's pods."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

import yaml

from images.build import IMAGE
from images.engine import Engine, EngineError
from pods import kubelet
from pods.adapt import playable
from pods.cluster import Ended, Probed
from pods.kubelet import Running
from pods.render import Object, find, render
from tproxy.kernel import nft
from tproxy.world import service

NETWORK = "tproxy"
CONTROL, DOMAIN = "tproxy-control", "cluster.local"
SIDECAR, ROOTS = "tproxy-sidecar", "tproxy-ca-roots"
VIP, PORT, NEXT = "10.96.0.20", 8080, "localhost/tproxy:next"
TPROXY = (sys.executable, "-m", "tproxy")


class Podman:
    """Everything lives in the engine's folder, and is gone after ``remove``."""

    def __init__(self, engine: Engine, overlay: Path) -> None:
        self.engine, self.objects = engine, render(overlay)
        self.pods: dict[str, Running] = {}
        self._replicas: list[Running] = []
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
        given = playable(control, CONTROL, {}, files=str(ca))
        self.pods[CONTROL] = kubelet.start(self.engine, given, self.configs, NETWORK, self._last_address())
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

    def service(self, workload: str) -> str:
        """The node translates it, as kube-proxy would; one workload has one."""
        return VIP

    def scale(self, workload: str) -> None:
        self._replicas = [self.pods[workload], self._replica(workload, 2)]
        self._balance()
        for number in (3, 4):  # control, which makes them, may be away later
            self._credentials(f"{workload}-{number}", workload)

    def upgrade(self, workload: str) -> None:
        self.engine.run("podman", "tag", IMAGE, NEXT)
        old, self.templates = self._replicas, {**self.templates, workload: self._inject(NEXT)[1][workload]}
        for number, leaving in enumerate(old, 3):
            self._replicas = [*self._replicas, self._replica(workload, number)]  # it is ready now
            self._balance()
            self._replicas = [one for one in self._replicas if one is not leaving]
            self._balance()
            kubelet.end(self.engine, leaving)
        self.pods[workload] = self._replicas[0]

    def images(self, workload: str) -> list[str]:
        names = [one.container(SIDECAR) for one in self._replicas]
        return [self.engine.run("podman", "inspect", "--format", "{{.ImageName}}", name).strip() for name in names]

    def stop_control(self) -> None:
        self.engine.run("podman", "stop", "--time", "10", self.pods[CONTROL].container("control"))

    def start_control(self) -> None:
        kubelet.restart(self.engine, self.pods[CONTROL], "control")

    def remove(self) -> str:
        for what in ("pod rm --force --time 0 --all", "volume rm --force --all", f"network rm --force {NETWORK}"):
            self.engine.ask("podman", *what.split())
        self.engine.ask("podman", "image", "rm", NEXT)
        nft.apply(service.gone())
        for folder in ("ca", "tokens"):
            shutil.rmtree(self.engine.folder / folder, ignore_errors=True)
        self.pods = {}
        left = [self.engine.run("podman", *what.split()) for what in ("pod ps -q", "ps -aq", "volume ls -q")]
        bridge = [self.bridge] if self.bridge and (Path("/sys/class/net") / self.bridge).exists() else []
        return " ".join((*left, *bridge)).strip()

    def _inject(self, image: str = IMAGE) -> tuple[str, dict[str, Object]]:
        """What the webhook would do: pods of the labelled namespace, with the cluster's settings; and its remarks."""
        settings = self.engine.folder / "inject.yaml"
        said = {**injection(find(self.objects, "ConfigMap", CONTROL)), "image": image}
        settings.write_text(yaml.safe_dump(said))
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
        self.pods[name] = self._pod(name, name)

    def _replica(self, workload: str, number: int) -> Running:
        return self._pod(workload, f"{workload}-{number}")

    def _pod(self, workload: str, name: str) -> Running:
        hosts = {"tproxy-control.tproxy-system.svc": self.address(CONTROL)}
        if "web" in self.pods:
            hosts["web.demo.svc"] = self.address("web")
        token = self._credentials(name, workload) if self.injected()[workload] else Path("nowhere")
        given = playable(self.templates[workload], name, hosts, token=str(token))
        return kubelet.start(self.engine, given, self.configs, NETWORK)

    def _credentials(self, name: str, workload: str) -> Path:
        """The folder with a pod's token, made by control when it is first asked for."""
        token = self.engine.folder / "tokens" / name
        if not token.exists():
            account = self.templates[workload]["spec"]["serviceAccountName"]
            said = self._token(f"spiffe://{DOMAIN}/ns/demo/sa/{account}")
            token.mkdir(parents=True)
            (token / "istio-token").write_text(said)
        return token

    def _balance(self) -> None:
        """kube-proxy's part."""
        ready = [one.address for one in self._replicas]
        nft.apply(service.rules(VIP, PORT, ready, masquerade=True))

    def _token(self, who: str) -> str:
        """From control; not through ``run``, which would log it."""
        argv = ["tproxy", "ca", "token", "--dir", "/var/lib/tproxy-ca", "--id", who]
        done = self.engine.ask("podman", "exec", self.pods[CONTROL].container("control"), *argv)
        if done.returncode:
            raise EngineError(f"no token for {who}: {done.stderr}")
        return done.stdout.strip()

    def _last_address(self) -> str:
        """Of the network; others get theirs from the beginning of it."""
        where = "{{range .Subnets}}{{.Subnet}}{{end}}"
        return str(ip_network(self.engine.run("podman", "network", "inspect", "--format", where, NETWORK).strip())[-2])


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
