"""From Kubernetes objects to the directory: pods, services and endpoint slices in, entries and their changes out.

Objects come from the API server and are read with suspicion all the same: what has another shape than expected counts
as absent. Sources: the API reference of core/v1 Pod and Service, discovery.k8s.io/v1 EndpointSlice.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from tproxy.core.address import Address, parse_address
from tproxy.core.directory import Delta, Entry, Kind, is_path

STATUS = "tproxy.dev/status"  # annotation: our injector was here
ISTIO = "security.istio.io/tlsMode"  # label: "istio" if Istio's was
_SERVICE = "kubernetes.io/service-name"  # label of endpoint slices


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that has addresses of its own and has not ended."""

    name: str  # namespace/name
    uid: str
    created: str  # RFC 3339 in UTC: sorts as text
    leaving: bool  # it is being deleted, and serves until its containers end
    addresses: tuple[Address, ...]
    path: str  # of its SPIFFE id
    meshed: bool

    @property
    def rank(self) -> tuple[bool, str, str]:
        """Of two pods that claim one address the higher has it: one that stays, then the newer one."""
        return not self.leaving, self.created, self.uid


@dataclass(frozen=True, slots=True)
class Service:
    """A service and its virtual addresses; headless ones have none."""

    name: str  # namespace/name
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """Some of a service's endpoints; ``ready`` ones are those that kube-proxy may choose."""

    service: str  # namespace/name
    ready: tuple[Address, ...]
    others: tuple[Address, ...]


def name_of(document: Any) -> str:
    """namespace/name, empty without."""
    about = _dict(document, "metadata")
    namespace, name = about.get("namespace"), about.get("name")
    return f"{namespace}/{name}" if isinstance(namespace, str) and isinstance(name, str) else ""


def pod(document: Any) -> Pod | None:
    """None if it has no address in the mesh or out of it: on the host's network, ended, or not yet started."""
    about, spec, status = (_dict(document, part) for part in ("metadata", "spec", "status"))
    if spec.get("hostNetwork") is True or status.get("phase") in ("Succeeded", "Failed"):
        return None
    listed = [_dict({"": one}, "").get("ip") for one in _list(status, "podIPs")]
    addresses = _addresses(listed or [status.get("podIP")])
    path = f"ns/{about.get('namespace')}/sa/{spec.get('serviceAccountName') or 'default'}"
    if not addresses or not is_path(path):
        return None
    return Pod(
        name=name_of(document),
        uid=str(about.get("uid")),
        created=str(about.get("creationTimestamp")),
        leaving=about.get("deletionTimestamp") is not None,
        addresses=addresses,
        path=path,
        meshed=_is_meshed(about),
    )


def service(document: Any) -> Service | None:
    """None if it is headless or only a name. External addresses are not looked at: anyone may claim any of them."""
    spec = _dict(document, "spec")
    addresses = _addresses(_list(spec, "clusterIPs") or [spec.get("clusterIP")])
    return Service(name_of(document), addresses) if addresses else None


def endpoint_slice(document: Any) -> Slice | None:
    """None if it belongs to no service."""
    owner = _dict(_dict(document, "metadata"), "labels").get(_SERVICE)
    if not isinstance(owner, str):
        return None
    ready, others = list[Address](), list[Address]()
    for endpoint in _list(document, "endpoints"):
        conditions = _dict(endpoint, "conditions")
        serves = conditions.get("ready") is not False or conditions.get("serving") is True
        (ready if serves else others).extend(_addresses(_list(endpoint, "addresses")))
    return Slice(f"{name_of(document).partition('/')[0]}/{owner}", tuple(ready), tuple(others))


