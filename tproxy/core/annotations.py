"""What a pod's author asks for in annotations: ``tproxy.dev/...``, and Istio's where they mean the same.

Source of Istio's: istio.io, reference "Resource Annotations". What cannot be understood is never guessed: a wrong value
or two that contradict each other refuse the pod (ConfigError), an unknown name is a warning with the nearest known one.

>>> wishes({"metadata": {"annotations": {"tproxy.dev/mode": "permissive"}}}, "pod web").overlay
{'inbound': {'mode': 'permissive'}}
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tproxy.core.address import parse_network
from tproxy.core.config import Mode, Outside, parse_port
from tproxy.core.fields import ConfigError, Fields
from tproxy.core.injection import Resources, parse_quantity, size

PREFIX = "tproxy.dev/"
STATUS = PREFIX + "status"  # ours to write
INJECT = (PREFIX + "inject", "sidecar.istio.io/inject")  # ours first; each as a label or an annotation
_TRAFFIC, _SIDECAR = "traffic.sidecar.istio.io/", "sidecar.istio.io/"
_PORTS = ("includeInboundPorts", "excludeInboundPorts", "includeOutboundPorts", "excludeOutboundPorts")
_RANGES = ("includeOutboundIPRanges", "excludeOutboundIPRanges")
_OWN_RANGES = ("includeInboundIPRanges", "excludeInboundIPRanges")
_PLAIN = ("mode", "portModes", "egress", "excludeOutboundUIDs", "logFormat", "netRaw", "secret", "status", "inject")
ISTIO = {
    **{name: _TRAFFIC + name for name in (*_PORTS, *_RANGES)},
    "cpu": _SIDECAR + "proxyCPU",
    "memory": _SIDECAR + "proxyMemory",
    "cpuLimit": _SIDECAR + "proxyCPULimit",
    "memoryLimit": _SIDECAR + "proxyMemoryLimit",
    "image": _SIDECAR + "proxyImage",
    "native": _SIDECAR + "nativeSidecar",
    "rewriteProbes": _SIDECAR + "rewriteAppHTTPProbers",
    "logLevel": _SIDECAR + "logLevel",
}
KNOWN = frozenset(PREFIX + name for name in (*_PLAIN, *_OWN_RANGES, *ISTIO))
_LEVELS = ("debug", "info")
_ISTIO_LEVELS = ("trace", "debug", "info", "warning", "warn", "error", "critical", "off")  # Envoy's
EVERY = "*"


@dataclass(frozen=True, slots=True)
class Wishes:
    """The annotations, understood. ``overlay`` is laid over the sidecar's YAML; None: as the cluster has it."""

    overlay: Mapping[str, Any] = field(default_factory=dict)
    image: str | None = None
    native: bool | None = None
    secret: str | None = None
    resources: Resources = field(default_factory=Resources)
    debug: bool = False
    log_format: str = "text"
    rewrite: bool = True  # the kubelet's probes
    net_raw: tuple[str, ...] = ()  # containers that keep it; ``*``: all
    warnings: tuple[str, ...] = ()


def opted(pod: Mapping[str, Any], where: str) -> tuple[bool, str] | None:
    """Whether the pod's author says yes or no, and where; None: nothing is said."""
    meta = pod.get("metadata") or {}
    for key in INJECT:
        said = {}
        for place in ("labels", "annotations"):
            if key in (meta.get(place) or {}):
                fields = Fields(meta[place], where, f"metadata.{place}")
                said[place] = _flag(fields, key)
        if len(set(said.values())) == 2:
            word = "true" if said["labels"] else "false"
            raise ConfigError(where, "metadata", f"the label {key} says {word}, the annotation the opposite")
        for place, answer in said.items():
            return answer, f"metadata.{place}: {key}"
    return None


def wishes(pod: Mapping[str, Any], where: str, base: Resources | None = None) -> Wishes:
    """All of them. ConfigError names annotation, value and the nearest valid one."""
    return _Reader((pod.get("metadata") or {}).get("annotations") or {}, where).read(base or Resources())


def _flag(fields: Fields, key: str) -> bool:
    return fields.choice(key, "", ("true", "false")) == "true"


def _uid(value: object) -> int:
    if not isinstance(value, str) or not value.isascii() or not value.isdecimal() or int(value) > 2**32 - 2:
        raise ValueError("expected a user id")
    return int(value)


