"""The cluster of ``make kind-demo``: the overlay ``demo`` on kind, through kubectl. Every step may be repeated.

Containers are reached through crictl on the only node, since a step stops the kubelet. Never run where this was
written, which has neither kind nor a Docker that answers: ``make pod-demo`` is the one that CI proves.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from images.engine import EngineError
from pods.cluster import Ended, Probed
from pods.podman import authority
from tproxy import __version__

NEXT = "tproxy:next"
NAME, NODE = "tproxy-demo", "tproxy-demo-control-plane"
SIDECAR = "tproxy-sidecar"
PROGRAMS = {
    "docker": "docs.docker.com/engine/install",
    "kind": "kind.sigs.k8s.io, go install sigs.k8s.io/kind@latest",
    "kubectl": "kubernetes.io/docs/tasks/tools",
}


def need() -> None:
    """EngineError names every program that is missing and where it comes from, or says that Docker does not answer."""
    missing = [f"{program} ({where})" for program, where in PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        raise EngineError(f"please install {', '.join(missing)}; without Docker, make pod-demo shows the same")
    try:
        _run("docker", "info", timeout=30)
    except EngineError as error:
        raise EngineError(f"Docker does not answer; make pod-demo shows the same without it\n{error}") from None


class Kind:
    """A cluster of its own, deleted at the end."""

    def __init__(self, folder: Path, overlay: Path) -> None:
        self.folder, self.overlay = folder, overlay
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Kind:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def up(self) -> None:
        """Cluster, image, authority, objects."""
        if NAME not in _run("kind", "get", "clusters").split():
            _run("kind", "create", "cluster", "--name", NAME, "--wait", "120s", timeout=600)
        image = f"tproxy:{__version__}"
        _run("docker", "build", "-f", "images/Dockerfile", "-t", image, ".", timeout=1200)
        _run("kind", "load", "docker-image", "--name", NAME, image, timeout=300)
        ca = authority(self.folder / "ca")
        self._apply("create", "namespace", "tproxy-system")
        files = [f"--from-file={ca / name}" for name in ("root.crt", "root.key", "bundle.pem")]
        self._apply("create", "secret", "generic", "tproxy-ca", "-n", "tproxy-system", *files)
        _kubectl("apply", "-k", "manifests/base")
        _rolled("tproxy-system", "tproxy-control")
        _kubectl("apply", "-k", str(self.overlay))
        for name in ("web", "client", "outsider"):
            _rolled("demo", name)

    def injected(self) -> Mapping[str, bool]:
        return {name: bool(_status(self._pod(name), SIDECAR)) for name in ("web", "client", "order", "outsider")}

    def started(self) -> Mapping[str, float]:
        """In whole seconds: when the kubelet started it, and when it called the pod initialized."""
        found = {}
        for name in ("web", "client"):
            pod = self._pod(name)
            began = _seconds(_status(pod, SIDECAR)["state"]["running"]["startedAt"])
            conditions = {one["type"]: one["lastTransitionTime"] for one in pod["status"]["conditions"]}
            found[name] = _seconds(conditions["Initialized"]) - began
        return found

    def execute(self, workload: str, container: str, *argv: str) -> tuple[int, str]:
        done = _ask(["docker", "exec", NODE, "crictl", "exec", self._id(workload, container), *argv], 60)
        return done.returncode, done.stdout + done.stderr

    def logs(self, workload: str, container: str) -> str:
        return _node("crictl", "logs", self._id(workload, container))

    def address(self, workload: str) -> str:
        return str(self._pod(workload)["status"]["podIP"])

    def probes(self, workload: str) -> list[Probed]:
        """The kubelet asks them itself: a container that is ready has passed, one that was restarted has not."""
        pod = self._pod(workload)
        kinds = {"nginx": "(httpGet) (tcpSocket)", "health": "(grpc)"}
        found = [(name, _status(pod, name)) for name in kinds]
        return [
            Probed(f"{name}: {kinds[name]}", one["ready"] and not one["restartCount"], json.dumps(one))
            for name, one in found
        ]

    def plain_from_node(self, workload: str, port: int) -> str:
        url = f"http://{self.address(workload)}:{port}/healthz"
        done = _ask(["docker", "exec", NODE, "curl", "-sS", "-m", "5", url], 30)
        return done.stderr if done.returncode else ""

    @contextmanager
    def wire(self, pcap: Path) -> Iterator[None]:
        """tcpdump in the node's network, from an image that has it."""
        argv = ["docker", "run", "--rm", "--name", "tproxy-wire", "--network", f"container:{NODE}", "nicolaka/netshoot"]
        argv += ["tcpdump", "-i", "any", "-U", "--immediate-mode", "-w", "-", "tcp port 8080"]
        with pcap.open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=subprocess.PIPE, text=True) as tcpdump:
            assert tcpdump.stderr is not None
            for line in tcpdump.stderr:
                if "listening on" in line:
                    break
            else:
                raise EngineError("tcpdump did not start")
            yield
            time.sleep(1)
            _run("docker", "kill", "tproxy-wire")

    def kill_sidecar(self, workload: str) -> None:
        """The kubelet would restart it at once, so it is stopped first; everything else goes on."""
        _node("systemctl", "stop", "kubelet")
        shown = _node("crictl", "inspect", "--output", "json", self._id(workload, SIDECAR))
        _node("kill", "-9", str(json.loads(shown)["info"]["pid"]))

    def restart_sidecar(self, workload: str) -> None:
        dead, end = self._id(workload, SIDECAR), time.monotonic() + 120
        _node("systemctl", "start", "kubelet")
        while self._id(workload, SIDECAR) == dead or not _status(self._pod(workload), SIDECAR)["ready"]:
            if time.monotonic() > end:
                raise EngineError(f"the kubelet has not restarted the sidecar of {workload}")
            time.sleep(0.5)

    def job(self, workload: str) -> Ended:
        _kubectl("wait", "-n", "demo", "--for=condition=complete", f"job/{workload}", "--timeout=120s", timeout=150)
        pod = self._pod(workload)
        ends = {name: _status(pod, name)["state"]["terminated"] for name in ("curl", SIDECAR)}
        beside = ends[SIDECAR]["finishedAt"] >= ends["curl"]["finishedAt"]
        return Ended(ends["curl"]["exitCode"], beside, ends[SIDECAR]["exitCode"])

    def service(self, workload: str) -> str:
        return _kubectl("get", "service", "-n", "demo", workload, "-o", "jsonpath={.spec.clusterIP}")

    def scale(self, workload: str) -> None:
        _kubectl("scale", "-n", "demo", f"deployment/{workload}", "--replicas=2")
        _rolled("demo", workload)

    def upgrade(self, workload: str) -> None:
        _run("docker", "tag", f"tproxy:{__version__}", NEXT)
        _run("kind", "load", "docker-image", "--name", NAME, NEXT, timeout=300)
        old = _kubectl("get", "pods", "-n", "demo", "-l", f"app={workload}", "-o", "name").split()
        said = {"spec": {"template": {"metadata": {"annotations": {"tproxy.dev/image": NEXT}}}}}
        _kubectl("patch", "-n", "demo", f"deployment/{workload}", "-p", json.dumps(said))
        _rolled("demo", workload)
        _kubectl("wait", "-n", "demo", "--for=delete", *old, "--timeout=120s", timeout=150)

    def images(self, workload: str) -> list[str]:
        pods = json.loads(_kubectl("get", "pods", "-n", "demo", "-l", f"app={workload}", "-o", "json"))["items"]
        every = [container for pod in pods for container in pod["spec"]["initContainers"]]
        return [str(one["image"]) for one in every if one["name"] == SIDECAR]

    def stop_control(self) -> None:
        _kubectl("scale", "-n", "tproxy-system", "deployment/tproxy-control", "--replicas=0")

    def start_control(self) -> None:
        _kubectl("scale", "-n", "tproxy-system", "deployment/tproxy-control", "--replicas=2")
        _rolled("tproxy-system", "tproxy-control")

    def remove(self) -> str:
        _run("kind", "delete", "cluster", "--name", NAME, timeout=120)
        shutil.rmtree(self.folder / "ca", ignore_errors=True)
        return NAME if NAME in _run("kind", "get", "clusters").split() else ""

    def _pod(self, workload: str) -> dict[str, Any]:
        found = json.loads(_kubectl("get", "pods", "-n", "demo", "-l", f"app={workload}", "-o", "json"))["items"]
        if not found:
            raise EngineError(f"there is no pod of {workload}")
        pod: dict[str, Any] = found[0]
        return pod

    def _id(self, workload: str, container: str) -> str:
        return str(_status(self._pod(workload), container)["containerID"]).rpartition("/")[2]

    def _apply(self, *argv: str) -> None:
        """``kubectl create`` that may be repeated."""
        _kubectl("apply", "-f", "-", stdin=_kubectl(*argv, "--dry-run=client", "-o", "yaml"))


def _status(pod: Mapping[str, Any], container: str) -> dict[str, Any]:
    """What the kubelet says about a container; nothing if there is none."""
    status = pod["status"]
    every = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    return next((one for one in every if one["name"] == container), {})


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _node(*argv: str) -> str:
    return _run("docker", "exec", NODE, *argv)


def _rolled(namespace: str, name: str) -> None:
    _kubectl("rollout", "status", "-n", namespace, f"deployment/{name}", "--timeout=180s", timeout=200)


def _kubectl(*argv: str, stdin: str = "", timeout: float = 60) -> str:
    return _run("kubectl", "--context", f"kind-{NAME}", *argv, stdin=stdin, timeout=timeout)


def _run(*argv: str, stdin: str = "", timeout: float = 60) -> str:
    """What it printed. EngineError with its last lines."""
    done = _ask(argv, timeout, stdin)
    if done.returncode:
        raise EngineError(f"{' '.join(argv[:4])}: {(done.stdout + done.stderr).strip()[-800:]}")
    return done.stdout


def _ask(argv: Sequence[str], timeout: float, stdin: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise EngineError(f"{' '.join(argv[:4])} did not end within {timeout:g} s") from None
