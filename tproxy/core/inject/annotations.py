"""Names of annotations, ours (``tproxy.dev/...``) and Istio's where they mean the same, and how one is read.

Source of Istio's: istio.io, reference "Resource Annotations". What cannot be understood is never guessed: a wrong value
or two that contradict each other are a ConfigError, an unknown name is a warning with the nearest known one.

>>> Annotations({"sidecar.istio.io/nativeSidecar": "false"}, "pod web").flag("native")
False
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from tproxy.core.fields import ConfigError, Fields

PREFIX = "tproxy.dev/"
STATUS = PREFIX + "status"  # ours to write
INJECT = (PREFIX + "inject", "sidecar.istio.io/inject")  # ours first; each as a label or an annotation
EVERY = "*"
PORTS = ("includeInboundPorts", "excludeInboundPorts", "includeOutboundPorts", "excludeOutboundPorts")
RANGES = ("includeOutboundIPRanges", "excludeOutboundIPRanges", "includeInboundIPRanges", "excludeInboundIPRanges")
_PLAIN = (
    *("mode", "portModes", "egress", "egressRoutes", "excludeOutboundUIDs", "logFormat", "netRaw"),
    *("secret", "status", "inject"),
)
_TRAFFIC, _SIDECAR = "traffic.sidecar.istio.io/", "sidecar.istio.io/"
ISTIO = {
    **{name: _TRAFFIC + name for name in (*PORTS, *RANGES[:2])},
    "cpu": _SIDECAR + "proxyCPU",
    "memory": _SIDECAR + "proxyMemory",
    "cpuLimit": _SIDECAR + "proxyCPULimit",
    "memoryLimit": _SIDECAR + "proxyMemoryLimit",
    "image": _SIDECAR + "proxyImage",
    "native": _SIDECAR + "nativeSidecar",
    "rewriteProbes": _SIDECAR + "rewriteAppHTTPProbers",
    "logLevel": _SIDECAR + "logLevel",
}
KNOWN = frozenset(PREFIX + name for name in (*_PLAIN, *RANGES, *ISTIO))
_THEIRS = frozenset((*ISTIO.values(), *INJECT, _SIDECAR + "status"))
LONGEST = 16 * 1024  # characters of a value; Linux gives 128 KiB to a variable of the environment (execve(2))
HINTS = 8  # names that are looked up for whoever misspelt them: each costs a third of a millisecond


class Annotations:
    """One pod's. ConfigError if one of ours is longer than the sidecar's environment could hold."""

    def __init__(self, annotations: Mapping[str, str], where: str) -> None:
        self.fields = Fields(annotations, where, "metadata.annotations")
        self.all = annotations
        for key, value in annotations.items():
            if len(value) > LONGEST and (key in KNOWN or key in _THEIRS):
                raise self.fields.error(key, f"is longer than {LONGEST} characters", value)

    def key(self, name: str) -> str | None:
        """The annotation that says it: ours or Istio's; both only if they agree."""
        ours, theirs = PREFIX + name, ISTIO.get(name, "")
        if ours in self.all and theirs in self.all and self.all[ours] != self.all[theirs]:
            raise self.fields.error(ours, f"contradicts {theirs}: {self.all[theirs]!r}", self.all[ours])
        return next((key for key in (ours, theirs) if key in self.all), None)

    def text(self, name: str) -> str | None:
        """One line, not empty; None if nothing is said."""
        key = self.key(name)
        if key and not self.fields.text(key).strip():
            raise self.fields.error(key, "is empty; leave it out for the cluster's default")
        return self.fields.text(key) if key else None

    def flag(self, name: str) -> bool | None:
        """true or false; None if nothing is said."""
        key = self.key(name)
        return _flag(self.fields, key) if key else None

    def unknown(self) -> Iterator[str]:
        """Warnings about names that nobody reads."""
        hints = HINTS
        for key in self.all:
            if key.startswith(PREFIX) and key not in KNOWN:
                hint = _nearest(key) if hints > 0 else ""
                hints -= 1
                yield f"metadata.annotations: {key}: unknown, and ignored{hint}"
            elif key.startswith((_TRAFFIC, _SIDECAR, "proxy.istio.io/")) and key not in _THEIRS:
                yield f"metadata.annotations: {key}: Istio's, not supported here, and ignored"


def _nearest(key: str) -> str:
    if len(key) > 2 * len(max(KNOWN, key=len)):
        return ""
    names = {known.lower(): known for known in sorted(KNOWN - {STATUS})}
    near = difflib.get_close_matches(key.lower(), names, 1, 0.5)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def opted(pod: Mapping[str, Any], where: str) -> tuple[bool, str] | None:
    """Whether the pod's author says yes or no, and where; None: nothing is said."""
    meta = pod.get("metadata") or {}
    for key in INJECT:
        said = {
            place: _flag(Fields(meta[place], where, f"metadata.{place}"), key)
            for place in ("labels", "annotations")
            if key in (meta.get(place) or {})
        }
        if len(set(said.values())) == 2:
            word = "true" if said["labels"] else "false"
            raise ConfigError(where, "metadata", f"the label {key} says {word}, the annotation the opposite")
        for place, answer in said.items():
            return answer, f"metadata.{place}: {key}"
    return None


def _flag(fields: Fields, key: str) -> bool:
    return fields.choice(key, "", ("true", "false")) == "true"
