"""Which of Istio's AuthorizationPolicies say who may use which ports.

As in Istio: those of the root namespace and of the gateway pod's, by the pod's labels; and for a Gateway of the Gateway
API those of its own namespace that name it (targetRefs), or that select the labels which its pods would have. A port
that several Gateways share obeys the policies of all. One that cannot be read shuts the ports that it is for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from tproxy.core.fields import ConfigError, Fields
from tproxy.core.policy.authorization import Action, Authorization, AuthorizationRule
from tproxy.core.policy.istio_policy import GATEWAY, Names, authorization
from tproxy.core.policy.manifest import Manifest, Workload, manifests
from tproxy.core.policy.policy import Policy
from tproxy.core.routes import Bind
from tproxy.gateway.findings import Findings
from tproxy.gateway.gatewayapi.grants import GROUP
from tproxy.gateway.objects import Object

_KIND, _GROUP = "AuthorizationPolicy", "security.istio.io"
ROOT = Workload().root
_LABELS = ("gateway.networking.k8s.io/gateway-name", "istio.io/gateway-name")  # of a Gateway's pods, now and before
_CLASS_LABEL = "gateway.networking.k8s.io/gateway-class-name"


@dataclass(frozen=True, slots=True)
class Pod:
    """The gateway's: where it runs, and its labels; none: they are not known, and every selector may mean it."""

    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)

    def is_selected(self, manifest: Manifest) -> bool:
        """By its namespace and its labels."""
        known = self.labels or dict(manifest.selector)
        return manifest.applies(Workload(self.namespace, known))


@dataclass(frozen=True, slots=True)
class _Head:
    """Whom one object is for; ``manifest`` is None where that cannot be read, so that it may be for anybody."""

    thing: Object
    manifest: Manifest | None
    aims: tuple[tuple[str, str], ...] | None  # kinds and names of the Gateway API's; None: it selects

    def is_for(self, pod: Pod, gateways: Iterable[Object]) -> bool:
        """Whether it is for a port of this pod that belongs to these Gateways."""
        manifest = self.manifest
        if manifest is None:
            return True
        if self.aims is None:
            return pod.is_selected(manifest) or any(manifest.applies(_workload(each, pod)) for each in gateways)
        return any(_aimed(self.aims, manifest.namespace, each) for each in gateways)


def guards(
    things: Iterable[Object],
    binds: Collection[Bind],
    pod: Pod,
    owners: Mapping[Bind, Iterable[Object]],
    names: Names,
    findings: Findings,
) -> dict[Bind, Policy]:
    """The policy of each port that has one; ``owners``: the Gateways of the Gateway API that it belongs to."""
    made: dict[Bind, list[Authorization]] = {}
    for thing in things:
        if (thing.group, thing.kind) != (_GROUP, _KIND):
            continue
        head = _head(thing, findings)
        _warn(head, pod, findings)
        mine = [bind for bind in binds if head.is_for(pod, owners.get(bind, ()))]
        if mine and (read := _read(head, names, findings)) is not None:
            for bind in mine:
                made.setdefault(bind, []).append(read)
    return {bind: Policy((), tuple(found)) for bind, found in made.items()}


def _head(thing: Object, findings: Findings) -> _Head:
    meta = thing.body.get("metadata")
    placed = {**(meta if isinstance(meta, Mapping) else {}), "namespace": thing.namespace}
    try:
        manifest = next(manifests({**thing.body, "metadata": placed}, thing.where))
        return _Head(thing, manifest, _aims(manifest.fields()))
    except ConfigError as error:
        findings.error(error)
        return _Head(thing, None, None)


def _warn(head: _Head, pod: Pod, findings: Findings) -> None:
    """One that was written for a gateway like ours and stood beside it."""
    manifest = head.manifest
    if manifest is None or head.aims is not None or not manifest.selector or not pod.labels:
        return
    elsewhere = manifest.namespace not in (pod.namespace, ROOT)
    if elsewhere and manifest.selector.items() <= pod.labels.items():
        why = (
            f"is not the namespace of this gateway's pod, {pod.namespace}: it guards nothing here, though it selects it"
        )
        findings.warn(head.thing, "metadata.namespace", why)


def _aims(spec: Fields) -> tuple[tuple[str, str], ...] | None:
    one = spec.raw("targetRef")
    found = [spec.inner("targetRef")] if one is not None else spec.each("targetRefs")
    aims = [(each.text("group"), each.text("kind"), each.text("name")) for each in found]
    return tuple((kind, name) for group, kind, name in aims if group == GROUP) if aims else None


def _aimed(aims: Iterable[tuple[str, str]], namespace: str, gateway: Object) -> bool:
    """A Gateway is named from its own namespace, a class from the root's."""
    for kind, name in aims:
        if kind == "Gateway" and (namespace, name) == gateway.key:
            return True
        if kind == "GatewayClass" and namespace == ROOT and name == _class(gateway):
            return True
    return False


def _class(gateway: Object) -> str:
    return gateway.fields("spec").text("gatewayClassName")


def _workload(gateway: Object, pod: Pod) -> Workload:
    """As its pods would be, had Istio made them."""
    named = dict.fromkeys(_LABELS, gateway.name)
    return Workload(gateway.namespace, {**pod.labels, **named, _CLASS_LABEL: _class(gateway)})


def _read(head: _Head, names: Names, findings: Findings) -> Authorization | None:
    """What it decides; None for one that decides nothing."""
    shut = Authorization(f"{head.thing.namespace}/{head.thing.name} (unreadable)", Action.DENY, (AuthorizationRule(),))
    if head.manifest is None:
        return shut
    try:
        made = authorization(head.manifest, names, GATEWAY)
    except ConfigError as error:
        findings.error(error)
        return shut
    if head.manifest.dry_run:
        findings.warn(head.thing, "metadata.annotations", "a gateway does not say what a dry run would have done")
    elif made.action is Action.AUDIT:
        findings.warn(head.thing, "spec.action", "a gateway writes no audit; it denies nobody")
    else:
        return made
    return None
