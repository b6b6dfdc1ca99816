"""The policies of the cluster as sidecars are told them: objects by namespace, and the sets that follow.

A set is a namespace's objects and the root namespace's, always told whole: they are few, half of one could be more open
than the whole, and its version, a hash of what it says, is the same in every replica and after each restart.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from tproxy.core.fields import ConfigError
from tproxy.core.policy.effective import check
from tproxy.core.policy.istio_policy import Names
from tproxy.core.policy.manifest import DRY_RUN, manifests
from tproxy.wire.policies_pb2 import PolicySet

log = logging.getLogger("tproxy")
PIECE = 1024 * 1024  # bytes of objects in one message, unless one alone has more; etcd's limit is 1.5 MiB
Told = tuple[str, tuple[bytes, ...]]  # version, messages
Key = tuple[str, str]  # kind, namespace/name


class Shelf:
    """``root`` is the namespace whose objects are for everyone."""

    def __init__(self, root: str, trust_domain: str) -> None:
        self._root, self._names = root, Names(trust_domain)
        self._spaces: dict[str, dict[Key, bytes]] = {}
        self._sets: dict[str, Told] = {}
        self.invalid: dict[Key, str] = {}  # objects that no sidecar can use, and why
        self.changed = False  # since somebody set it to False

    def __len__(self) -> int:
        return sum(map(len, self._spaces.values()))

    def put(self, kind: str, name: str, document: dict[str, Any] | None) -> None:
        """An object as it is now; None: gone."""
        key, namespace = (kind, name), name.partition("/")[0]
        inside = self._spaces.get(namespace, {})
        new = None if document is None else _trimmed(kind, document)
        if inside.get(key) == new:
            return
        if new is None:
            del inside[key]
        else:
            inside[key] = new
        self._spaces[namespace] = inside
        if not inside:
            del self._spaces[namespace]
        self._judge(key, new)
        self.changed = True
        if namespace == self._root:
            self._sets.clear()
        else:
            self._sets.pop(namespace, None)

    def told(self, namespace: str) -> Told:
        """Version and messages for the sidecars of a namespace; made once for all of them."""
        if namespace not in self._sets:
            self._sets[namespace] = self._made(namespace)
        return self._sets[namespace]

    def _made(self, namespace: str) -> Told:
        found = {**self._spaces.get(self._root, {}), **self._spaces.get(namespace, {})}
        objects = [found[key] for key in sorted(found)]
        digest = sha256(f"{self._root} {namespace}".encode())
        for one in objects:
            digest.update(b"%d " % len(one) + one)
        version = digest.hexdigest()[:32]
        pieces = list(_pieces(objects))
        messages = (
            PolicySet(version=version, namespace=namespace, root=self._root, objects=piece, more=number < len(pieces))
            for number, piece in enumerate(pieces, 1)
        )
        return version, tuple(one.SerializeToString() for one in messages)

    def _judge(self, key: Key, new: bytes | None) -> None:
        """Say at once what sidecars would say later, each for itself."""
        self.invalid.pop(key, None)
        if new is None:
            return
        try:
            for manifest in manifests(json.loads(new), "cluster"):
                if not manifest.gateways:
                    check(manifest, self._names)
        except ConfigError as error:
            self.invalid[key] = str(error)
            log.warning("no sidecar that it applies to can use this policy, each keeps its last good set: %s", error)


def _trimmed(kind: str, document: dict[str, Any]) -> bytes:
    """What says something about traffic: neither the status nor who manages which field."""
    about = document.get("metadata")
    about = about if isinstance(about, dict) else {}
    notes = about.get("annotations")
    dry_run = {DRY_RUN: notes[DRY_RUN]} if isinstance(notes, dict) and DRY_RUN in notes else {}
    meta = {key: about.get(key) for key in ("namespace", "name", "creationTimestamp")}
    kept = {
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": {**meta, **({"annotations": dry_run} if dry_run else {})},
        "spec": document.get("spec"),
    }
    return json.dumps(kept, separators=(",", ":"), sort_keys=True).encode()


def _pieces(objects: list[bytes]) -> Iterator[list[bytes]]:
    """At least one, even if there is nothing."""
    piece, size = list[bytes](), 0
    for one in objects:
        if piece and size + len(one) > PIECE:
            yield piece
            piece, size = [], 0
        piece.append(one)
        size += len(one)
    yield piece
