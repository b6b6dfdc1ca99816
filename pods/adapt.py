"""What podman 4.3 cannot play, put so that it can; everything else of a pod stays as the cluster would run it.

| Kubernetes | here |
|---|---|
| native sidecar (init container, ``restartPolicy: Always``) | an ordinary container, in its place |
| projected service account token | a folder with a join token (podman 4.3 leaves Secrets in base64) |
| the Service's name in DNS | ``hostAliases`` |
| probes, hooks, ``restartPolicy`` of a pod | taken out: podman would run them its own way; ``kubelet.py`` asks them |
| one file of a Secret (``subPath``) | the same file by ``hostPath`` |
| ``ports`` and ``resources`` | taken out: podman would publish the ports, limits need a cgroup that is ours |
| volumes that are optional by default | said in full, because podman 4.3 falls over what is not there |
| a ServiceAccount, a namespace, spreading | nothing: there is one machine |
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_SCHEDULING = ("serviceAccountName", "automountServiceAccountToken", "topologySpreadConstraints")


@dataclass(frozen=True, slots=True)
class Playable:
    """A pod for ``podman play kube``, and what a kubelet has to know about it."""

    pod: dict[str, Any]
    first: tuple[str, ...]  # init containers, one after the other, to their end
    sidecars: tuple[str, ...]  # then these, until they are ready; they are restarted whenever they end
    apps: tuple[str, ...]
    probes: Mapping[str, Mapping[str, Mapping[str, Any]]]  # container -> kind of probe -> what to ask
    before_stop: Mapping[str, tuple[str, ...]]  # container -> command of its preStop hook


def playable(
    given: Mapping[str, Any], name: str, hosts: Mapping[str, str], token: str = "", files: str = ""
) -> Playable:
    """``given`` is a pod or a template, ``hosts`` are names and their addresses.

    ``token`` is the folder with a token instead of the pod's own, ``files`` the folder with what is mounted by subPath.
    """
    pod = deepcopy(dict(given))
    spec = pod["spec"]
    meta = {"name": name, "labels": pod.get("metadata", {}).get("labels", {})}
    first = [one for one in spec.pop("initContainers", []) if one.get("restartPolicy") != "Always"]
    sidecars = [one for one in given["spec"].get("initContainers", []) if one.get("restartPolicy") == "Always"]
    sidecars = [{key: value for key, value in one.items() if key != "restartPolicy"} for one in deepcopy(sidecars)]
    apps = spec["containers"]
    every = [*first, *sidecars, *apps]
    probes = {one["name"]: _probes(one) for one in every}
    before_stop = {one["name"]: hook for one in every if (hook := _before_stop(one))}
    for one in every:
        one["imagePullPolicy"] = "Never"
        one["env"] = [{**entry, "value": entry["value"].replace("$$", "$")} for entry in one.get("env", [])]
        one["securityContext"] = {**_inherited(spec), **one.get("securityContext", {})}
        for key in ("ports", "resources"):
            one.pop(key, None)
    for volume in spec.get("volumes", []):
        if "projected" in volume:
            del volume["projected"]
            volume["hostPath"] = {"path": token, "type": "Directory"}
        for kind in ("secret", "configMap"):
            if kind in volume:
                volume[kind]["optional"] = False
    added = [_file(mount, files) for one in every for mount in _by_path(one)]
    mounted = {mount["name"] for one in every for mount in one.get("volumeMounts", [])}
    spec["volumes"] = [one for one in (*spec.get("volumes", []), *added) if one["name"] in mounted]
    for key in _SCHEDULING:
        spec.pop(key, None)
    spec.pop("securityContext", None)
    spec["containers"] = [*first, *sidecars, *apps]
    spec["restartPolicy"] = "Never"
    by_address: dict[str, list[str]] = {}
    for host, address in hosts.items():
        by_address.setdefault(address, []).append(host)
    spec["hostAliases"] = [{"ip": address, "hostnames": names} for address, names in by_address.items()]
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
    return Playable(whole, _names(first), _names(sidecars), _names(apps), probes, before_stop)


def _probes(container: dict[str, Any]) -> dict[str, Any]:
    """Taken out, with ports as numbers."""
    ports = {port.get("name"): port["containerPort"] for port in container.get("ports", [])}
    found = {kind: container.pop(kind) for kind in PROBES if kind in container}
    for probe in found.values():
        for ask in ("httpGet", "tcpSocket", "grpc"):
            if ask in probe:
                probe[ask] = {**probe[ask], "port": ports.get(probe[ask]["port"], probe[ask]["port"])}
    return found


def _before_stop(container: dict[str, Any]) -> tuple[str, ...]:
    """Taken out."""
    hook = container.pop("lifecycle", {}).get("preStop", {})
    return tuple(hook.get("exec", {}).get("command", ()))


def _by_path(container: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [mount for mount in container.get("volumeMounts", []) if "subPath" in mount]


def _file(mount: dict[str, Any], folder: str) -> dict[str, Any]:
    """The mount leads there now; the volume to go with it."""
    path = mount.pop("subPath")
    mount["name"] = f"file-{path.replace('.', '-')}"
    return {"name": mount["name"], "hostPath": {"path": f"{folder}/{path}", "type": "File"}}


def _inherited(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a pod's securityContext means for a container that does not say it itself."""
    keys = ("runAsUser", "runAsGroup", "runAsNonRoot", "seccompProfile")
    given = spec.get("securityContext") or {}
    return {key: given[key] for key in keys if key in given}


def _names(many: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(one["name"] for one in many)
