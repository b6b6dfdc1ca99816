"""Rows 003 that are about objects and statuses: what users of Calico's ingress gateway apply, patch and delete."""

from __future__ import annotations

import base64
import itertools
import random
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.echo_backend import EchoBackend
from tests.gateway import certificate, curl, free_port, listens
from tests.gateway_cluster import GatewayCluster, kind_of
from tests.test_gateway_api import load, service, thing
from tests.test_gateway_cluster import API, CLASS, following, soon
from tproxy.gateway.gatewayapi.conditions import CONTROLLER

META = {"namespace": "default"}


def gateway(port: int) -> dict[str, Any]:
    spec = {
        "gatewayClassName": "tigera-gateway-class",
        "listeners": [{"name": "http", "protocol": "HTTP", "port": port}],
    }
    return {"apiVersion": API, "kind": "Gateway", "metadata": {"name": "sni-gateway", **META}, "spec": spec}


def route() -> dict[str, Any]:
    rules = [{"backendRefs": [{"group": "", "kind": "Service", "name": "backend-sni", "port": 3000}]}]
    spec = {"parentRefs": [{"name": "sni-gateway"}], "hostnames": ["www.example.com"], "rules": rules}
    return {"apiVersion": API, "kind": "HTTPRoute", "metadata": {"name": "backend", **META}, "spec": spec}


def backend(port: int) -> list[dict[str, Any]]:
    meta = {"name": "backend-sni", **META}
    slice_ = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**meta, "labels": {"kubernetes.io/service-name": "backend-sni"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port}],
        "endpoints": [{"addresses": ["127.0.0.1"]}],
    }
    spec = {"ports": [{"name": "http", "port": 3000}]}
    return [{"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}, slice_]


def secret(folder: Path, name: str) -> dict[str, Any]:
    pair = [base64.b64encode(path.read_bytes()).decode() for path in certificate(folder, "www.example.com")]
    data = dict(zip(("tls.crt", "tls.key"), pair, strict=True))
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, **META}, "data": data}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[GatewayCluster]:
    made = GatewayCluster(tmp_path)
    made.apply({**CLASS, "metadata": {"name": "tigera-gateway-class"}})
    yield made
    made.stop()


def test_003_01_the_gateway_is_programmed_and_its_status_has_an_address(
    cluster: GatewayCluster, tmp_path: Path
) -> None:
    port = free_port()
    with following(cluster, tmp_path, "--address", "192.0.2.10") as gate:
        cluster.apply(gateway(port))
        name = "default/sni-gateway"
        soon(lambda: cluster.condition("Gateway", name, "Accepted") == "True:Accepted", "Accepted", gate)
        soon(lambda: cluster.condition("Gateway", name, "Programmed") == "True:Programmed", "Programmed", gate)
        assert cluster.condition("GatewayClass", "tigera-gateway-class", "Accepted") == "True:Accepted"
        assert cluster.status("Gateway", name)["addresses"][0]["value"] == "192.0.2.10"
        listener = cluster.status("Gateway", name)["listeners"][0]
        assert [each["kind"] for each in listener["supportedKinds"]] == ["HTTPRoute", "GRPCRoute"]


def test_003_05_a_listener_that_is_patched_in_is_served_without_a_restart(
    cluster: GatewayCluster, tmp_path: Path
) -> None:
    plain, tls = free_port(), free_port()
    with EchoBackend("backend-sni-0") as pod, following(cluster, tmp_path) as gate:
        for one in (gateway(plain), route(), *backend(pod.port), secret(tmp_path, "example-cert")):
            cluster.apply(one)
        soon(lambda: listens(plain), "the first listener", gate)
        added = {
            "name": "https",
            "protocol": "HTTPS",
            "port": tls,
            "tls": {"mode": "Terminate", "certificateRefs": [{"kind": "Secret", "group": "", "name": "example-cert"}]},
        }
        patch = [{"op": "add", "path": "/spec/listeners/-", "value": added}]
        cluster.apply(jsonpatch.apply_patch(gateway(plain), patch))
        soon(lambda: listens(tls), "the second listener", gate)
        said = curl("www.example.com", tls)
        assert '"pod": "backend-sni-0"' in said.stdout, said.stderr
        assert gate.process.alive


