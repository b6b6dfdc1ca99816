"""The kubelet's probes under strict: they ask the sidecar's health port, and the sidecar asks the application.

The kubelet speaks plaintext and has no certificate, so a strict port refuses it. Two ways out were weighed:

*Let the node's address in, for exactly the declared port and path.* Not provable here. We carry TCP: a path is known
only to who parses HTTP, so the whole port would be open. The address a probe comes from depends on the network plugin
(the node's, the bridge's, one of Cilium's), is not in the pod's downward API, and is shared by every process and every
hostNetwork pod of the node, and by whoever the node masquerades for.

*Rewrite them* (chosen; Istio's way): httpGet, tcpSocket and grpc become httpGet on the health port with the path
``/app-health/<container>/{livez,readyz,startupz}``. The sidecar's declaration says which check stands behind each path;
nothing else is asked, nothing of the caller's request is passed on, and what comes back is a status. exec stays.
Headers move into the declaration. Lifecycle hooks by httpGet are the same, at ``/app-lifecycle/<container>/
{poststartz,prestopz}``; they do something, so they show a key that only the pod's definition and the sidecar hold.

Sources: kubernetes.io "Configure Liveness, Readiness and Startup Probes"; Kubernetes API, Probe, LifecycleHandler;
``prober.extractPort`` in the kubelet: a port's name is looked for in the same container, then read as a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

PROBERS = "TPROXY_APP_PROBERS"  # environment: JSON, path -> check
KEY_HEADER = "tproxy-key"
PROBES = {"livenessProbe": "livez", "readinessProbe": "readyz", "startupProbe": "startupz"}
HOOKS = {"postStart": "poststartz", "preStop": "prestopz"}
_NETWORK = ("httpGet", "tcpSocket", "grpc")
_TIMEOUT, _GRACE = 1, 30  # Kubernetes' defaults


@dataclass(slots=True)
class Rewriting:
    """What the sidecar has to serve, and what a person should know."""

    health_port: int
    key: str = ""
    probers: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def pod(self, spec: MutableMapping[str, Any]) -> None:
        """Rewrite every container's probes and hooks in place."""
        grace = spec.get("terminationGracePeriodSeconds")
        for kind in ("initContainers", "containers"):
            for container in spec.get(kind) or []:
                self._container(container, _GRACE if grace is None else grace)

    def _container(self, container: MutableMapping[str, Any], grace: int) -> None:
        for field_name, page in PROBES.items():
            if probe := container.get(field_name):
                where = f"container {container['name']}: {field_name}"
                path = f"/app-health/{container['name']}/{page}"
                if check := self._check(probe, container, where):
                    self.probers[path] = {**check, "timeoutSeconds": probe.get("timeoutSeconds") or _TIMEOUT}
                    _point(probe, path, self.health_port)
        for field_name, page in HOOKS.items():
            hook = (container.get("lifecycle") or {}).get(field_name) or {}
            if hook.get("httpGet"):
                path = f"/app-lifecycle/{container['name']}/{page}"
                self._hook(hook, container, path, f"container {container['name']}: lifecycle.{field_name}", grace)

    def _hook(
        self, hook: MutableMapping[str, Any], container: Mapping[str, Any], path: str, where: str, grace: int
    ) -> None:
        check = self._check(hook, container, where)
        if check is None:
            return
        self.probers[path] = {**check, "timeoutSeconds": max(1, grace)}
        _point(hook, path, self.health_port)
        if self.key:
            self.probers[path]["key"] = self.key
            hook["httpGet"]["httpHeaders"] = [{"name": KEY_HEADER, "value": self.key}]
        else:
            self.warnings.append(
                f"{where}: whoever reaches port {self.health_port} can call this hook; the webhook gives it a key, "
                "a file cannot: prefer exec, or a NetworkPolicy"
            )

    def _check(
        self, probe: Mapping[str, Any], container: Mapping[str, Any], where: str
    ) -> dict[str, Mapping[str, Any]] | None:
        """The declaration of one check, with its port as a number; None: it stays as it is."""
        kind = next((kind for kind in _NETWORK if probe.get(kind)), None)
        if kind is None:
            return None
        action: dict[str, Any] = {name: value for name, value in probe[kind].items() if value not in (None, "", [])}
        if "host" in action:
            self.warnings.append(f"{where}: asks another host ({action['host']}), so it was left as it is")
            return None
        port = _number(action.get("port"), container)
        if port is None:
            self.warnings.append(f"{where}: no port {action.get('port')!r} in its container, so it was left as it is")
            return None
        if port == self.health_port:  # rewritten before
            return None
        return {kind: {**action, "port": port}}


def _point(probe: MutableMapping[str, Any], path: str, port: int) -> None:
    """Change where it asks, and nothing else."""
    for kind in _NETWORK:
        probe.pop(kind, None)
    probe["httpGet"] = {"path": path, "port": port}


def _number(port: object, container: Mapping[str, Any]) -> int | None:
    if isinstance(port, str):
        named = (entry for entry in container.get("ports") or [] if entry.get("name") == port)
        text = next((entry.get("containerPort") for entry in named), port)
        port = int(text) if isinstance(text, int) or (text.isascii() and text.isdecimal()) else None
    return port if isinstance(port, int) and 0 < port < 65536 else None


def network_probes(spec: Mapping[str, Any]) -> Iterator[str]:
    """The probes and hooks that a strict port would refuse."""
    for kind in ("initContainers", "containers"):
        for container in spec.get(kind) or []:
            for name in PROBES:
                if any((container.get(name) or {}).get(way) for way in _NETWORK):
                    yield f"container {container['name']}: {name}"
            for name in HOOKS:
                if ((container.get("lifecycle") or {}).get(name) or {}).get("httpGet"):
                    yield f"container {container['name']}: lifecycle.{name}"
