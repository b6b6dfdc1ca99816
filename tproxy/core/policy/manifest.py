"""A Kubernetes object of Istio's, wherever it comes from: who it is and whom it selects. Its spec others read.

The head of every object must be readable. What an object for other workloads says is none of our business, so that an
HTTP policy of one workload stops no sidecar of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tproxy.core.fields import ConfigError, Fields
from tproxy.core.identity import is_segment

KINDS = ("AuthorizationPolicy", "PeerAuthentication")
GROUP, VERSIONS = "security.istio.io", ("v1", "v1beta1")
DRY_RUN = "istio.io/dry-run"
_GATEWAYS = [("gateway.networking.k8s.io", kind) for kind in ("Gateway", "GatewayClass")]
_UNKNOWN_AGE = datetime.min.replace(tzinfo=UTC)  # as Istio has it: no time is the oldest


@dataclass(frozen=True, slots=True)
class Workload:
    """Facts about a pod that objects select by; the root namespace is where objects for the whole mesh live."""

    namespace: str = ""  # empty: of our own SVID
    labels: Mapping[str, str] = field(default_factory=dict)
    root: str = "istio-system"
    labels_file: str = ""  # where the kubelet writes them, as they are now


@dataclass(frozen=True, slots=True)
class Manifest:
    """An object whose head has been read."""

    kind: str
    namespace: str
    name: str
    created: datetime
    selector: Mapping[str, str]  # empty: every workload
    dry_run: bool
    where: str = field(compare=False)  # file and object
    spec: Mapping[str, Any] = field(repr=False)
    gateways: bool = False  # it aims at gateways and waypoints by name, and at nothing else

    @property
    def title(self) -> str:
        """As people name it."""
        return f"{self.kind} {self.namespace}/{self.name}"

    def fields(self) -> Fields:
        """The spec, to be read once from its beginning; its selector has been."""
        spec = Fields(self.spec, self.where, "spec")
        spec.known.add("selector")
        return spec

    def applies(self, workload: Workload) -> bool:
        """Whether it is about this workload, which its namespace and its selector say."""
        return not self.aside(workload)

    def aside(self, workload: Workload) -> str:
        """Why it is not about this workload, or nothing."""
        if self.namespace not in (workload.namespace, workload.root):
            return f"is for namespace {self.namespace}"
        if self.gateways:
            return "aims at gateways (targetRefs)"
        missing = self.selector.items() - workload.labels.items()
        return f"selects {', '.join(f'{key}={value}' for key, value in sorted(missing))}" if missing else ""


def manifests(data: Any, where: str) -> Iterator[Manifest]:
    """The objects of one YAML document; a List holds many. ConfigError for anything that is not ours to read."""
    if data is None:
        return  # an empty document, as before the first ---
    top = Fields(data, where)
    if top.raw("kind") == "List":
        top.known.update(("apiVersion", "metadata"))
        for index, item in enumerate(top.each("items")):
            yield from manifests(item.data, f"{where} items[{index}]")
        top.finish()
        return
    yield _manifest(top)


def distinct(found: Iterable[Manifest]) -> tuple[Manifest, ...]:
    """All of them, oldest first; ConfigError for one that stands twice, since one of the two would be ignored."""
    seen: dict[str, Manifest] = {}
    for manifest in found:
        if manifest.title in seen:
            raise ConfigError(manifest.where, "metadata.name", f"stands in {seen[manifest.title].where}, too")
        seen[manifest.title] = manifest
    return tuple(sorted(seen.values(), key=lambda each: (each.created, each.name, each.namespace)))


def _manifest(top: Fields) -> Manifest:
    kind = top.choice("kind", "", KINDS)
    top.choice("apiVersion", "", [f"{GROUP}/{version}" for version in VERSIONS])
    meta = top.inner("metadata")
    namespace, name = (_name(meta, key) for key in ("namespace", "name"))
    created = meta.parsed("creationTimestamp", _time, _UNKNOWN_AGE)
    dry_run = _dry_run(meta.inner("annotations"), kind)
    top.known.add("status")
    spec = Fields(top.raw("spec", {}), f"{top.where} ({kind} {namespace}/{name})", "spec")
    top.finish()
    gateways = spec.raw("selector") is None and _for_gateways(spec)
    return Manifest(kind, namespace, name, created, _selector(spec), dry_run, spec.where, spec.data, gateways)


def _for_gateways(spec: Fields) -> bool:
    """Whether ``targetRefs`` names gateways only: Istio's sidecars, too, take such an object for somebody else's."""
    one, many = spec.raw("targetRef"), spec.raw("targetRefs")
    aims = many if one is None else [one] if many is None else None
    return (
        isinstance(aims, list)
        and bool(aims)
        and all(isinstance(aim, Mapping) and (aim.get("group"), aim.get("kind")) in _GATEWAYS for aim in aims)
    )


def _name(meta: Fields, key: str) -> str:
    value = meta.text(key)
    if not is_segment(value):
        raise meta.error(key, "is missing: which object is this?" if not value else "is no name in Kubernetes", value)
    return value


def _time(value: Any) -> datetime:
    """YAML may have read it already."""
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(found, datetime):
        raise ValueError("expected a time, such as 2026-01-02T03:04:05Z")
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _dry_run(annotations: Fields, kind: str) -> bool:
    value = annotations.raw(DRY_RUN, "false")
    if value not in ("true", "false"):
        raise annotations.error(DRY_RUN, "expected the text 'true' or 'false'", value)
    if value == "true" and kind != "AuthorizationPolicy":
        raise annotations.error(DRY_RUN, f"a {kind} cannot be tried without being in force", value)
    return bool(value == "true")


def _selector(spec: Fields) -> dict[str, str]:
    selector = spec.inner("selector")
    labels = parse_labels(selector.inner("matchLabels"))
    selector.finish()
    return labels


def parse_workload(fields: Fields) -> Workload:
    """The section ``workload`` of the configuration."""
    base = Workload()
    found = Workload(
        namespace=fields.text("namespace", base.namespace),
        labels=parse_labels(fields.inner("labels")),
        root=fields.text("rootNamespace", base.root),
        labels_file=fields.text("labelsFile"),
    )
    if found.labels and found.labels_file:
        raise fields.error("labelsFile", "stands beside labels: where do they come from?", found.labels_file)
    for key, value in (("namespace", found.namespace), ("rootNamespace", found.root)):
        if value and not is_segment(value):
            raise fields.error(key, "is no name in Kubernetes", value)
    fields.finish()
    return found


def parse_policies(top: Fields) -> tuple[tuple[str, ...], bool]:
    """The section ``policies``: files, or folders of them; as a mapping (files, control) also whether control tells."""
    if isinstance(top.raw("policies"), Mapping):
        section = top.inner("policies")
        found = _paths(section, "files"), section.flag("control", False)
        section.finish()
        return found
    return _paths(top, "policies"), False


def _paths(fields: Fields, key: str) -> tuple[str, ...]:
    def path(value: Any) -> str:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise ValueError("expected a file or a folder")
        return value

    return fields.items(key, path)


def parse_labels(fields: Fields) -> dict[str, str]:
    """Labels, which are texts without wildcards."""
    labels = {}
    for key in fields.data:
        if not isinstance(key, str) or "*" in key:
            raise fields.error(key, "expected a label's name, without wildcards")
        labels[key] = fields.text(key)
        if "*" in labels[key]:
            raise fields.error(key, "expected a label's value, without wildcards", labels[key])
    return labels
