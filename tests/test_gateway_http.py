"""HTTP/1.1 through a real gateway, with curl and a backend that says what reached it. Numbers: reference, section 1."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests import gateway as gw
from tests.echo_backend import EchoBackend
from tests.web import api_gateway, curl, http_route, rule, service, to, url
from tproxy.world.process import wait_for

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
HOST = "webapp.istioinaction.io"


@dataclass
class World:
    """One gateway of both dialects, and pods."""

    gateway: gw.Gateway
    istio: int
    api: int
    pod: EchoBackend
    refusing: int


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("http") / "config"
    istio, api, refusing = gw.free_port(), gw.free_port(), gw.free_port()
    with ExitStack() as stack:
        pod = stack.enter_context(EchoBackend("backend-0", "webapp", "shop"))
        hosts = {
            HOST: rule(to("webapp")),
            "refused.example.com": rule(to("refusing")),
            "nowhere.example.com": rule(to("nowhere")),
        }
        listener = {"name": "http", "port": api, "protocol": "HTTP"}
        gw.write(
            folder / "all.yaml",
            gw.gateway_yaml(gw.server(istio, "HTTP", "*")),
            *(gw.virtual(f"v{index}", [host], http=[one]) for index, (host, one) in enumerate(hosts.items())),
            *service("webapp", {"http": 80}, pod.port),
            *service("refusing", {"http": 80}, refusing),
            *service("empty", {"http": 80}),
            *service("backend-sni", {"http": 3000}, pod.port),
            *api_gateway(listener),
            http_route("www", ["www.example.com"], {"backendRefs": [{"name": "backend-sni", "port": 3000}]}),
            http_route("empty", ["empty.example.com"], {"backendRefs": [{"name": "empty", "port": 80}]}),
            http_route("nowhere", ["nowhere.example.com"], {"backendRefs": [{"name": "missing", "port": 3000}]}),
        )
        gateway = stack.enter_context(gw.running(folder))
        yield World(gateway, istio, api, pod, refusing)


def test_001_01_the_host_header_chooses_and_another_host_is_404_with_an_empty_body(world: World) -> None:
    found = curl(url(world.istio, "/api/catalog"), host=HOST)
    assert (found.status, found.said["path"], found.said["host"]) == (200, "/api/catalog", HOST)
    other = curl(url(world.istio, "/api/catalog"), host="other.example.com")
    assert (other.status, other.body, other.header("server")) == (404, "", "istio-envoy")
    assert "date" in other.names


def test_a_backend_that_refuses_connections_is_503_as_envoy_says_it(world: World) -> None:
    found = curl(url(world.istio), host="refused.example.com")
    assert (found.status, found.header("content-type")) == (503, "text/plain")
    said = "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure"
    assert found.body == said


def test_a_service_without_endpoints_is_503_no_healthy_upstream(world: World) -> None:
    found = curl(url(world.api), host="empty.example.com")
    assert (found.status, found.body) == (503, "no healthy upstream")


def test_a_service_that_does_not_exist_is_503_in_istio_and_500_in_gateway_api(world: World) -> None:
    assert curl(url(world.istio), host="nowhere.example.com").status == 503
    assert curl(url(world.api), host="nowhere.example.com").status == 500


def test_every_connection_leaves_one_record_with_its_bytes(world: World) -> None:
    curl(url(world.istio, "/bytes?n=5000"), host=HOST)

    def large() -> bool:
        return any(record["received"] > 5000 for record in world.gateway.records(direction="gateway", outcome="closed"))

    wait_for(large, 10, "its record")
