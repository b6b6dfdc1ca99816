"""An imaginary cluster: what is applied, with the generations and times of an API server, and what comes of it."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

from tests.conformance import certificates
from tests.conformance.certificates import INFRA, Document
from tproxy.gateway.compile import Loaded, compile_table
from tproxy.gateway.gatewayapi.conditions import CONTROLLER
from tproxy.gateway.objects import Object, parse
from tproxy.gateway.site import Site

SUITE = Path(os.environ.get("TPROXY_GATEWAY_API") or Path(__file__).parents[3] / "shared" / "gateway-api")
AWAY = "the Gateway API's manifests are not here (TPROXY_GATEWAY_API)"
CLASS = "conformance"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
UNUSABLE, USABLE = "192.0.2.1", "127.9.9.9"  # the suite is told such addresses by who runs it
SITE = Site(usable=lambda address: address.startswith("127."))
_POD_NUMBERS: dict[tuple[str, str, int], int] = {}  # the same in every world, as their servers go on
_UNREADY = "gateway-api/skip-this-for-readiness"
_ROUTES = ("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute")


def manifest(path: str) -> list[Document]:
    """The documents of one file, with its placeholders filled in."""
    return copy.deepcopy(_manifest(path))


@cache
def _manifest(path: str) -> list[Document]:
    text = (SUITE / path).read_text(encoding="utf-8")
    for key, value in (
        ("{GATEWAY_CLASS_NAME}", CLASS),
        ("{GATEWAY_CONTROLLER_NAME}", CONTROLLER),
        ("PLACEHOLDER_UNUSABLE_ADDRS", UNUSABLE),
        ("PLACEHOLDER_USABLE_ADDRS", USABLE),
    ):
        text = text.replace(key, value)
    return [document for document in yaml.load_all(text, Loader=_Loader) if document]


@dataclass
class World:
    """Objects by kind, namespace and name; where pods and Gateways are is made up as they come."""

    objects: dict[tuple[str, str, str], Document] = field(default_factory=dict)
    pods: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=dict)  # of a Deployment: name, address
    _addresses: dict[tuple[str, str], str] = field(default_factory=dict)
    _clock: int = 0

    @classmethod
    def with_base(cls) -> World:
        """What all tests rely on."""
        made = cls()
        made.apply(*_cluster(), *manifest("base/manifests.yaml"), *certificates.objects())
        return made

    def apply(self, *documents: Document) -> None:
        """Create or replace, as ``kubectl apply``: a changed spec is a new generation."""
        for document in copy.deepcopy(documents):
            about = document["metadata"]
            if document["kind"] not in ("Namespace", "GatewayClass"):
                about.setdefault("namespace", INFRA)
            key = document["kind"], about.get("namespace", ""), about["name"]
            before = self.objects.get(key)
            self._clock += 1
            if before is None:
                about["creationTimestamp"] = (
                    f"2026-01-01T{self._clock // 3600:02}:{self._clock // 60 % 60:02}:{self._clock % 60:02}Z"
                )
                about["generation"] = 1
            else:
                old = before["metadata"]
                about["creationTimestamp"] = old["creationTimestamp"]
                about["generation"] = old["generation"] + (before.get("spec") != document.get("spec"))
            self.objects[key] = document
            if document["kind"] == "Deployment":
                self._deploy(document)

    def change(self, kind: str, name: str, edit: Callable[[Document], object]) -> None:
        """Change one object in place; ``edit`` gets a copy of it."""
        document = copy.deepcopy(self.objects[_key(kind, name)])
        edit(document)
        self.apply(document)

    def delete(self, kind: str, name: str) -> None:
        """Gone."""
        del self.objects[_key(kind, name)]

    def address(self, gateway: str) -> str:
        """Where a Gateway that names no address is served; as a cloud hands them out."""
        key = _key("Gateway", gateway)[1:]
        return self._addresses.setdefault(key, f"127.20.{len(self._addresses) // 200}.{len(self._addresses) % 200 + 1}")

    def _deploy(self, document: Document) -> None:
        about, spec = document["metadata"], document["spec"]
        found = self.pods.setdefault((about["namespace"], about["name"]), [])
        for number in range(len(found), spec.get("replicas", 1)):
            key = about["namespace"], about["name"], number
            index = _POD_NUMBERS.setdefault(key, len(_POD_NUMBERS))
            found.append((f"{about['name']}-6f7c9-{number}", f"127.10.{index // 200}.{index % 200 + 1}"))

    def documents(self) -> Iterator[Document]:
        """Everything as it stands in the cluster, with what controllers add: addresses and EndpointSlices."""
        for (kind, namespace, name), document in self.objects.items():
            if kind == "Gateway" and not document["spec"].get("addresses"):
                made = copy.deepcopy(document)
                made["spec"]["addresses"] = [{"type": "IPAddress", "value": self.address(f"{namespace}/{name}")}]
                yield made
            elif kind == "EndpointSlice" and "manual" in name:
                yield self._manual(document)
            elif kind not in ("Deployment",):
                yield document
            if kind == "Service" and (selector := document["spec"].get("selector")):
                yield self._slice(document, selector)

    def _slice(self, service: Document, selector: Document) -> Document:
        about = service["metadata"]
        ready = [
            pod
            for (namespace, name), pods in self.pods.items()
            if namespace == about["namespace"] and selector.items() <= self._labels(namespace, name).items()
            for pod in pods
        ]
        ports = [{"name": p.get("name", ""), "port": p.get("targetPort", p["port"])} for p in service["spec"]["ports"]]
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{about['name']}-x",
                "namespace": about["namespace"],
                "labels": {"kubernetes.io/service-name": about["name"]},
            },
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": [{"addresses": [address], "targetRef": {"name": name}} for name, address in ready],
        }

    def _labels(self, namespace: str, name: str) -> Document:
        document = self.objects.get(("Deployment", namespace, name))
        return document["spec"]["template"]["metadata"]["labels"] if document else {}

    def _manual(self, document: Document) -> Document:
        """Its test writes the addresses of infra-backend-v1's pods into it; pods here have no IPv6."""
        made = copy.deepcopy(document)
        pods = self.pods[INFRA, "infra-backend-v1"] if made["addressType"] == "IPv4" else []
        made["endpoints"] = [{"addresses": [address]} for _, address in pods]
        return made

    def text(self) -> str:
        """All of it as YAML (which JSON is), for a gateway's directory."""
        return "\n---\n".join(json.dumps(document, indent=1) for document in self.documents())

    def compiled(self) -> Loaded:
        """What the gateway makes of it."""
        found = list(parse(self.text(), "cluster.yaml"))
        objects = [each for each in found if isinstance(each, Object)]
        return compile_table(objects, [each for each in found if not isinstance(each, Object)], {}, SITE)

    def routes(self) -> Iterator[tuple[str, str, str]]:
        """Kind, namespace and name of each route."""
        yield from (key for key in self.objects if key[0] in _ROUTES)

    def to_be_ready(self) -> Iterator[str]:
        """Gateways that the suite waits for before it begins."""
        for (kind, namespace, name), document in self.objects.items():
            if kind == "Gateway" and _UNREADY not in document["metadata"].get("annotations", {}):
                yield f"{namespace}/{name}"


def _key(kind: str, name: str) -> tuple[str, str, str]:
    namespace, _, bare = name.rpartition("/")
    return kind, "" if kind == "GatewayClass" else namespace or INFRA, bare


def _cluster() -> Iterator[Document]:
    yield {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {"name": CLASS},
        "spec": {"controllerName": CONTROLLER},
    }
