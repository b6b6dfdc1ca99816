"""The parts of a pod that the injector reads, checked once; behind this nothing is validated again.

Kubernetes decodes a pod before its webhooks see it, a file has nobody who did. What stands here is no schema: it says
only of which type a part is, if it is there. Source: Kubernetes API reference, core/v1 Pod.

>>> check({"spec": {"containers": [{"name": 3}]}}, "pod web")
Traceback (most recent call last):
tproxy.core.fields.ConfigError: pod web: spec.containers[0].name: 3: expected text
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from tproxy.core.fields import ConfigError

_WORDS: dict[type, str] = {str: "text", int: "a whole number", bool: "true or false"}
_TEXTS: dict[str, type] = {}  # any key, and each value is text
_CAPABILITIES = {"add": [str], "drop": [str]}
_SECURITY = {"runAsUser": int, "runAsGroup": int, "privileged": bool, "capabilities": _CAPABILITIES}
_HTTP = {"path": str, "port": (int, str), "host": str, "scheme": str, "httpHeaders": [{"name": str, "value": str}]}
_TCP = {"port": (int, str), "host": str}
_PROBE = {"httpGet": _HTTP, "tcpSocket": _TCP, "grpc": {"port": int, "service": str}, "timeoutSeconds": int}
_HOOK = {"httpGet": _HTTP}
_CONTAINER = {
    "name": str,
    "ports": [{"name": str, "containerPort": int, "protocol": str}],
    "env": [{"name": str, "value": str}],
    "securityContext": _SECURITY,
    "restartPolicy": str,
    "livenessProbe": _PROBE,
    "readinessProbe": _PROBE,
    "startupProbe": _PROBE,
    "lifecycle": {"postStart": _HOOK, "preStop": _HOOK},
}
POD = {
    "metadata": {"name": str, "generateName": str, "namespace": str, "annotations": _TEXTS, "labels": _TEXTS},
    "spec": {
        "containers": [_CONTAINER],
        "initContainers": [_CONTAINER],
        "volumes": [{"name": str}],
        "hostNetwork": bool,
        "restartPolicy": str,
        "os": {"name": str},
        "nodeSelector": _TEXTS,
        "securityContext": {"runAsUser": int, "runAsGroup": int, "fsGroup": int},
        "terminationGracePeriodSeconds": int,
    },
}


def check(pod: object, where: str) -> None:
    """ConfigError names the first part that is not what it should be."""
    if fault := _fault(pod, POD):
        steps, why, value = fault
        raise ConfigError(where, "".join(reversed(steps)).removeprefix("."), why, value)


_Fault: TypeAlias = tuple[list[str], str, Any]  # the way there, backwards; what was expected; what was found


def _fault(value: Any, shape: Any) -> _Fault | None:
    """Paths are made when there is a fault: a huge pod has thousands of parts, and none is wrong."""
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            return [], "expected a mapping (key: value)", value
        return _in_texts(value) if shape is _TEXTS else _in_mapping(value, shape)
    if isinstance(shape, list):
        return _in_list(value, shape[0])
    types = shape if isinstance(shape, tuple) else (shape,)
    if isinstance(value, types) and (not isinstance(value, bool) or bool in types):
        return None
    return [], f"expected {' or '.join(_WORDS[one] for one in types)}", value


def _in_mapping(value: Mapping[Any, Any], shape: Mapping[str, Any]) -> _Fault | None:
    known = shape.get
    for key, item in value.items():
        inner = known(key)
        if inner is None or item is None or item.__class__ is inner:
            continue
        if fault := _fault(item, inner):
            fault[0].append(f".{key}")
            return fault
    return None


def _in_texts(value: Mapping[Any, Any]) -> _Fault | None:
    return next(
        (([f".{key}"], "expected text", item) for key, item in value.items() if not isinstance(item, str)), None
    )


def _in_list(value: Any, inner: Any) -> _Fault | None:
    if not isinstance(value, list):
        return [], "expected a list", value
    mappings = isinstance(inner, dict)
    for index, item in enumerate(value):  # an item of its very class, as most are, needs no second look
        if fault := _in_mapping(item, inner) if mappings and item.__class__ is dict else _fault(item, inner):
            fault[0].append(f"[{index}]")
            return fault
    return None
