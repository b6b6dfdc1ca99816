"""What must not be in a pod beside the sidecar: its uid, its ports, its names; and NET_RAW, which is taken away."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from tproxy.core.config import Config
from tproxy.core.fields import ConfigError
from tproxy.core.inject.annotations import EVERY, PREFIX
from tproxy.core.inject.injection import INIT, SIDECAR
from tproxy.core.settings import Mode

_KINDS = ("initContainers", "containers")
_ISTIO = ("istio-proxy", "istio-init", "istio-validation")
_VOLUMES = ("tproxy-token", "tproxy-roots", "tproxy-secret", "tproxy-workload-api", "tproxy-pod", "tproxy-egress")
_POWERFUL = {"NET_ADMIN", "SYS_ADMIN", "ALL"}  # each may change the rules of the network namespace


def _each(spec: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in _KINDS:
        for index, container in enumerate(spec.get(kind) or []):
            yield f"spec.{kind}[{index}]", container


def check_clashes(spec: Mapping[str, Any], config: Config, where: str) -> None:
    """ConfigError names the first thing that cannot stand beside a sidecar."""
    if config.uid in config.capture.exclude_outbound_uids:
        key = f"metadata.annotations.{PREFIX}excludeOutboundUIDs"
        raise ConfigError(where, key, "is the sidecar's own uid, which the rules treat already", config.uid)
    seen: set[str] = set()
    for path, container in _each(spec):
        name = container.get("name")
        if not name:
            raise ConfigError(where, f"{path}.name", "is missing")
        if name in seen:
            raise ConfigError(where, f"{path}.name", "two containers have this name", name)
        seen.add(name)
        if name in (INIT, SIDECAR):
            raise ConfigError(where, f"{path}.name", "is the injector's, but this pod was not injected by it", name)
        if name in _ISTIO:
            raise ConfigError(where, f"{path}.name", "Istio's sidecar is here already; both want the same ports", name)
        _check_user(path, container, spec, config, where)
        _check_ports(path, container, config, where)
    for index, volume in enumerate(spec.get("volumes") or []):
        if volume.get("name") in _VOLUMES:
            raise ConfigError(where, f"spec.volumes[{index}].name", "is the injector's", volume["name"])


def _check_user(path: str, container: Mapping[str, Any], spec: Mapping[str, Any], config: Config, where: str) -> None:
    for key in ("runAsUser", "runAsGroup"):
        for place, holder in ((f"{path}.", container), ("spec.", spec)):
            value = (holder.get("securityContext") or {}).get(key)
            if value is not None:  # the container's counts before the pod's
                if value == config.uid:  # which is its group, too
                    why = "is the sidecar's, whose connections are not captured; choose another"
                    raise ConfigError(where, f"{place}securityContext.{key}", why, value)
                break


def _check_ports(path: str, container: Mapping[str, Any], config: Config, where: str) -> None:
    ports = config.ports
    own = {ports.admin, ports.egress, ports.ingress, ports.metrics, ports.ready}
    for index, port in enumerate(container.get("ports") or []):
        if port.get("containerPort") in own and port.get("protocol") in (None, "TCP"):
            why = "is one of the sidecar's ports; let the application listen elsewhere"
            raise ConfigError(where, f"{path}.ports[{index}].containerPort", why, port["containerPort"])


def drop_net_raw(spec: Mapping[str, Any], keep: tuple[str, ...], where: str) -> list[str]:
    """Take NET_RAW from every container but those that are named, in place; the warnings."""
    names = [container["name"] for _, container in _each(spec)]
    known, kept = {*names, EVERY}, set(keep)
    for name in keep:
        if name not in known:
            near = difflib.get_close_matches(name, names[:100], 1, 0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            field = f"metadata.annotations.{PREFIX}netRaw"
            raise ConfigError(where, field, f"expected true, false or names of containers{hint}", name)
    warnings: list[str] = []
    for _, container in _each(spec):
        if EVERY not in kept and container["name"] not in kept:
            warnings += _drop(container)
        warnings += _powers(container)
    return warnings


def _drop(container: dict[str, Any]) -> Iterator[str]:
    security = container.get("securityContext") or {}
    if security.get("privileged"):
        return  # has every capability, whatever is dropped
    found = security.get("capabilities") or {}
    add, drop = found.get("add") or [], found.get("drop") or []
    asked = [name for name in add if _plain(name) == "NET_RAW"]
    if asked:
        yield (
            f"container {container['name']}: asked for NET_RAW, which was taken away: it lets a process pass by the "
            f"sidecar; the annotation {PREFIX}netRaw: {container['name']} keeps it"
        )
        found = {**found, "add": [name for name in add if name not in asked]}
    dropped = {_plain(name) for name in drop}
    if "NET_RAW" not in dropped and ("ALL" not in dropped or "ALL" in map(_plain, add)):
        found = {**found, "drop": [*drop, "NET_RAW"]}
    if found:
        found = {key: value for key, value in found.items() if value or key != "add"}
        container["securityContext"] = {**security, "capabilities": found}


def _powers(container: Mapping[str, Any]) -> Iterator[str]:
    security = container.get("securityContext") or {}
    added = {_plain(name) for name in (security.get("capabilities") or {}).get("add") or []} & _POWERFUL
    if security.get("privileged") or added:
        what = "is privileged" if security.get("privileged") else f"has {', '.join(sorted(added))}"
        yield f"container {container['name']}: {what}, so it can remove the rules of this pod"


def _plain(name: str) -> str:
    return name.upper().removeprefix("CAP_")


def scraped(pod: Mapping[str, Any], config: Config) -> list[str]:
    """A warning if Prometheus is told to come in plaintext to a port that refuses it (its usual annotations)."""
    said = (pod.get("metadata") or {}).get("annotations") or {}
    port = said.get("prometheus.io/port", "")
    if said.get("prometheus.io/scrape") != "true" or not (port.isascii() and port.isdecimal() and len(port) < 6):
        return []
    number, capture = int(port), config.capture
    captured = capture.include_inbound_ports is None or number in capture.include_inbound_ports
    if number in capture.exclude_inbound_ports or not captured or config.mode_of(number) is not Mode.STRICT:
        return []
    way = f'{PREFIX}excludeInboundPorts: "{number}" or {PREFIX}portModes: {number}=permissive'
    return [f"metadata.annotations: prometheus.io/port: a strict port refuses Prometheus without a certificate; {way}"]
