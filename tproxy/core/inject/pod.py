"""A pod and the cluster's settings to a JSON Patch, or the reason why not. Idempotent; the input is not changed.

>>> match inject({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "web"}]}}, Injection()):
...     case Patch(pod=pod):
...         print([container["name"] for container in pod["spec"]["initContainers"]])
['tproxy-init', 'tproxy-sidecar']
>>> inject({"spec": {"hostNetwork": True, "containers": [{"name": "web"}]}}, Injection())
Skip(reason="hostNetwork: the node's network is not the pod's to capture", warnings=())

A pod is captured from the moment that tproxy-init has run, so that stands first. Containers lose NET_RAW, with which
and the proxy's uid a process could pass the rules; a pod that runs as that uid is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tproxy import __version__
from tproxy.core.config import Config
from tproxy.core.fields import ConfigError
from tproxy.core.inject import checks, containers, shape
from tproxy.core.inject.annotations import STATUS, opted
from tproxy.core.inject.draft import draft
from tproxy.core.inject.guard import check_clashes, drop_net_raw, scraped
from tproxy.core.inject.injection import INIT, SIDECAR, Injection
from tproxy.core.inject.jsonpatch import Operation, diff
from tproxy.core.inject.latecomers import settle
from tproxy.core.inject.probes import PROBERS, Rewriting, network_probes
from tproxy.core.inject.sidecar_config import sidecar_config
from tproxy.core.inject.wishes import Wishes, wishes
from tproxy.core.settings import Mode


@dataclass(frozen=True, slots=True)
class Patch:
    """The pod gets a sidecar: what changes, and what comes out."""

    operations: list[Operation]
    pod: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skip:
    """The pod stays as it is, and that is right."""

    reason: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """The pod may not start: with or without a sidecar it would not be what its author says."""

    reason: str


Result: TypeAlias = Patch | Skip | Refusal


def inject(pod: Mapping[str, Any], settings: Injection, where: str = "") -> Result:
    """What is to be done with one pod, or with a workload's pod template; ``where`` names it in messages."""
    where = where or name_of(pod)
    try:
        shape.check(pod, where)
        if reason := _left_alone(pod, where):
            return Skip(reason)
        if _is_injected(pod):
            return _again(pod, settings, where)
        return _patch(pod, settings, where)
    except ConfigError as error:
        return Refusal(str(error))


def name_of(pod: object) -> str:
    """For people: ``pod shop/web``, as far as it is known."""
    meta = pod.get("metadata") if isinstance(pod, Mapping) else None
    if not isinstance(meta, Mapping):
        return "pod"
    name = meta.get("name") or f"{meta.get('generateName') or ''}*"
    return f"pod {meta['namespace']}/{name}" if meta.get("namespace") else f"pod {name}"


def _left_alone(pod: Mapping[str, Any], where: str) -> str:
    """Why this pod gets no sidecar, or nothing."""
    spec = pod.get("spec") or {}
    if (said := opted(pod, where)) and not said[0]:
        return f"opted out: {said[1]} is false"
    if not spec.get("containers"):
        return "no containers: spec.containers is empty"
    if spec.get("hostNetwork"):
        return "hostNetwork: the node's network is not the pod's to capture"
    system = (spec.get("os") or {}).get("name") or (spec.get("nodeSelector") or {}).get("kubernetes.io/os")
    if system == "windows":
        return "Windows: there is no nftables"
    return ""


def _is_injected(pod: Mapping[str, Any]) -> bool:
    spec, meta = pod["spec"], pod.get("metadata") or {}
    first = {entry.get("name") for entry in spec.get("initContainers") or []}
    names = first | {entry.get("name") for entry in spec["containers"]}
    return STATUS in (meta.get("annotations") or {}) and INIT in first and SIDECAR in names


def _again(pod: Mapping[str, Any], settings: Injection, where: str) -> Result:
    """An injected pod needs nothing, unless somebody came into it later."""
    new, warnings = settle(pod, wishes(pod, where, settings.resources), settings, where)
    operations = diff(pod, new)
    return Patch(operations, new, tuple(warnings)) if operations else Skip("already injected")


def _patch(pod: Mapping[str, Any], settings: Injection, where: str) -> Patch:
    wish = wishes(pod, where, settings.resources)
    native = settings.native if wish.native is None else wish.native
    new = draft(pod)
    spec = new["spec"]
    overlaid, parsed = sidecar_config(settings, wish, spec, native, where)
    check_clashes(spec, parsed, where)
    warnings = [*wish.warnings, *drop_net_raw(spec, wish.net_raw, where), *scraped(pod, parsed)]
    rewriting = Rewriting(parsed.ports.metrics, settings.key)
    if wish.rewrite:
        rewriting.pod(spec)
    elif parsed.mode is Mode.STRICT:
        warnings += [f"{name}: stays as it is, and a strict port refuses it" for name in network_probes(spec)]
    checks.read(rewriting.probers, f"{where}: {PROBERS}")  # as the sidecar will
    warnings += [*rewriting.warnings, *_add(spec, overlaid, parsed, rewriting.probers, native, wish, settings)]
    _say(new, native, parsed)
    return Patch(diff(pod, new), new, tuple(warnings))


def _add(
    spec: dict[str, Any],
    config: Mapping[str, Any],
    parsed: Config,
    probers: Mapping[str, Any],
    native: bool,
    wish: Wishes,
    settings: Injection,
) -> list[str]:
    """Our containers and volumes into the pod; the warnings."""
    warnings = []
    own, made = containers.init(config, wish, settings), containers.sidecar(config, parsed, probers, wish, settings)
    others = spec.get("initContainers") or []
    if native:
        spec["initContainers"] = [own, {**made, "restartPolicy": "Always"}, *others]
    else:
        spec["initContainers"] = [own, *others]
        spec["containers"] = [{**made, "lifecycle": containers.hold()}, *spec["containers"]]
        warnings += [
            f"init container {entry['name']}: runs before the sidecar, so TCP is refused to it; native sidecars help"
            for entry in others
        ]
        if spec.get("restartPolicy") in ("Never", "OnFailure"):
            warnings.append("without native sidecars this pod does not end when its application does")
    added = [volume for volume, _ in containers.volumes(parsed, wish, settings)]
    if added:
        spec["volumes"] = [*(spec.get("volumes") or []), *added]
    security = spec.get("securityContext") or {}
    if "gid" in config and security.get("fsGroup") is None:
        group = {"fsGroup": config["gid"], "fsGroupChangePolicy": "OnRootMismatch"}
        spec["securityContext"] = {**security, **group}
        warnings.append(f"spec.securityContext.fsGroup is {config['gid']} now: the sidecar reads its files through it")
    return warnings


def _say(pod: dict[str, Any], native: bool, parsed: Config) -> None:
    """Annotations for people and for the next injector."""
    meta = pod["metadata"] = pod.get("metadata") or {}
    meta["annotations"] = annotations = dict(meta.get("annotations") or {})
    status = {"version": __version__, "native": native, "mode": parsed.mode.value}
    annotations[STATUS] = json.dumps(status)
    if not native:  # the sidecar stands first, and kubectl exec and logs take the first
        first = pod["spec"]["containers"][1]["name"]
        annotations.setdefault("kubectl.kubernetes.io/default-container", first)
