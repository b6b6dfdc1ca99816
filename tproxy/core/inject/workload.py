"""Where pods stand in the kinds that make them; what ``kubectl apply`` takes becomes a list of pod templates.

>>> [place.path for place in places({"apiVersion": "batch/v1", "kind": "CronJob", "spec": {}})]
[('spec', 'jobTemplate', 'spec', 'template')]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_TEMPLATE = ("spec", "template")
KINDS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("", "Pod"): (),
    ("", "PodTemplate"): ("template",),
    ("", "ReplicationController"): _TEMPLATE,
    ("apps", "Deployment"): _TEMPLATE,
    ("apps", "StatefulSet"): _TEMPLATE,
    ("apps", "DaemonSet"): _TEMPLATE,
    ("apps", "ReplicaSet"): _TEMPLATE,
    ("batch", "Job"): _TEMPLATE,
    ("batch", "CronJob"): ("spec", "jobTemplate", *_TEMPLATE),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A pod or a pod's template inside a document: where, and whose."""

    path: tuple[str | int, ...]
    kind: str
    name: str
    namespace: str = ""

    def __str__(self) -> str:
        owner = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {owner}" if owner else self.kind

    def look(self, document: Any) -> Any:
        """What stands there, or None."""
        for part in self.path:
            if isinstance(document, list) and isinstance(part, int):
                document = document[part]
            else:
                document = document.get(part) if isinstance(document, Mapping) else None
        return document


def places(document: object, at: tuple[str | int, ...] = ()) -> Iterator[Place]:
    """Every pod in a document; kinds that make none, and kinds of others with the same name, give none."""
    if not isinstance(document, Mapping):
        return
    version, kind = document.get("apiVersion"), document.get("kind")
    if not isinstance(version, str) or not isinstance(kind, str):
        return
    group = version.rpartition("/")[0]
    if group in ("", "apps", "batch") and kind.endswith("List"):
        items = document.get("items")
        for index, item in enumerate(items if isinstance(items, list) else []):
            typed = _typed(item, version, kind)
            yield from places(typed, (*at, "items", index))
    elif (group, kind) in KINDS:
        meta = document.get("metadata")
        meta = meta if isinstance(meta, Mapping) else {}
        name = meta.get("name") or meta.get("generateName") or ""
        yield Place((*at, *KINDS[group, kind]), kind, str(name), str(meta.get("namespace") or ""))


def _typed(item: object, version: str, kind: str) -> object:
    """Items of a typed list (PodList) may leave out what they are."""
    if isinstance(item, Mapping) and "kind" not in item and kind != "List":
        return {"apiVersion": version, "kind": kind.removesuffix("List"), **item}
    return item
