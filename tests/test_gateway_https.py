"""HTTP within TLS that the gateway ends, with curl. Numbers: reference, section 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import gateway as gw
from tests.echo_backend import EchoBackend
from tests.web import Response, curl, rule, service, to

HOSTS = {"jenkins.dev.local.me": 8081, "argocd.dev.local.me": 443}


@dataclass
class World:
    port: int
    pod: EchoBackend

    def get(self, host: str, path: str, *options: str) -> Response:
        resolve = ("--resolve", f"{host}:{self.port}:127.0.0.1", "-k")
        return curl(f"https://{host}:{self.port}{path}", *resolve, *options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, port = tmp_path_factory.mktemp("https"), gw.free_port()
    with EchoBackend("jenkins-0") as pod:
        objects = []
        for host, number in HOSTS.items():
            name = host.partition(".")[0]
            server = gw.server(port, "HTTPS", host, mode="SIMPLE", credentialName=f"{name}-cert")
            one = gw.virtual(name, [host], http=[rule(to(f"{name}.jenkins.svc.cluster.local", number))])
            one["spec"]["gateways"] = [f"istio-system/{name}-gw"]
            one["metadata"]["namespace"] = "jenkins"
            objects += [
                gw.gateway_yaml(server, name=f"{name}-gw"),
                one,
                gw.secret(f"{name}-cert", "istio-system", *gw.self_signed(host)),
            ]
            objects += service(name, {"http": number}, pod.port, namespace="jenkins")
        gw.write(folder / "config" / "all.yaml", *objects)
        with gw.running(folder / "config"):
            yield World(port, pod)


def test_000_10_a_rule_of_another_namespace_reaches_its_service_and_the_host_header_stays(world: World) -> None:
    found = world.get("jenkins.dev.local.me", "/login")
    assert found.said["host"] == f"jenkins.dev.local.me:{world.port}"
    assert found.said["headers"]["X-Forwarded-Proto"] == ["https"]
    assert found.said["proto"] == "HTTP/1.1"


def test_000_11_a_service_on_port_443_is_sent_plaintext_unless_a_rule_says_otherwise(world: World) -> None:
    assert "tls" not in world.get("argocd.dev.local.me", "/").said


def test_both_versions_of_http_are_served_on_one_port(world: World) -> None:
    assert world.get("jenkins.dev.local.me", "/").proto == "HTTP/2"
    assert world.get("jenkins.dev.local.me", "/", "--http1.1").proto == "HTTP/1.1"


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_003_09_head_has_a_length_and_no_body(world: World, version: str) -> None:
    found = world.get("jenkins.dev.local.me", "/bytes?n=472", "-I", version)
    assert (found.status, found.header("content-length"), found.body) == (200, "472", "")


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_large_body_goes_both_ways(world: World, version: str, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"0123456789" * 300_000)
    found = world.get("jenkins.dev.local.me", "/echo", "--data-binary", f"@{body}", version)
    assert found.body.encode() == body.read_bytes()


def test_a_request_for_another_server_of_the_port_is_421(world: World) -> None:
    found = world.get("jenkins.dev.local.me", "/", "-H", "Host: argocd.dev.local.me", "--http1.1")
    assert found.status == 421
