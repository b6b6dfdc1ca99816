"""HTTP/1.1 through a real gateway, with curl and a backend that says what reached it. Numbers: reference, section 1."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import gateway as gw
from tests.echo_backend import EchoBackend
from tests.web import api_gateway, curl, http_route, rule, service, to, url
from tproxy.world.process import wait_for

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
HOST = "webapp.istioinaction.io"
LINE = re.compile(
    r'\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\] "GET /loud\?x=1 HTTP/1\.1" 200 - via_upstream - "-" 0 \d+ \d+ \d+ '
    rf'"127\.0\.0\.1" "curl/8\.9" "{UUID4.pattern}" "{HOST}" "127\.0\.0\.1:\d+" '
    r"outbound\|80\|\|webapp\.shop\.svc\.cluster\.local 127\.0\.0\.1:\d+ 127\.0\.0\.1:\d+ 127\.0\.0\.1:\d+ - \S+"
)


@dataclass
class World:
    """One gateway of both dialects, and pods."""

    gateway: gw.Gateway
    istio: int
    api: int
    pod: EchoBackend
    refusing: int
    metrics: int


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("http") / "config"
    istio, api, refusing, metrics = (gw.free_port() for _ in range(4))
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
        gateway = stack.enter_context(gw.running(folder, "--metrics-port", str(metrics)))
        yield World(gateway, istio, api, pod, refusing, metrics)


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


def test_003_03_the_backend_sees_exactly_these_headers(world: World) -> None:
    found = curl(url(world.api, "/get"), "-A", "curl/8.9", host="www.example.com").said
    assert found["proto"] == "HTTP/1.1"
    headers = found["headers"]
    assert UUID4.fullmatch(headers.pop("X-Request-Id")[0])
    assert headers == {
        "Accept": ["*/*"],
        "User-Agent": ["curl/8.9"],
        "X-Envoy-External-Address": ["127.0.0.1"],
        "X-Forwarded-For": ["127.0.0.1"],
        "X-Forwarded-Proto": ["http"],
    }


def test_003_02_and_04_the_client_sees_the_backends_headers_and_nothing_else(world: World) -> None:
    found = curl(url(world.api, "/get"), host="www.example.com")
    assert (found.proto, found.status, found.reason) == ("HTTP/1.1", 200, "OK")
    assert found.names == {"content-type", "x-content-type-options", "date", "content-length"}
    assert (found.said["path"], found.said["pod"]) == ("/get", "backend-0")


def test_001_istio_adds_the_server_and_the_time_of_the_backend(world: World) -> None:
    found = curl(url(world.istio, "/get"), host=HOST)
    assert found.header("server") == "istio-envoy"
    assert found.header("x-envoy-upstream-service-time").isdecimal()


def test_what_a_client_claims_of_itself_is_replaced_but_forwarded_for_is_appended_to(world: World) -> None:
    claims = ["-H", "X-Forwarded-For: 1.2.3.4", "-H", "X-Forwarded-Proto: https", "-H", "X-Request-Id: mine"]
    headers = curl(url(world.istio), *claims, "-H", "X-Envoy-Internal: true", host=HOST).said["headers"]
    assert headers["X-Forwarded-For"] == ["1.2.3.4,127.0.0.1"]
    assert headers["X-Forwarded-Proto"] == ["http"]
    assert UUID4.fullmatch(headers["X-Request-Id"][0])
    assert "X-Envoy-Internal" not in headers


def test_http_1_0_is_426(world: World) -> None:
    assert curl(url(world.istio), "--http1.0", host=HOST).status == 426


def test_bodies_go_both_ways_with_a_length_and_in_chunks(world: World) -> None:
    data = "0123456789" * 50_000
    for more in ([], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]):
        found = curl(url(world.istio, "/echo"), "--data-binary", data[:100_000], *more, host=HOST)
        assert (found.status, found.body) == (200, data[:100_000])


def test_head_and_204_have_no_body(world: World) -> None:
    head = curl(url(world.istio, "/bytes?n=100"), "-I", host=HOST)
    assert (head.status, head.header("content-length"), head.body) == (200, "100", "")
    assert curl(url(world.istio, "/status/204"), host=HOST).status == 204


def test_a_backend_that_closes_without_an_answer_is_503(world: World) -> None:
    found = curl(url(world.istio, "/close"), "-X", "POST", host=HOST)
    said = "upstream connect error or disconnect/reset before headers. reset reason: connection termination"
    assert (found.status, found.body) == (503, said)


def test_connections_to_a_backend_are_used_again(world: World) -> None:
    curl(url(world.istio), host=HOST)
    before = world.pod.connections
    for _ in range(5):
        assert curl(url(world.istio), host=HOST).status == 200
    assert world.pod.connections <= before + 1


def test_a_websocket_is_joined_end_to_end(world: World) -> None:
    lines = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eHh4eA=="
    with socket.create_connection(("127.0.0.1", world.istio), 10) as sock:
        sock.sendall(f"GET /ws HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n\r\n".encode())
        head = sock.recv(4096)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"sec-websocket-accept: " in head.lower()
        for text in (b"hello", b"x" * 120):
            sock.sendall(bytes((0x81, 0x80 | len(text))) + b"\0\0\0\0" + text)
            assert sock.recv(4096) == bytes((0x81, len(text))) + text


def test_a_slow_reader_holds_the_backend_and_not_our_memory(world: World) -> None:
    def resident() -> int:
        status = Path(f"/proc/{world.gateway.process.popen.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]

    before = resident()
    with socket.create_connection(("127.0.0.1", world.istio), 10) as sock:
        sock.sendall(f"GET /bytes?n=100000000 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        sock.recv(1000)
        time.sleep(0.5)
        assert resident() - before < 20_000
        got = 0
        while data := sock.recv(1 << 20):
            got += len(data)
    assert got > 99_999_000


def test_requests_are_counted_by_port_route_backend_and_status(world: World) -> None:
    curl(url(world.istio), host=HOST)
    page = curl(url(world.metrics, "/metrics")).body
    wanted = f'backend="outbound|80||webapp.shop.svc.cluster.local",code="200",port="{world.istio}"'
    assert any(wanted in line for line in page.splitlines() if line.startswith("tproxy_http_requests_total"))
    assert "tproxy_http_request_seconds_bucket" in page


def test_001_11_an_access_log_is_off_until_telemetry_wants_it_and_then_istios_line(tmp_path: Path) -> None:
    port, folder = gw.free_port(), tmp_path / "config"
    with EchoBackend("backend-0", "webapp", "shop") as pod:
        base = [
            gw.gateway_yaml(gw.server(port, "HTTP", "*")),
            gw.virtual("v", [HOST], http=[rule(to("webapp"))]),
            *service("webapp", {"http": 80}, pod.port),
        ]
        gw.write(folder / "all.yaml", *base)
        with gw.running(folder) as gateway:
            curl(url(port, "/quiet"), host=HOST)
            telemetry = {
                "apiVersion": "telemetry.istio.io/v1alpha1",
                "kind": "Telemetry",
                "metadata": {"name": "ingress", "namespace": "istio-system"},
                "spec": {
                    "selector": {"matchLabels": {"app": "istio-ingressgateway"}},
                    "accessLogging": [{"providers": [{"name": "envoy"}], "disabled": False}],
                },
            }
            gw.write(folder / "all.yaml", *base, telemetry)
            gateway.said("reloaded: ports")
            curl(url(port, "/loud?x=1"), "-A", "curl/8.9", host=HOST)
            gateway.said('"GET /loud?x=1 HTTP/1.1" 200 - via_upstream - "-" 0 ')
            log = gateway.process.log.read_text()
            assert "/quiet" not in log
            line = next(line for line in log.splitlines() if "/loud" in line)
            assert LINE.fullmatch(line), line
            with socket.create_connection(("127.0.0.1", port), 10) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
                assert sock.recv(100).startswith(b"HTTP/1.1 400 ")
            gateway.said('"- - -" 400 DPE http1.codec_error')
