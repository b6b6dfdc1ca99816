"""A pod to write on: copied where the injector changes something, shared where it does not.

Most of a large pod is its containers' environment, which nobody touches. What is shared is known to be the same without
a look (``jsonpatch.diff``). Whoever changes something that stands deeper than here puts a new object in its place.

>>> new = draft(old := {"spec": {"containers": [{"name": "web", "env": []}], "volumes": []}})
>>> container = new["spec"]["containers"][0]
>>> container is old["spec"]["containers"][0], container["env"] is old["spec"]["containers"][0]["env"]
(False, True)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tproxy.core.inject.probes import HOOKS, PROBES


def draft(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Pod, metadata, spec, containers, their probes and hooks are its own."""
    spec = dict(pod["spec"])
    for kind in ("initContainers", "containers"):
        if spec.get(kind):
            spec[kind] = [_container(one) for one in spec[kind]]
    return {**pod, **_own(pod, ("metadata",)), "spec": spec}


def _container(container: Mapping[str, Any]) -> dict[str, Any]:
    new = {**container, **_own(container, PROBES)}
    if lifecycle := container.get("lifecycle"):
        new["lifecycle"] = {**lifecycle, **_own(lifecycle, HOOKS)}
    return new


def _own(holder: Mapping[str, Any], names: Mapping[str, str] | tuple[str, ...]) -> dict[str, Any]:
    return {name: dict(holder[name]) for name in names if holder.get(name)}
