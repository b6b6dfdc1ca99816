"""What a pod's author asks for in annotations, understood.

>>> wishes({"metadata": {"annotations": {"tproxy.dev/mode": "permissive"}}}, "pod web").overlay
{'inbound': {'mode': 'permissive'}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tproxy.core.address import parse_network
from tproxy.core.config import Mode, Outside, parse_port
from tproxy.core.inject.annotations import EVERY, ISTIO, PORTS, PREFIX, RANGES, Annotations
from tproxy.core.inject.injection import Resources, parse_quantity, size

_LEVELS = ("debug", "info")
_ISTIO_LEVELS = ("trace", "debug", "info", "warning", "warn", "error", "critical", "off")  # Envoy's


@dataclass(frozen=True, slots=True)
class Wishes:
    """``overlay`` is laid over the sidecar's YAML; None: as the cluster has it."""

    overlay: Mapping[str, Any] = field(default_factory=dict)
    image: str | None = None
    native: bool | None = None
    secret: str | None = None
    egress_routes: str | None = None  # the ConfigMap with the rules
    resources: Resources = field(default_factory=Resources)
    debug: bool = False
    log_format: str = "text"
    rewrite: bool = True  # the kubelet's probes
    net_raw: tuple[str, ...] = ()  # containers that keep it; ``*``: all
    warnings: tuple[str, ...] = ()


def wishes(pod: Mapping[str, Any], where: str, base: Resources | None = None) -> Wishes:
    """All of them. ConfigError names annotation, value and the nearest valid one."""
    notes = Annotations((pod.get("metadata") or {}).get("annotations") or {}, where)
    warnings = list(notes.unknown())
    return Wishes(
        overlay=_overlay(notes, warnings),
        image=notes.text("image"),
        native=notes.flag("native"),
        secret=notes.text("secret"),
        egress_routes=notes.text("egressRoutes"),
        resources=_resources(notes, base or Resources()),
        debug=_level(notes, warnings) == "debug",
        log_format=notes.fields.choice(PREFIX + "logFormat", "text", ("text", "json")),
        rewrite=notes.flag("rewriteProbes") is not False,
        net_raw=_net_raw(notes),
        warnings=tuple(warnings),
    )


def _level(notes: Annotations, warnings: list[str]) -> str:
    key = notes.key("logLevel")
    if key is None or key.startswith(PREFIX):
        return notes.fields.choice(PREFIX + "logLevel", "info", _LEVELS)
    words = {part.rpartition(":")[2].strip() for part in notes.all[key].split(",")}  # misc:error,http:debug
    if not words <= set(_ISTIO_LEVELS):
        raise notes.fields.error(key, f"expected one of {', '.join(_ISTIO_LEVELS)}", notes.all[key], _ISTIO_LEVELS)
    if words - {"trace", "debug", "info"}:
        warnings.append(f"metadata.annotations: {key}: the sidecar knows debug and info only; info it is")
    return "debug" if words & {"trace", "debug"} else "info"


def _resources(notes: Annotations, base: Resources) -> Resources:
    cpu, cpu_limit = _pair(notes, "cpu", base.cpu, base.cpu_limit)
    memory, memory_limit = _pair(notes, "memory", base.memory, base.memory_limit)
    return Resources(cpu, memory, cpu_limit, memory_limit)


def _pair(notes: Annotations, name: str, request: str, limit: str) -> tuple[str, str]:
    """Request and limit; the one that is annotated pulls the other along."""
    keys = notes.key(name), notes.key(name + "Limit")
    given = [notes.fields.parsed(key, parse_quantity, None) if key else None for key in keys]
    request, limit = given[0] or request, given[1] or limit
    if size(request) <= size(limit):
        return request, limit
    if keys[0] and keys[1]:
        raise notes.fields.error(keys[0], f"the request is above its limit {limit}", request)
    return (request, request) if keys[0] else (limit, limit)


def _net_raw(notes: Annotations) -> tuple[str, ...]:
    key = PREFIX + "netRaw"
    if notes.all.get(key) in ("true", "false"):
        return (EVERY,) if notes.all[key] == "true" else ()
    return notes.fields.items(key, str)


def _overlay(notes: Annotations, warnings: list[str]) -> dict[str, Any]:
    """Mode, egress and capture, as they stand in the sidecar's YAML."""
    fields, inbound = notes.fields, dict[str, Any]()
    if (key := PREFIX + "mode") in notes.all:
        inbound["mode"] = fields.choice(key, "", list(Mode))
    if (key := PREFIX + "portModes") in notes.all:
        inbound["ports"] = dict(fields.items(key, _port_mode))
    overlay: dict[str, Any] = {"inbound": inbound} if inbound else {}
    if (key := PREFIX + "egress") in notes.all:
        overlay["egress"] = fields.choice(key, "", list(Outside))
    if capture := _capture(notes, warnings):
        overlay["capture"] = capture
    return overlay


def _capture(notes: Annotations, warnings: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in PORTS:
        _list(notes, found, name, parse_port)
    for name in RANGES:
        _list(notes, found, name, parse_network)
    _list(notes, found, "excludeOutboundUIDs", _uid)
    _ored(notes, found, warnings)
    for way in ("InboundPorts", "OutboundPorts", "InboundIPRanges", "OutboundIPRanges"):
        wanted, unwanted = found.get(f"include{way}", ()), set(found.get(f"exclude{way}", ()))
        if both := [item for item in wanted if item in unwanted and wanted != EVERY]:
            key = notes.key(f"exclude{way}") or ""
            raise notes.fields.error(key, f"{both[0]} stands in include{way}, too", notes.all[key])
    return found


def _list(notes: Annotations, found: dict[str, Any], name: str, parse: Callable[[Any], object]) -> None:
    key = notes.key(name)
    if key is None:
        return
    if notes.all[key].strip() == EVERY and name.startswith("include"):
        found[name] = EVERY
        return
    items = notes.fields.items(key, parse)
    found[name] = [item if isinstance(item, int) else str(item) for item in items]


def _ored(notes: Annotations, found: dict[str, Any], warnings: list[str]) -> None:
    """Istio captures what its ports *or* its ranges include, we what both do: the same only without ranges."""
    key = ISTIO["includeOutboundPorts"]
    if notes.key("includeOutboundPorts") != key:
        return
    if found.get("includeOutboundIPRanges", EVERY) != EVERY:
        why = "with includeOutboundIPRanges Istio adds these ports to the ranges, which is not supported"
        raise notes.fields.error(key, f"{why}; name the ranges only", notes.all[key])
    del found["includeOutboundPorts"]  # every range is captured already
    warnings.append(f"metadata.annotations: {key}: without ranges everything is captured, as with Istio")


def _uid(value: object) -> int:
    if not isinstance(value, str) or not value.isascii() or not value.isdecimal() or int(value) > 2**32 - 2:
        raise ValueError("expected a user id")
    return int(value)


def _port_mode(text: object) -> tuple[str, str]:
    port, equals, mode = str(text).partition("=")
    if not equals or mode not in list(Mode):
        raise ValueError(f"expected PORT=MODE, where MODE is one of {', '.join(Mode)}")
    return str(parse_port(port)), mode