def test_003_10_objects_are_deleted_in_any_order_and_the_port_is_closed(
    cluster: GatewayCluster, tmp_path: Path
) -> None:
    port, order = free_port(), random.Random(3)
    with following(cluster, tmp_path) as gate:
        for _ in range(3):
            objects = [gateway(port), route(), *backend(9), secret(tmp_path, "example-cert")]
            for one in objects:
                cluster.apply(one)
            soon(lambda: listens(port), "the listener", gate)
            order.shuffle(objects)
            for one in objects:
                kind = kind_of(one)
                cluster.delete(kind.path(kind.versions[0]), f"default/{one['metadata']['name']}")
            soon(lambda: not listens(port), "the port to be closed", gate)


ALL = [
    {**CLASS, "metadata": {"name": "any"}},
    *(one for one in (gateway(80), route(), *backend(9))),
    thing("ReferenceGrant", "g", namespace="default", to=[{"group": "", "kind": "Service"}]),
]


@given(st.permutations(range(len(ALL))))
def test_003_10_no_order_of_deletions_raises(order: list[int]) -> None:
    left = list(order)
    while left:
        left.pop()
        load(*(deepcopy(ALL[index]) for index in left))


VERSIONS = {
    "GatewayClass": ("v1", "v1beta1"),
    "Gateway": ("v1", "v1beta1"),
    "HTTPRoute": ("v1", "v1beta1"),
    "GRPCRoute": ("v1", "v1alpha2"),
    "ReferenceGrant": ("v1", "v1beta1", "v1alpha2"),
    "TCPRoute": ("v1", "v1alpha2"),
    "UDPRoute": ("v1", "v1alpha2"),
    "TLSRoute": ("v1", "v1alpha3", "v1alpha2"),
    "BackendTLSPolicy": ("v1", "v1alpha3"),
    "ListenerSet": ("v1",),
}


@pytest.mark.parametrize(("kind", "version"), [(kind, each) for kind, found in VERSIONS.items() for each in found])
def test_003_11_every_version_of_every_kind_is_read_the_same(kind: str, version: str) -> None:
    listeners = [
        {
            "name": name,
            "protocol": name.upper(),
            "port": port,
            **({"tls": {"mode": "Passthrough"}} if name == "tls" else {}),
        }
        for name, port in (("http", 80), ("tls", 443), ("tcp", 1), ("udp", 2))
    ]
    allowed = {"namespaces": {"from": "All"}}
    rules = [{"backendRefs": [{"name": "far", "namespace": "other", "port": 443}]}]
    routes = [
        thing(each, each.lower(), parentRefs=[{"name": "gw"}], rules=rules, **({"hostnames": ["a.b"]} if more else {}))
        for each, more in (("HTTPRoute", 1), ("GRPCRoute", 1), ("TLSRoute", 1), ("TCPRoute", 0), ("UDPRoute", 0))
    ]
    names = [each["kind"] for each in routes]
    source = [{"group": "gateway.networking.k8s.io", "kind": each, "namespace": "web"} for each in names]
    grant = thing("ReferenceGrant", "g", namespace="other", to=[{"group": "", "kind": "Service"}], **{"from": source})
    policy = thing(
        "BackendTLSPolicy",
        "p",
        namespace="other",
        targetRefs=[{"group": "", "kind": "Service", "name": "far"}],
        validation={"hostname": "a.b", "wellKnownCACertificates": "System"},
    )
    parent = {"parentRef": {"name": "gw"}, "listeners": [{"name": "more", "protocol": "HTTP", "port": 81}]}
    world = [
        thing("GatewayClass", "any", controllerName=CONTROLLER),
        thing("Gateway", "gw", gatewayClassName="any", listeners=listeners, allowedListeners=allowed),
        thing("ListenerSet", "set", **parent),
        *itertools.chain(routes, [grant, policy], service("far", "other")),
    ]
    today = load(*deepcopy(world)).statuses
    for each in world:
        if each["kind"] == kind:
            each["apiVersion"] = f"gateway.networking.k8s.io/{version}"
    loaded = load(*world)
    assert not loaded.errors
    assert loaded.statuses == today
    bad = [
        (title, each["type"])
        for title, status in loaded.statuses.items()
        for part in (status.get("parents") or status.get("ancestors") or [status])
        for each in part["conditions"]
        if each["status"] != "True"
    ]
    assert not bad
    assert len(loaded.statuses) == 9  # all but the grant


def test_003_11_a_kind_of_others_is_a_warning_and_no_error() -> None:
    loaded = load(thing("BackendLBPolicy", "p", "v1alpha2"))
    assert not loaded.errors and any("BackendLBPolicy" in each.text or "kind" in each.text for each in loaded.findings)
