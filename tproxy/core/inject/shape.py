"""The parts of a pod that the injector reads, checked once; behind this nothing is validated again.

Kubernetes decodes a pod before its webhooks see it, a file has nobody who did. What stands here is no schema: it says
only of which type a part is, if it is there. Source: Kubernetes API reference, core/v1 Pod.

>>> check({"spec": {"containers": [{"name": 3}]}}, "pod web")
Traceback (most recent call last):
tproxy.core.fields.ConfigError: pod web: spec.containers[0].name: 3: expected text
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tproxy.core.fields import ConfigError

_WORDS: dict[type, str] = {str: "text", int: "a whole number", bool: "true or false"}
_TEXTS = {"*": str}  # any key
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
    _check(pod, POD, where, "")


def _check(value: Any, shape: Any, where: str, path: str) -> None:
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            raise ConfigError(where, path, "expected a mapping (key: value)", value)
        for key, item in value.items():
            inner = shape.get("*") or shape.get(key)
            if inner is not None and (item is not None or "*" in shape):
                _check(item, inner, where, f"{path}.{key}" if path else str(key))
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ConfigError(where, path, "expected a list", value)
        for index, item in enumerate(value):
            _check(item, shape[0], where, f"{path}[{index}]")
    else:
        _check_scalar(value, shape if isinstance(shape, tuple) else (shape,), where, path)


def _check_scalar(value: Any, types: tuple[type, ...], where: str, path: str) -> None:
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ConfigError(where, path, f"expected {' or '.join(_WORDS[one] for one in types)}", value)
