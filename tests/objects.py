"""Objects of a cluster as the Kubernetes API server keeps them: lists by selector, JSON Patch, server-side apply, RBAC.

The rights are those that the manifests give, by name, and nothing more.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, parse_qs

import jsonpatch

HOOKS = "mutatingwebhookconfigurations"
HOOK = "tproxy-injector"
ROOTS = "tproxy-ca-roots"
RIGHTS = {
    *(("get", HOOKS, HOOK), ("patch", HOOKS, HOOK), ("list", "namespaces", "")),
    *((verb, "configmaps", ROOTS) for verb in ("list", "create", "patch")),
}
Key = tuple[str, str, str]  # resource, namespace, name


class Cluster:
    """``objects`` by resource, namespace and name; ``meddle`` is called before each PATCH, as others write, too."""

    def __init__(self) -> None:
        self.objects: dict[Key, dict[str, Any]] = {}
        self.rights = set(RIGHTS)
        self.version = ("1", "29+")
        self.page = 2  # objects of one answer
        self.meddle: Callable[[], None] = lambda: None
        self.wrote: list[Key] = []
        self._count = 0
        self._lock = threading.RLock()
        self.put(HOOKS, "", HOOK, webhooks=[{"name": f"{one}.tproxy.dev", "clientConfig": {}} for one in "ab"])

    def put(self, resource: str, namespace: str, name: str, **document: Any) -> None:
        """Create or replace, as somebody else does it."""
        with self._lock:
            meta = {"name": name, **({"namespace": namespace} if namespace else {}), **document.pop("metadata", {})}
            self.objects[resource, namespace, name] = self._stamped({"metadata": meta, **document})

    def space(self, name: str, *, inject: bool = True, phase: str = "Active") -> None:
        """A namespace."""
        labels = {"tproxy.dev/inject": "true"} if inject else {}
        self.put("namespaces", "", name, metadata={"labels": labels}, status={"phase": phase})

    def bundles(self) -> list[str]:
        """What the webhooks' caBundles say."""
        webhooks = self.objects[HOOKS, "", HOOK]["webhooks"]
        return [base64.b64decode(one["clientConfig"].get("caBundle", "")).decode() for one in webhooks]

    def roots(self) -> dict[str, str]:
        """What the ConfigMaps say, by namespace."""
        found = {
            space: one for (kind, space, name), one in self.objects.items() if (kind, name) == ("configmaps", ROOTS)
        }
        return {space: one["data"]["root-cert.pem"] for space, one in found.items()}

    def _stamped(self, document: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        document["metadata"]["resourceVersion"] = str(self._count)
        return document

    def answer(self, method: str, url: SplitResult, body: bytes, kind: str) -> tuple[int, Any]:
        """Status and document."""
        if (method, url.path) == ("GET", "/version"):
            return 200, {"major": self.version[0], "minor": self.version[1]}
        parts = url.path.strip("/").split("/")[2 if url.path.startswith("/api/") else 3 :]
        space = parts[1] if parts[0] == "namespaces" and len(parts) > 2 else ""
        resource, *name = parts[2:] if space else parts
        query = {key: value[0] for key, value in parse_qs(url.query).items()}
        with self._lock:
            if method == "GET" and not name:
                return self._list(resource, query)
            key = resource, space, name[0] if name else ""
            return self._get(key) if method == "GET" else self._patch(key, json.loads(body), kind, query)

    def _refused(self, verb: str, resource: str, name: str) -> tuple[int, Any] | None:
        if (verb, resource, name) in self.rights:
            return None
        message = f'{resource} "{name}" is forbidden: User "tproxy-control" cannot {verb} resource "{resource}"'
        return 403, {"kind": "Status", "message": message}

    def _list(self, resource: str, query: dict[str, str]) -> tuple[int, Any]:
        only = query.get("fieldSelector", "").removeprefix("metadata.name=")
        if refused := self._refused("list", resource, only):
            return refused
        key, _, value = query.get("labelSelector", "").partition("=")
        found = [
            one
            for (kind, _, name), one in sorted(self.objects.items())
            if kind == resource and only in ("", name) and (not key or one["metadata"]["labels"].get(key) == value)
        ]
        first = int(query.get("continue", "0"))
        last = first + min(self.page, int(query["limit"]))
        return 200, {"items": found[first:last], "metadata": {"continue": str(last) if last < len(found) else ""}}

    def _get(self, key: Key) -> tuple[int, Any]:
        refused = self._refused("get", key[0], key[2])
        return refused or ((200, self.objects[key]) if key in self.objects else (404, {"message": "not found"}))

    def _patch(self, key: Key, patch: Any, kind: str, query: dict[str, str]) -> tuple[int, Any]:
        resource, space, name = key
        if refused := self._refused("patch", resource, name):
            return refused
        self.meddle()
        status = 200
        if kind == "application/json-patch+json":
            try:
                document = jsonpatch.apply_patch(self.objects[key], patch)
            except jsonpatch.JsonPatchException as error:
                return 422, {"message": str(error)}
        else:
            assert (kind, query.get("force"), bool(query.get("fieldManager"))) == (
                "application/apply-patch+yaml",
                "true",
                True,
            )
            around = self.objects.get(("namespaces", "", space))
            if around is None:
                return 404, {"message": f'namespaces "{space}" not found'}
            document, status = patch, 200 if key in self.objects else 201
            if status == 201 and (refused := self._refused("create", resource, name)):
                return refused
            if status == 201 and around["status"]["phase"] == "Terminating":
                said = f"unable to create new content in namespace {space} because it is being terminated"
                return 403, {"message": said}
        self.objects[key] = self._stamped(document)
        self.wrote.append(key)
        return status, document
