"""The part of a kubelet that podman 4.3 lacks: the order of a native sidecar's start, probes, and a Job's end.

``podman play kube`` makes the containers, this starts them: init containers one by one, then sidecars, each until its
startup probe passes, then applications until they are ready (KEP-753). Probes come from the node, as the kubelet's do.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from images.engine import Engine, EngineError
from pods.adapt import Playable
from pods.cluster import Ended

READY = 30.0  # seconds
GRACE = 10  # seconds between SIGTERM and SIGKILL


@dataclass(slots=True)
class Running:
    """A pod that has been started; ``took`` is how long each sidecar needed."""

    name: str
    given: Playable
    address: str
    took: dict[str, float] = field(default_factory=dict)

    def container(self, name: str) -> str:
        """As podman names it."""
        return f"{self.name}-{name}"


def start(
    engine: Engine, given: Playable, configs: Sequence[Mapping[str, Any]], network: str, address: str = ""
) -> Running:
    """``configs`` are ConfigMaps. EngineError if an init container fails or something is not ready in time.

    With ``address`` the pod has it for good: podman's ends with its last container, and would come back with another.
    """
    name = given.pod["metadata"]["name"]
    path = engine.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump_all([*configs, given.pod]))
    fixed = ["--ip", address] if address else []
    engine.run("podman", "play", "kube", "--start=false", "--network", network, *fixed, path)
    infra = engine.run("podman", "pod", "inspect", "--format", "{{.InfraContainerID}}", name).strip()
    engine.run("podman", "start", infra)
    where = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    pod = Running(name, given, engine.run("podman", "inspect", "--format", where, infra).strip())
    for one in given.first:
        engine.run("podman", "start", "--attach", pod.container(one), timeout=60)
    for one in given.sidecars:
        pod.took[one] = _started(engine, pod, one, "startupProbe")
    for one in given.apps:
        _started(engine, pod, one, "readinessProbe")
    return pod


def restart(engine: Engine, pod: Running, container: str) -> None:
    """A sidecar that ended is started again, and waited for."""
    _started(engine, pod, container, "startupProbe")


def finish(engine: Engine, pod: Running) -> Ended:
    """Wait for the application, then end the sidecars, as the kubelet does with a pod of a Job."""
    code = int(engine.run("podman", "wait", *map(pod.container, pod.given.apps), timeout=60).split()[0])
    sidecar = pod.container(pod.given.sidecars[0])
    beside = engine.run("podman", "inspect", "--format", "{{.State.Running}}", sidecar).strip() == "true"
    engine.run("podman", "stop", "--time", str(GRACE), sidecar)
    return Ended(code, beside, int(engine.run("podman", "inspect", "--format", "{{.State.ExitCode}}", sidecar)))


def end(engine: Engine, pod: Running) -> None:
    """preStop hooks, SIGTERM (or what the image says) to applications, then to sidecars; then the pod is gone.

    EngineError if a sidecar did not end by itself, or had to cut a connection.
    """
    for container, command in pod.given.before_stop.items():
        engine.run("podman", "exec", pod.container(container), *command)
    engine.run("podman", "stop", "--time", str(GRACE), *map(pod.container, pod.given.apps))
    for name in map(pod.container, pod.given.sidecars):
        engine.run("podman", "stop", "--time", str(GRACE), name)
        code = engine.run("podman", "inspect", "--format", "{{.State.ExitCode}}", name).strip()
        said = engine.ask("podman", "logs", "--tail", "5", name).stderr
        if code != "0" or "stopped: 0 connections were cut" not in said:
            raise EngineError(f"{name} ended with {code}: {said}")
    engine.run("podman", "pod", "rm", "--force", pod.name)


def ask(address: str, probe: Mapping[str, Any]) -> str:
    """Ask once, as the kubelet does; why it failed, or nothing."""
    seconds = probe.get("timeoutSeconds", 1)
    if "httpGet" in probe:
        return get(address, probe["httpGet"]["port"], probe["httpGet"].get("path", "/"), seconds)
    if "tcpSocket" in probe:
        return _tried(lambda: socket.create_connection((address, probe["tcpSocket"]["port"]), seconds).close())
    raise ValueError(f"a probe that only the injector's rewriting makes askable: {', '.join(probe)}")


def get(address: str, port: int, path: str, seconds: float) -> str:
    """An HTTP request without TLS; why it failed, or nothing."""

    def request() -> str | None:
        connection = http.client.HTTPConnection(address, port, timeout=seconds)
        try:
            connection.request("GET", path, headers={"User-Agent": "kube-probe/1.34"})
            answer = connection.getresponse()
            said = answer.read(300).decode(errors="replace").strip()
            return None if 200 <= answer.status < 400 else f"{answer.status} {said}"
        finally:
            connection.close()

    return _tried(request)


def _tried(act: Callable[[], str | None]) -> str:
    try:
        return act() or ""
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__


def _started(engine: Engine, pod: Running, container: str, kind: str) -> float:
    """Start it and wait for its probe, if it has one; seconds."""
    began, name = time.monotonic(), pod.container(container)
    engine.run("podman", "start", name)
    why, probe = "", pod.given.probes[container].get(kind)
    while probe and (why := ask(pod.address, probe)):
        if time.monotonic() - began > READY:
            logs = engine.ask("podman", "logs", "--tail", "5", name)
            raise EngineError(f"{name} is not ready after {READY:g} s: {why}\n{logs.stdout}{logs.stderr}")
        time.sleep(0.02)
    return time.monotonic() - began
