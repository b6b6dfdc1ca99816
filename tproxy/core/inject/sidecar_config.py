"""The configuration of one pod's sidecar: the cluster's, the annotations laid over it, and what follows from the pod.

Three things follow from the pod. *drain* ends before the kubelet's SIGKILL. *labelsFile*: labels, by which policies
select a pod, may change after it was made, so they come from a file. *gid*: what the kubelet writes for one group only
is read through the pod's fsGroup, which becomes the sidecar's group. A projected token is everyone's to read, unless
the pod has an fsGroup (then root's and that group's), or all its containers run as one user (then that user's alone);
kubelet, ``projected.go`` and ``FsUserFrom``. A Secret's key is never everyone's: the sidecar refuses that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from tproxy.core.config import Config
from tproxy.core.fields import ConfigError
from tproxy.core.inject import containers
from tproxy.core.inject.injection import Injection
from tproxy.core.inject.jsonpatch import copied
from tproxy.core.inject.wishes import Wishes
from tproxy.core.settings import IstioCa

_SHORT = 4096  # characters of a configuration that is remembered
_GRACE = 30  # terminationGracePeriodSeconds where none is said


def sidecar_config(
    settings: Injection, wish: Wishes, spec: Mapping[str, Any], native: bool, where: str
) -> tuple[dict[str, Any], Config]:
    """As the mapping that the sidecar will read, and as it will understand it. ConfigError is what it would say."""
    where_config = f"{where}: {containers.CONFIG}"
    merged: dict[str, Any] = _laid(settings.config, wish.overlay)
    if containers.secret_of(wish, settings):
        at = containers.SECRET_PATH
        merged["identity"] = {"cert": f"{at}/tls.crt", "key": f"{at}/tls.key", "ca": f"{at}/ca.crt"}
    elif merged.get("identity") is None:
        merged["identity"] = {"istioCa": {"address": f"tproxy-control.{settings.namespace}.svc:15012"}}
    if wish.egress_routes is not None:  # replaced, not merged: a file stands alone
        merged["egressRoutes"] = {"file": containers.ROUTES}
    merged["fast"] = {"sockmap": "off", **(merged.get("fast") or {})}
    parsed = _parsed(merged, where_config)
    if (parsed.follows or parsed.policies) and not (parsed.workload.labels or parsed.workload.labels_file):
        merged["workload"] = {**(merged.get("workload") or {}), "labelsFile": containers.LABELS}
    grace = spec.get("terminationGracePeriodSeconds")
    left = (_GRACE if grace is None else grace) - 1 - (0 if native else containers.STEP_ASIDE)
    if left < parsed.limits.drain:  # what is not over then is ended by us, and not by SIGKILL
        merged["limits"] = {**(merged.get("limits") or {}), "drain": max(1, left)}
    if group := _group(spec, parsed, bool(containers.secret_of(wish, settings)), where):
        merged["gid"] = group
    return merged, _parsed(merged, where_config)


def _parsed(merged: Mapping[str, Any], where: str) -> Config:
    """Most pods of a cluster have one of a few configurations, and each is read once."""
    text = json.dumps(merged)
    if len(text) > _SHORT:
        return Config.parse(merged, where)
    try:
        return _known(text)
    except ConfigError:
        return Config.parse(merged, where)  # says of which pod


@lru_cache(128)
def _known(text: str) -> Config:
    return Config.parse(json.loads(text), "")


def _laid(under: Mapping[Any, Any], over: Mapping[Any, Any]) -> dict[str, Any]:
    """Mappings are merged, everything else is replaced; keys become text, as in JSON: a port may be a number."""
    merged = {str(key): copied(value) for key, value in under.items()}
    for key, value in over.items():
        if isinstance(value, Mapping):
            merged[str(key)] = _laid(merged.get(str(key)) or {}, value)
        else:
            merged[str(key)] = copied(value)
    return merged


def _group(spec: Mapping[str, Any], parsed: Config, secret: bool, where: str) -> int | None:
    """The group that may read what the kubelet writes for the sidecar; None: everyone may."""
    security = spec.get("securityContext") or {}
    if security.get("fsGroup") is not None:
        if not security["fsGroup"]:
            raise ConfigError(where, "spec.securityContext.fsGroup", "the sidecar cannot be of root's group", 0)
        return int(security["fsGroup"])
    every = [entry for kind in ("initContainers", "containers") for entry in spec.get(kind) or []]
    users = {(entry.get("securityContext") or {}).get("runAsUser", security.get("runAsUser")) for entry in every}
    # the sidecar starts as root, too: then the token is root's alone
    return parsed.gid if secret or (isinstance(parsed.identity, IstioCa) and users == {0}) else None
