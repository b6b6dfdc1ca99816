"""What Istio calls listeners, route configurations and clusters; istioctl's columns are made of these names."""

from __future__ import annotations

import re

from tproxy.core.routes import Backend, Bind
from tproxy.gateway.registry import host_of

TYPE = "type.googleapis.com/envoy"
_TITLE = re.compile(r"(\w+) ([^/ ]+)/([^ ]+)(?: (.*))?")  # of an object, and of what stands in it
_REF = re.compile(r"([^/|]+)/([^:|]+):([0-9]+|None)")  # of a Service, in Gateway API


def listener_name(bind: Bind) -> str:
    """``0.0.0.0_8080``: where it is bound."""
    return f"{bind[0] or '0.0.0.0'}_{bind[1]}"


def https_routes(port: int, server: str) -> str:
    """``https.443.https.coolstore-gateway.shop``: the port is the server's, whatever it is bound to."""
    if not (found := _TITLE.fullmatch(server)):
        return f"https.{port}.{server}"
    _, namespace, name, section = found.groups()
    return f"https.{port}.{section or 'https'}.{name}.{namespace}"


def cluster(backend: Backend) -> str:
    """``outbound|80||webapp.shop.svc.cluster.local``, also for what Gateway API names otherwise."""
    if found := _REF.fullmatch(backend.name):
        namespace, name, port = found.groups()
        return f"outbound|{port}||{host_of(name, namespace)}"
    return backend.name


def config_path(rule: str) -> str:
    """Where a rule stands, as Istio puts it into routes' metadata, or nothing."""
    if not (found := _TITLE.fullmatch(rule)):
        return ""
    kind, namespace, name, _ = found.groups()
    if kind == "VirtualService":
        return f"/apis/networking.istio.io/v1/namespaces/{namespace}/virtual-service/{name}"
    return f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/{kind.lower()}/{name}"