class _Reader:
    """One pod's annotations."""

    def __init__(self, annotations: Mapping[str, str], where: str) -> None:
        self.fields = Fields(annotations, where, "metadata.annotations")
        self.all = annotations
        self.notes = list(_unknown(annotations))

    def read(self, base: Resources) -> Wishes:
        """In the order of the fields of Wishes."""
        overlay = self._overlay()
        return Wishes(
            overlay=overlay,
            image=self._text("image"),
            native=self._flag("native"),
            secret=self._text("secret"),
            resources=self._resources(base),
            debug=self._level() == "debug",
            log_format=self.fields.choice(PREFIX + "logFormat", "text", ("text", "json")),
            rewrite=self._flag("rewriteProbes") is not False,
            net_raw=self._net_raw(),
            warnings=tuple(self.notes),
        )

    def _key(self, name: str) -> str | None:
        """The annotation that says it: ours or Istio's; both only if they agree."""
        ours, theirs = PREFIX + name, ISTIO.get(name, "")
        if ours in self.all and theirs in self.all and self.all[ours] != self.all[theirs]:
            raise self.fields.error(ours, f"contradicts {theirs}: {self.all[theirs]!r}", self.all[ours])
        return next((key for key in (ours, theirs) if key in self.all), None)

    def _text(self, name: str) -> str | None:
        key = self._key(name)
        if key and not self.fields.text(key).strip():
            raise self.fields.error(key, "is empty; leave it out for the cluster's default")
        return self.fields.text(key) if key else None

    def _flag(self, name: str) -> bool | None:
        key = self._key(name)
        return _flag(self.fields, key) if key else None

    def _level(self) -> str:
        key = self._key("logLevel")
        if key is None:
            return "info"
        if key.startswith(PREFIX):
            return self.fields.choice(key, "info", _LEVELS)
        words = {part.rpartition(":")[2].strip() for part in self.all[key].split(",")}  # misc:error,http:debug
        if not words <= set(_ISTIO_LEVELS):
            raise self.fields.error(key, f"expected one of {', '.join(_ISTIO_LEVELS)}", self.all[key], _ISTIO_LEVELS)
        if words - {"trace", "debug", "info"}:
            self.notes.append(f"metadata.annotations: {key}: the sidecar knows debug and info only; info it is")
        return "debug" if words & {"trace", "debug"} else "info"

    def _resources(self, base: Resources) -> Resources:
        cpu, cpu_limit = self._pair("cpu", base.cpu, base.cpu_limit)
        memory, memory_limit = self._pair("memory", base.memory, base.memory_limit)
        return Resources(cpu, memory, cpu_limit, memory_limit)

    def _pair(self, name: str, request: str, limit: str) -> tuple[str, str]:
        """Request and limit; the one that is annotated pulls the other along."""
        keys = self._key(name), self._key(name + "Limit")
        given = [self.fields.parsed(key, parse_quantity, None) if key else None for key in keys]
        request, limit = given[0] or request, given[1] or limit
        if size(request) <= size(limit):
            return request, limit
        if keys[0] and keys[1]:
            raise self.fields.error(keys[0], f"the request is above its limit {limit}", request)
        return (request, request) if keys[0] else (limit, limit)

    def _net_raw(self) -> tuple[str, ...]:
        text = self.all.get(PREFIX + "netRaw", "")
        if text in ("true", "false"):
            return (EVERY,) if text == "true" else ()
        return self.fields.items(PREFIX + "netRaw", str)

    def _overlay(self) -> dict[str, Any]:
        """Mode, egress and capture, as they stand in the sidecar's YAML."""
        inbound: dict[str, Any] = {}
        if (key := PREFIX + "mode") in self.all:
            inbound["mode"] = self.fields.choice(key, "", list(Mode))
        if (key := PREFIX + "portModes") in self.all:
            inbound["ports"] = dict(self.fields.items(key, _port_mode))
        overlay: dict[str, Any] = {"inbound": inbound} if inbound else {}
        if (key := PREFIX + "egress") in self.all:
            overlay["egress"] = self.fields.choice(key, "", list(Outside))
        if capture := self._capture():
            overlay["capture"] = capture
        return overlay

    def _capture(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in _PORTS:
            self._list(found, name, parse_port)
        for name in (*_RANGES, *_OWN_RANGES):
            self._list(found, name, parse_network)
        if (key := PREFIX + "excludeOutboundUIDs") in self.all:
            found["excludeOutboundUIDs"] = list(self.fields.items(key, _uid))
        self._ored(found)
        for way in ("InboundPorts", "OutboundPorts", "InboundIPRanges", "OutboundIPRanges"):
            wanted, unwanted = found.get(f"include{way}", ()), found.get(f"exclude{way}", ())
            if both := [item for item in wanted if item in unwanted and wanted != EVERY]:
                key = self._key(f"exclude{way}") or ""
                raise self.fields.error(key, f"{both[0]} stands in include{way}, too", self.all[key])
        return found

    def _list(self, found: dict[str, Any], name: str, parse: Callable[[Any], object]) -> None:
        key = self._key(name)
        if key is None:
            return
        if self.all[key].strip() == EVERY and name.startswith("include"):
            found[name] = EVERY
            return
        items = self.fields.items(key, parse)
        found[name] = [item if isinstance(item, int) else str(item) for item in items]

    def _ored(self, found: dict[str, Any]) -> None:
        """Istio captures what its ports *or* its ranges include, we what both do: the same only without ranges."""
        key = ISTIO["includeOutboundPorts"]
        if self._key("includeOutboundPorts") != key:
            return
        if found.get("includeOutboundIPRanges", EVERY) != EVERY:
            why = "with includeOutboundIPRanges Istio adds these ports to the ranges, which is not supported"
            raise self.fields.error(key, f"{why}; name the ranges only", self.all[key])
        del found["includeOutboundPorts"]  # every range is captured already
        self.notes.append(f"metadata.annotations: {key}: without ranges everything is captured, as with Istio")


def _port_mode(text: object) -> tuple[str, str]:
    port, equals, mode = str(text).partition("=")
    if not equals or mode not in list(Mode):
        raise ValueError(f"expected PORT=MODE, where MODE is one of {', '.join(Mode)}")
    return str(parse_port(port)), mode


def _unknown(annotations: Mapping[str, str]) -> Iterator[str]:
    """Warnings about names that nobody reads."""
    theirs = {*ISTIO.values(), *INJECT, _SIDECAR + "status"}
    for key in annotations:
        if key.startswith(PREFIX) and key not in KNOWN:
            names = {known.lower(): known for known in sorted(KNOWN - {STATUS})}
            near = difflib.get_close_matches(key.lower(), names, 1, 0.5)
            hint = f"; did you mean {names[near[0]]!r}?" if near else ""
            yield f"metadata.annotations: {key}: unknown, and ignored{hint}"
        elif key.startswith((_TRAFFIC, _SIDECAR, "proxy.istio.io/")) and key not in theirs:
            yield f"metadata.annotations: {key}: Istio's, not supported here, and ignored"
