"""Objects that stand in a configuration and are not read, though their author may count on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tproxy.core.fields import ConfigError, nearest
from tproxy.gateway.findings import Findings
from tproxy.gateway.kinds import CUSTOM
from tproxy.gateway.objects import Object
from tproxy.gateway.policies import ROOT

_GROUPS = {kind.group for kind in CUSTOM}  # whose odd kinds are told by who reads them
_KINDS = {kind.name for kind in CUSTOM}
_SECURITY = ("security.istio.io", "extensions.istio.io")


def strangers(things: Iterable[Object], namespace: str, labels: Mapping[str, str], findings: Findings) -> None:
    """Warnings; ``namespace`` and ``labels`` are the gateway pod's."""
    for thing in things:
        if thing.group in _SECURITY and thing.kind not in _KINDS and _for_us(thing, namespace, labels):
            why = "is not read by this gateway: nothing of it is enforced here"
            findings.warn(thing, "kind", why)
        elif (thing.group, thing.kind) == ("networking.k8s.io", "Ingress"):
            findings.warn(thing, "kind", "is not read by this gateway; write it as a Gateway with routes")
        elif thing.kind in _KINDS and thing.group not in _GROUPS:
            own = {kind.group for kind in CUSTOM if kind.name == thing.kind}
            why = f"is not read from the group {thing.group or 'core'}, but from {' and '.join(sorted(own))}"
            asked = thing.group or thing.version  # without a slash all of it is the version
            like = [group for group in own if asked in group] or own
            findings.warn(thing, "apiVersion", f"{why}{nearest(asked, like, 0.5)}")


def _for_us(thing: Object, namespace: str, labels: Mapping[str, str]) -> bool:
    """Whether Istio would apply it to this gateway, as far as is known."""
    try:
        spec = thing.fields("spec")
        if spec.raw("targetRefs") or spec.raw("targetRef"):
            return True
        wanted = spec.inner("selector").inner("matchLabels").data
    except ConfigError:
        return True
    return thing.namespace in (namespace, ROOT) and (not labels or wanted.items() <= labels.items())
