"""The part of a Kubernetes API server that the directory lives from: lists in pages, watches with bookmarks, 410.

No cluster runs where these tests do. What is imitated is the protocol (chunked JSON lines, resource versions, what
happens when a watch is too old or is cut), by an HTTPS server of its own that a real ``tproxy control`` talks to.
"""

from __future__ import annotations

import json
import threading
import time
from copy import deepcopy
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.kubernetes import ApiServer

PODS, SERVICES = "/api/v1/pods", "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
ISTIO, DEFINITIONS = "security.istio.io", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
PLURALS = {"AuthorizationPolicy": "authorizationpolicies", "PeerAuthentication": "peerauthentications"}
Document = dict[str, Any]


class Cluster(ApiServer):
    """Objects by collection and namespace/name, and every change that there was."""

    def __init__(self, folder: Path) -> None:
        self.objects: dict[str, dict[str, Document]] = {PODS: {}, SERVICES: {}, SLICES: {}}
        self.asked: list[str] = []  # path and query of each list and watch
        self.down = False  # 503 for everything
        self.bookmarks = 2.0  # seconds between two
        self.notes: dict[str, dict[str, str]] = {}  # annotations of definitions
        self.custom: dict[str, list[str]] = {}  # name of a CustomResourceDefinition -> the versions that are served
        self._events: list[tuple[int, str, str, Document]] = []
        self._version, self._oldest, self._cuts = 1000, 1000, 0
        self._news = threading.Condition()
        super().__init__(folder)

    def put(self, path: str, document: Document) -> None:
        """Create or replace."""
        with self._news:
            about = document["metadata"]
            name = f"{about['namespace']}/{about['name']}"
            kind = "MODIFIED" if name in self.objects[path] else "ADDED"
            self.objects[path][name] = document
            self._tell(path, kind, document)

    def delete(self, path: str, name: str) -> None:
        """Gone."""
        with self._news:
            self._tell(path, "DELETED", self.objects[path].pop(name))

    def _tell(self, path: str, kind: str, document: Document) -> None:
        self._version += 1
        document["metadata"]["resourceVersion"] = str(self._version)
        self._events.append((self._version, path, kind, deepcopy(document)))
        self._news.notify_all()

    def define(self, *versions: str) -> None:
        """Istio's definitions, in these versions; none: they and their objects go away."""
        with self._news:
            self.custom = {f"{plural}.{ISTIO}": list(versions) for plural in PLURALS.values()} if versions else {}
            for path in [path for path in self.objects if ISTIO in path]:
                for name in list(self.objects[path]):
                    self._tell(path, "DELETED", self.objects[path].pop(name))
                del self.objects[path]
            for path in (f"/apis/{ISTIO}/{one}/{plural}" for one in versions for plural in PLURALS.values()):
                self.objects[path] = {}

    def apply(self, document: Document, version: str = "v1") -> None:
        """Create or replace an object of Istio's."""
        self.put(f"/apis/{ISTIO}/{version}/{PLURALS[document['kind']]}", document)

    def remove(self, kind: str, name: str, version: str = "v1") -> None:
        """Such an object is gone."""
        self.delete(f"/apis/{ISTIO}/{version}/{PLURALS[kind]}", name)

    def forget(self) -> None:
        """Remember no change until now: whoever watches from before is told 410."""
        with self._news:
            self._version += 1
            self._events.clear()
            self._oldest = self._version

    def cut(self) -> None:
        """End every watch in the middle of a chunk."""
        with self._news:
            self._cuts += 1
            self._news.notify_all()

    def collection(self, handler: BaseHTTPRequestHandler) -> bool:
        """Answer a list or a watch; False for any other request."""
        url = urlsplit(handler.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if url.path.startswith(DEFINITIONS):
            self._definition(handler, url.path.rpartition("/")[2])
            return True
        if url.path not in self.objects or "fieldSelector" in query:
            return False
        self.asked.append(handler.path)
        if self.down:
            _whole(handler, 503, {"kind": "Status", "code": 503})
        elif "watch" in query:
            self._watch(handler, url.path, int(query["resourceVersion"]))
        else:
            self._list(handler, url.path, query)
        return True

    def _definition(self, handler: BaseHTTPRequestHandler, name: str) -> None:
        if self.down:
            _whole(handler, 503, {"kind": "Status", "code": 503})
        elif name not in self.custom:
            _whole(handler, 404, {"kind": "Status", "code": 404})
        else:
            served = [{"name": one, "served": True, "storage": one == "v1"} for one in self.custom[name]]
            about = {"name": name, "annotations": self.notes.get(name, {})}
            _whole(handler, 200, {"kind": "CustomResourceDefinition", "metadata": about, "spec": {"versions": served}})

    def _list(self, handler: BaseHTTPRequestHandler, path: str, query: dict[str, str]) -> None:
        with self._news:
            begin, size = int(query.get("continue", 0)), int(query.get("limit", 500))
            names = sorted(self.objects[path])
            more = str(begin + size) if begin + size < len(names) else ""
            about = {"resourceVersion": str(self._version), "continue": more}
            items = [self.objects[path][name] for name in names[begin : begin + size]]
            document = json.dumps({"metadata": about, "items": items})
        _whole(handler, 200, document)

    def _watch(self, handler: BaseHTTPRequestHandler, path: str, version: int) -> None:
        handler.send_response(200)
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        if version < self._oldest:
            _chunk(handler, "ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})
            handler.wfile.write(b"0\r\n\r\n")
            return
        begun, marked = self._cuts, time.monotonic()
        while True:
            with self._news:
                if self._version == version and self._cuts == begun:
                    self._news.wait(0.5)
                events = [event for event in self._events if event[0] > version]
                if self._cuts != begun or self._oldest > version:
                    break
                version = self._version
            for _, where, kind, document in events:
                if where == path:
                    _chunk(handler, kind, document)
            if time.monotonic() - marked > self.bookmarks:
                marked = time.monotonic()
                _chunk(handler, "BOOKMARK", {"kind": "Bookmark", "metadata": {"resourceVersion": str(version)}})
        handler.wfile.write(b'ff\r\n{"type": "MODI')
        handler.close_connection = True


def _chunk(handler: BaseHTTPRequestHandler, kind: str, document: Document) -> None:
    """A line in two chunks: lines and chunks have nothing to do with each other."""
    line = json.dumps({"type": kind, "object": document}).encode() + b"\n"
    for part in (line[:7], line[7:]):
        handler.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
    handler.wfile.flush()


def _whole(handler: BaseHTTPRequestHandler, status: int, document: Document | str) -> None:
    data = (document if isinstance(document, str) else json.dumps(document)).encode()
    handler.send_response(status)
    handler.send_header("content-length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def pod(
    name: str,
    account: str,
    *addresses: str,
    meshed: bool = True,
    created: int = 0,
    phase: str = "Running",
    **about: Any,
) -> Document:
    """A pod in the namespace demo, as our injector leaves it; ``created`` in seconds after some moment."""
    annotations = {"tproxy.dev/status": "injected"} if meshed else {}
    moment = f"2026-01-01T{created // 3600:02}:{created // 60 % 60:02}:{created % 60:02}Z"
    said = {"name": name, "namespace": "demo", "uid": f"uid-of-{name}", "creationTimestamp": moment, **about}
    status = {
        "phase": phase,
        "podIP": addresses[0] if addresses else None,
        "podIPs": [{"ip": one} for one in addresses],
    }
    return {
        "metadata": {"annotations": annotations, **said},
        "spec": {"serviceAccountName": account},
        "status": status,
    }


def service(name: str, *addresses: str) -> Document:
    """A service; without an address a headless one."""
    many = list(addresses) or ["None"]
    return {"metadata": {"name": name, "namespace": "demo"}, "spec": {"clusterIP": many[0], "clusterIPs": many}}


def endpoints(service_name: str, *ready: str, waiting: tuple[str, ...] = (), number: int = 1) -> Document:
    """A slice of a service."""
    told = [{"addresses": [one], "conditions": {"ready": True}} for one in ready]
    told += [{"addresses": [one], "conditions": {"ready": False}} for one in waiting]
    labels = {"kubernetes.io/service-name": service_name}
    about = {"name": f"{service_name}-{number}", "namespace": "demo", "labels": labels}
    return {"metadata": about, "addressType": "IPv4", "endpoints": told}
