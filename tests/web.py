"""HTTP through a gateway: Services with pods on loopback, Istio's and Gateway API's routes for them, and curl."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests import gateway as gw

Object = dict[str, Any]
GATEWAY_API = "gateway.networking.k8s.io/v1"


def service(name: str, ports: Mapping[str, int], *pods: int, namespace: str = "shop", **more: Any) -> list[Object]:
    """A Service whose named ports lead to the pods' ports on loopback, and its EndpointSlices, one a pod."""
    meta = {"name": name, "namespace": namespace}
    named = [{"name": port, "port": number, **more} for port, number in ports.items()]
    made: list[Object] = [{"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": named}}]
    labels = {"kubernetes.io/service-name": name}
    for index, pod in enumerate(pods):
        made.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": f"{name}-{index}", "namespace": namespace, "labels": labels},
                "addressType": "IPv4",
                "ports": [{"name": port, "port": pod} for port in ports],
                "endpoints": [{"addresses": ["127.0.0.1"]}],
            }
        )
    return made


def to(host: str, port: int = 80, **more: Any) -> Object:
    """One destination of an http rule."""
    return {"destination": {"host": host, "port": {"number": port}}, **more}


def rule(*routes: Object, **more: Any) -> Object:
    """One http rule of a VirtualService."""
    return {"route": list(routes), **more}


def api_gateway(*listeners: Object, name: str = "gw") -> list[Object]:
    """A GatewayClass of ours and a Gateway with these listeners."""
    controller = {"controllerName": "tproxy.dev/gateway"}
    meta = {"name": name, "namespace": "shop"}
    return [
        {"apiVersion": GATEWAY_API, "kind": "GatewayClass", "metadata": {"name": "tproxy"}, "spec": controller},
        {
            "apiVersion": GATEWAY_API,
            "kind": "Gateway",
            "metadata": meta,
            "spec": {"gatewayClassName": "tproxy", "listeners": list(listeners)},
        },
    ]


def http_route(name: str, hostnames: Sequence[str], *rules: Object) -> Object:
    """An HTTPRoute of that Gateway."""
    spec = {"parentRefs": [{"name": "gw"}], "hostnames": list(hostnames), "rules": list(rules)}
    return {
        "apiVersion": GATEWAY_API,
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec,
    }


@dataclass
class Response:
    """What curl saw."""

    status: int
    proto: str
    headers: list[tuple[str, str]]
    body: str
    reason: str

    def header(self, name: str) -> str:
        """The first of the name, or nothing."""
        return next((value for key, value in self.headers if key == name), "")

    @property
    def names(self) -> set[str]:
        """Of all headers."""
        return {name for name, _ in self.headers}

    @property
    def said(self) -> Object:
        """What the echo backend said."""
        made = json.loads(self.body)
        assert isinstance(made, dict)
        return made


def curl(url: str, *options: str, host: str = "") -> Response:
    """The last response; curl's own failures are failures of the test."""
    argv = ["curl", "-sS", "-i", "-m", "10", *(["-H", f"Host: {host}"] if host else []), *options, url]
    done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return parsed(done.stdout.decode("latin-1"))


def parsed(text: str) -> Response:
    """Headers and body; interim responses before it are passed over."""
    head, _, body = text.partition("\r\n\r\n")
    while re.match(r"HTTP/[\d.]+ 1\d\d", head) and not re.match(r"HTTP/[\d.]+ 101", head):
        head, _, body = body.partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    proto, status, reason = [*first.split(" ", 2), ""][:3]
    pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return Response(int(status), proto, pairs, body, reason)


def url(port: int, path: str = "/") -> str:
    """On loopback."""
    return f"http://127.0.0.1:{port}{path}"


__all__ = ["Response", "api_gateway", "curl", "gw", "http_route", "parsed", "rule", "service", "to", "url"]
