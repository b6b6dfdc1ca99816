"""A kustomization to objects: the features that manifests/ uses, and an error for every other one.

resources (files, folders), patches (strategic merge by name, in files), labels, images. kustomize is in neither
Debian nor PyPI; tests/test_manifests.py compares this with ``kubectl kustomize`` where that is installed.

>>> [one["metadata"]["name"] for one in render(Path("manifests/overlays/spire"))][0]            # doctest: +SKIP
'tproxy-system'
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

Object: TypeAlias = dict[str, Any]
_KEYS = {"apiVersion", "kind", "resources", "patches", "labels", "images"}


def render(folder: Path) -> list[Object]:
    """Every object. ValueError names the file that uses what is not known here."""
    path = folder / "kustomization.yaml"
    (top,) = load(path)
    if unknown := set(top) - _KEYS:
        raise ValueError(f"{path}: {', '.join(sorted(unknown))}: not known to this renderer")
    objects = [one for name in top.get("resources") or [] for one in _resource(folder / name)]
    for patch in top.get("patches") or []:
        if set(patch) != {"path"}:
            raise ValueError(f"{path}: patches: only path is known to this renderer")
        for change in load(folder / patch["path"]):
            target = next((one for one in objects if key(one) == key(change)), None)
            if target is None:
                raise ValueError(f"{folder / patch['path']}: no object {key(change)}")
            objects[objects.index(target)] = _merge(target, change)
    for label in top.get("labels") or []:
        if set(label) != {"pairs"}:
            raise ValueError(f"{path}: labels: only pairs is known to this renderer")
        for one in objects:
            one["metadata"]["labels"] = {**one["metadata"].get("labels", {}), **label["pairs"]}
    for image in top.get("images") or []:
        for container in (found for one in objects for found in containers(one)):
            container["image"] = _renamed(container["image"], image)
    return objects


def load(path: Path) -> list[Object]:
    """The documents of a file."""
    return [one for one in yaml.safe_load_all(path.read_text()) if one is not None]


def key(one: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """What makes an object that object."""
    meta = one["metadata"]
    return one["apiVersion"], one["kind"], meta.get("namespace", ""), meta["name"]


def find(objects: list[Object], kind: str, name: str) -> Object:
    """The one of this kind and name."""
    return next(one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name))


def containers(one: object) -> Iterator[Object]:
    """Every container, wherever it stands."""
    if isinstance(one, dict):
        for name, value in one.items():
            if name in ("containers", "initContainers"):
                yield from value
            else:
                yield from containers(value)


def _resource(path: Path) -> list[Object]:
    return render(path) if path.is_dir() else load(path)


def _renamed(image: str, change: Mapping[str, str]) -> str:
    at = image.rfind(":")
    name, tag = (image[:at], image[at:]) if at > image.rfind("/") else (image, "")
    if name != change["name"]:
        return image
    return change.get("newName", name) + (f":{change['newTag']}" if "newTag" in change else tag)


def _merge(under: Any, over: Any) -> Any:
    """Mappings key by key (null removes), lists of named things by name, everything else is replaced."""
    if isinstance(under, dict) and isinstance(over, dict):
        merged = {**under, **{name: _merge(under.get(name), value) for name, value in over.items()}}
        return {name: value for name, value in merged.items() if value is not None}
    if _named(under) and _named(over):
        by_name: Callable[[list[Object]], dict[str, Object]] = lambda many: {one["name"]: one for one in many}  # noqa: E731
        return list(_merge(by_name(under), by_name(over)).values())
    return over


def _named(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) and "name" in one for one in value)
