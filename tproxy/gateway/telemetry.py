"""Istio's Telemetry objects, as far as they switch a gateway's access log on and off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tproxy.core.fields import ConfigError
from tproxy.gateway.findings import Findings
from tproxy.gateway.objects import Object

ROOT = "istio-system"
PROVIDERS = ("envoy",)  # the one that every mesh has: text on stdout


def access_log(things: Iterable[Object], labels: Mapping[str, str], namespace: str, findings: Findings) -> bool | None:
    """Whether a log is wanted; None where nothing says. Of several the closest counts: labels, namespace, the mesh."""
    said: list[tuple[int, bool]] = []
    for thing in things:
        if (thing.group, thing.kind) == ("telemetry.istio.io", "Telemetry"):
            try:
                said += _said(thing, labels, namespace, findings)
            except ConfigError as error:
                findings.error(error)
    return max(said, key=lambda one: one[0])[1] if said else None


def _said(thing: Object, labels: Mapping[str, str], namespace: str, findings: Findings) -> Iterable[tuple[int, bool]]:
    spec = thing.fields("spec")
    wanted = {str(key): str(value) for key, value in spec.inner("selector").inner("matchLabels").data.items()}
    if thing.namespace not in {ROOT, namespace} or (labels and not wanted.items() <= labels.items()):
        return
    close = 2 * bool(wanted) + (thing.namespace == namespace != ROOT)
    for entry in spec.each("accessLogging"):
        for provider in entry.each("providers"):
            name = provider.text("name")
            if name not in PROVIDERS:
                findings.warn(thing, provider.name("name"), f"provider {name!r} is not known; known: envoy")
        if entry.raw("filter") is not None:
            findings.warn(thing, entry.name("filter"), "is not read: every request is logged")
        mode = entry.inner("match").text("mode", "CLIENT_AND_SERVER")
        if mode != "SERVER":  # Istio counts a gateway among the clients (telemetry.go, workloadMode)
            yield close, not entry.flag("disabled", False)
