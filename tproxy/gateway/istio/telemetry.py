"""Istio's Telemetry objects, as far as access logs go: whether requests are logged, and which.

Istio's order (pilot/pkg/model/telemetry.go): the root namespace's, the pod's namespace's, the pod's own; of each the
oldest; what a later one says of a provider replaces what an earlier one said. The provider ``envoy`` writes to stdout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from tproxy.core.access_log import Wanted
from tproxy.core.fields import ConfigError, Fields
from tproxy.gateway.findings import Findings, by_kind, ignore
from tproxy.gateway.objects import Object

GROUP, _VERSIONS = "telemetry.istio.io", ("v1", "v1alpha1")
ROOT = "istio-system"
_STDOUT = "envoy"
_CODE = re.compile(r"\s*response\.code\s*(==|!=|>=|<=|>|<)\s*([0-9]{3})\s*")


def access_log(
    objects: Iterable[Object], labels: Mapping[str, str], findings: Findings, namespace: str = ROOT
) -> Wanted | None:
    """What Telemetry objects say for a gateway pod; None if they say nothing, and the command line decides."""
    found = by_kind(objects, GROUP, ("Telemetry",), _VERSIONS, findings)["Telemetry"]
    said: Wanted | None = None
    for thing in _applicable(found, labels, namespace, findings):
        try:
            said = _read(thing, said, findings)
        except ConfigError as error:
            findings.error(error)
    return said


def _applicable(
    things: list[Object], labels: Mapping[str, str], namespace: str, findings: Findings
) -> Iterator[Object]:
    """At most one of each level, the widest first."""
    levels: dict[int, Object] = {}
    for thing in things:
        try:
            selector = thing.fields("spec").inner("selector").inner("matchLabels").data
        except ConfigError as error:
            findings.error(error)
            continue
        wanted = {str(key): str(value) for key, value in selector.items()}
        if thing.namespace not in (ROOT, namespace) or (labels and not wanted.items() <= labels.items()):
            continue
        if wanted and thing.namespace != namespace:
            continue  # Istio looks for workloads' own in their namespace only
        level = 2 if wanted else 1 if thing.namespace == namespace != ROOT else 0
        levels.setdefault(level, thing)
    yield from (levels[level] for level in sorted(levels))


def _read(thing: Object, said: Wanted | None, findings: Findings) -> Wanted | None:
    spec = thing.fields("spec")
    spec.raw("selector")
    spec.raw("targetRefs")
    ignore(thing, spec, ("metrics", "tracing"), findings)
    for entry in spec.each("accessLogging"):
        providers = [each.text("name") for each in entry.each("providers")]
        mode = entry.inner("match").choice("mode", "CLIENT_AND_SERVER", ("CLIENT_AND_SERVER", "CLIENT", "SERVER"))
        off, compare = entry.flag("disabled", False), _filter(thing, entry, findings)
        entry.finish()
        for name in providers:
            if name != _STDOUT:
                why = f"{name!r} is a provider that this gateway does not have; {_STDOUT!r} is"
                findings.warn(thing, f"{entry.path}.providers", why)
        if mode != "SERVER" and (_STDOUT in providers or not providers):  # a gateway is a client to its backends
            said = Wanted(not off, *compare)
    spec.finish()
    return said


def _filter(thing: Object, entry: Fields, findings: Findings) -> tuple[str, int]:
    """The one kind of expression that is read; with another everything is logged, rather too much than too little."""
    given = entry.inner("filter")
    expression = given.text("expression")
    given.finish()
    if not expression:
        return "", 0
    if found := _CODE.fullmatch(expression):
        return found[1], int(found[2])
    findings.warn(thing, f"{entry.path}.filter.expression", "is not supported (response.code >= 400 is); all is logged")
    return "", 0
