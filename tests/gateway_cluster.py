"""A Kubernetes API server for gateways: collections that are followed, definitions, and the status subresource."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.cluster import Cluster, Document
from tproxy.gateway.kinds import CORE, CUSTOM, Kind

BUNDLE = "gateway.networking.k8s.io/bundle-version"
_STATUS = re.compile(r"(/apis?/.*)/([^/]+)/status")


class GatewayCluster(Cluster):
    """Every kind that a gateway follows; those in ``absent`` have no definition. ``wrote`` has all status writes."""

    def __init__(self, folder: Path, *absent: str) -> None:
        self.wrote: list[tuple[str, Document]] = []
        self.conflicts = 0
        self.unwritable: set[str] = set()  # namespace/name of objects whose statuses are refused
        super().__init__(folder)
        self.custom = {kind.definition: [kind.versions[0]] for kind in CUSTOM if kind.definition not in absent}
        self.notes = {name: {BUNDLE: "v1.6.1"} for name in self.custom}
        for kind in (*CORE, *CUSTOM):
            self.objects.setdefault(kind.path(kind.versions[0]), {})

    def put(self, path: str, document: Document) -> None:
        """Create or replace, as the API server: the status stays, a changed spec is a new generation."""
        about = document["metadata"]
        name = "/".join(filter(None, (about.get("namespace", ""), about["name"])))
        with self._news:
            before = self.objects[path].get(name)
            old = before["metadata"] if before else {}
            about["generation"] = old.get("generation", 0) + (not before or before.get("spec") != document.get("spec"))
            about.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
            if before and "status" in before:
                document.setdefault("status", before["status"])
            self.objects[path][name] = document
            self._tell(path, "MODIFIED" if before else "ADDED", document)

    def apply(self, document: Document, version: str = "") -> None:
        """Where it belongs."""
        self.put(path_of(document), deepcopy(document))

    def status(self, kind: str, name: str) -> Document:
        """What stands in the status of an object (namespace/name), or nothing."""
        with self._news:
            found = self.objects[next(path for path in self.objects if path.endswith(f"/{plural(kind)}"))].get(name, {})
            return deepcopy(found.get("status", {}))

    def condition(self, kind: str, name: str, wanted: str) -> str:
        """``True:Accepted`` of the object, or of a route's first parent."""
        status = self.status(kind, name)
        part = (status.get("parents") or [status])[0]
        found = [each for each in part.get("conditions", []) if each["type"] == wanted]
        return f"{found[0]['status']}:{found[0]['reason']}" if found else ""

    def answer(self, method: str, target: str, body: bytes, kind: str = "") -> tuple[int, Any]:
        """Statuses; the rest as ever."""
        path = target.split("?", maxsplit=1)[0]
        if method == "PATCH" and (found := _STATUS.fullmatch(path)):
            assert kind == "application/merge-patch+json"
            return self._patched(found[1], found[2], json.loads(body))
        return super().answer(method, target, body, kind)

    def _patched(self, collection: str, name: str, patch: Document) -> tuple[int, Any]:
        path = re.sub(r"/namespaces/([^/]+)", "", collection)
        space = re.search(r"/namespaces/([^/]+)", collection)
        key = f"{space[1]}/{name}" if space else name
        with self._news:
            found = self.objects[path].get(key)
            if found is None:
                return 404, {"message": "not found"}
            if key in self.unwritable:
                return 422, {"message": "status.conditions: Too many"}
            if patch["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
                self.conflicts += 1
                return 409, {"message": "the object has been modified"}
            document = {**found, "status": {**found.get("status", {}), **patch["status"]}}
            self.objects[path][key] = document
            self.wrote.append((f"{path.rpartition('/')[2]} {key}", patch["status"]))
            self._tell(path, "MODIFIED", document)
            return 200, document

    def collection(self, handler: BaseHTTPRequestHandler) -> bool:
        """Lists and watches; field selectors are taken note of and select nothing here."""
        if "fieldSelector" in handler.path:
            self.asked.append(handler.path)
            handler.path = re.sub(r"[?&]fieldSelector=[^&]*", "", handler.path)
        return super().collection(handler)


def kind_of(document: Document) -> Kind:
    """The kind of an object."""
    group = document["apiVersion"].rpartition("/")[0]
    return next(each for each in (*CORE, *CUSTOM) if (each.name, each.group) == (document["kind"], group))


def path_of(document: Document) -> str:
    """The collection that it belongs to."""
    return (kind := kind_of(document)).path(kind.versions[0])


def plural(kind: str) -> str:
    """As it stands in a path; Gateway API's goes first."""
    return next(each.plural for each in (*CUSTOM, *CORE) if each.name == kind)