class Book:
    """All of them, by keys, and the entries that follow; ``flush`` says what has changed since it was last asked."""

    def __init__(self) -> None:
        self.entries: dict[Address, Entry] = {}
        self._pods: dict[str, Pod] = {}
        self._services: dict[str, Service] = {}
        self._slices: dict[str, Slice] = {}
        self._claims = _Index()  # address -> keys of pods
        self._vips = _Index()  # address -> keys of services
        self._parts = _Index()  # service -> keys of slices
        self._behind = _Index()  # endpoint's address -> services
        self._dirty = set[Address]()

    def pod(self, key: str, new: Pod | None) -> None:
        """A pod as it is now; None: gone."""
        old = _put(self._pods, key, new)
        for address in self._claims.move(key, old.addresses if old else (), new.addresses if new else ()):
            self._dirty.add(address)
            for owner, _ in self._behind.at(address):
                self._touch(owner)

    def service(self, key: str, new: Service | None) -> None:
        """A service as it is now; None: gone."""
        old = _put(self._services, key, new)
        self._dirty |= self._vips.move(key, old.addresses if old else (), new.addresses if new else ())

    def slice(self, key: str, new: Slice | None) -> None:
        """A slice as it is now; None: gone."""
        old = _put(self._slices, key, new)
        self._parts.move(key, (old.service,) if old else (), (new.service,) if new else ())
        for one, step in ((old, self._behind.remove), (new, self._behind.add)):
            if one is not None:
                for address in (*one.ready, *one.others):
                    step(address, (one.service, key))
                self._touch(one.service)

    def flush(self) -> Delta:
        """From the entries of the last time to those of now."""
        changed, removed = dict[Address, Entry](), set[Address]()
        for address in self._dirty:
            entry = self._entry(address)
            if entry is None:
                if self.entries.pop(address, None):
                    removed.add(address)
            elif self.entries.get(address) != entry:
                self.entries[address] = changed[address] = entry
        self._dirty.clear()
        return Delta(changed, frozenset(removed))

    def _touch(self, owner: str) -> None:
        if found := self._services.get(owner):
            self._dirty.update(found.addresses)

    def _entry(self, address: Address) -> Entry | None:
        if found := self._holder(address):
            return Entry(Kind.POD, found.name, (found.path,) if found.meshed else ())
        return next((self._virtual(key) for key in sorted(self._vips.at(address))), None)

    def _holder(self, address: Address) -> Pod | None:
        """Expecting a wrong pod's id refuses the right one; it never lets a wrong one in."""
        return max((self._pods[key] for key in self._claims.at(address)), key=lambda one: one.rank, default=None)

    def _virtual(self, key: str) -> Entry | None:
        parts = [self._slices[part] for part in self._parts.at(key)]
        chosen = {one for part in parts for one in part.ready} or {one for part in parts for one in part.others}
        if not chosen:
            return None
        holders = [self._holder(one) for one in chosen]
        paths = {one.path for one in holders if one is not None and one.meshed}
        outside = any(one is None or not one.meshed for one in holders)
        return Entry(Kind.SERVICE, key, tuple(sorted(paths)), bool(paths) and outside)


class _Index:
    """Values to the keys that name them."""

    def __init__(self) -> None:
        self._keys: defaultdict[Any, set[Any]] = defaultdict(set)

    def at(self, value: Hashable) -> Iterable[Any]:
        return self._keys.get(value, ())

    def add(self, value: Hashable, key: Hashable) -> None:
        self._keys[value].add(key)

    def remove(self, value: Hashable, key: Hashable) -> None:
        if value in self._keys:
            self._keys[value].discard(key)
            if not self._keys[value]:
                del self._keys[value]

    def move(self, key: str, old: Iterable[Any], new: Iterable[Any]) -> set[Any]:
        """From some values to others; all of both."""
        for value in old:
            self.remove(value, key)
        for value in new:
            self.add(value, key)
        return {*old, *new}


def _put(table: dict[str, Any], key: str, new: Any) -> Any:
    old = table.pop(key, None)
    if new is not None:
        table[key] = new
    return old


def _is_meshed(about: dict[str, Any]) -> bool:
    """Our annotation may also say why a pod was left alone."""
    if _dict(about, "labels").get(ISTIO) == "istio":
        return True
    said = _dict(about, "annotations").get(STATUS)
    if not isinstance(said, str) or not said:
        return False
    try:
        document = json.loads(said)
    except (ValueError, RecursionError):
        return said.startswith("injected")
    return isinstance(document, dict) and document.get("injected", True) is True


def _addresses(values: Iterable[Any]) -> tuple[Address, ...]:
    found = list[Address]()
    for value in values:
        try:
            found.append(parse_address(value))
        except (ValueError, TypeError, AttributeError):
            continue
    return tuple(dict.fromkeys(found))


def _dict(value: Any, key: str) -> dict[str, Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _list(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []
