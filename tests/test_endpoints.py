"""Every listening port of a sidecar and of control, asked by somebody who has no business there: what he gets, and that
it holds no secret. One table, so that a port or a page that comes later has to be put into it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.conftest import Mesh
from tests.control import Ca, unary
from tests.kubernetes import RIGHT, ApiServer
from tests.webhook import Caller
from tproxy.wire import WATCH_DIRECTORY
from tproxy.wire.ca_pb2 import IstioCertificateRequest
from tproxy.world.pods import Pod
from tproxy.world.ports import free_port
from tproxy.world.process import wait_for

PRIVATE_PAGES = ("/config_dump", "/identity", "/directory", "/plaintext")
OPEN = {15020: ("/metrics", "/healthz/ready"), 15021: ("/healthz/ready",)}


def curl(place: Pod, url: str) -> tuple[str, str]:
    """Status (000: none) and body."""
    out = place.run(["curl", "-s", "-m", "3", "-w", "\n%{http_code}", url]).stdout
    body, _, status = out.rpartition("\n")
    return status, body


@pytest.mark.parametrize("port", [15000, 15001, 15006])
def test_the_sidecars_own_ports_answer_nobody_outside_with_a_sidecar_or_without(port: int, mesh: Mesh) -> None:
    for caller in (mesh.outsider, mesh.client):
        for page in ("/config_dump", "/plaintext"):
            assert curl(caller, f"http://{mesh.web.v4}:{port}{page}") == ("000", "")


@pytest.mark.parametrize("port", list(OPEN))
def test_the_open_ports_have_these_pages_and_none_that_tells_of_others(port: int, mesh: Mesh) -> None:
    for page in OPEN[port]:
        assert curl(mesh.outsider, f"http://{mesh.web.v4}:{port}{page}")[0] == "200"
    for page in PRIVATE_PAGES:
        assert curl(mesh.outsider, f"http://{mesh.web.v4}:{port}{page}")[0] == "404"


def test_no_page_holds_a_key(mesh: Mesh) -> None:
    for port, pages in ((15000, (*PRIVATE_PAGES, *OPEN[15020])), *OPEN.items()):
        for page in pages:
            said = mesh.server.page(port, page)
            assert said and "PRIVATE" not in said, page
    key = Path(mesh.server.base["identity"]["key"]).read_text().splitlines()[1]
    assert key not in mesh.server.log.read_text()


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ca]:
    """A control with all that it may have."""
    folder = tmp_path_factory.mktemp("ca")
    api = ApiServer(folder)
    made = Ca(
        folder,
        kubernetes=api.config,
        directory={"port": free_port()},
        webhook={"port": free_port()},
        injection={"image": "registry.example/tproxy:1"},
    )
    made.spawn()
    try:
        yield made
    finally:
        made.kill()
        api.stop()


def test_the_ca_gives_nothing_without_a_token(ca: Ca) -> None:
    _up(ca, ca.port)
    with ca.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        unary(channel)(IstioCertificateRequest(csr="x"), timeout=10)
    assert caught.value.code().name == "UNAUTHENTICATED"


def test_the_directory_tells_nothing_to_who_shows_no_certificate(ca: Ca) -> None:
    port = ca.config["directory"]["port"]
    _up(ca, port)
    credentials = grpc.ssl_channel_credentials((ca.dir / "bundle.pem").read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel, pytest.raises(grpc.RpcError) as caught:
        list(channel.unary_stream(WATCH_DIRECTORY)(b"", timeout=10))
    assert caught.value.code().name in ("UNAVAILABLE", "UNAUTHENTICATED")


@pytest.mark.parametrize("kind", ["ca", "directory", "webhook"])
def test_no_port_of_control_speaks_plaintext(kind: str, ca: Ca) -> None:
    port = ca.port if kind == "ca" else ca.config[kind]["port"]
    _up(ca, port)
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")
        found = b""
        with suppress(ConnectionResetError, TimeoutError):
            while part := sock.recv(4096):
                found += part
    assert b"HTTP" not in found and b"tproxy" not in found


def test_the_webhook_tells_strangers_what_stands_in_every_injected_pod_and_no_more(ca: Ca) -> None:
    port = ca.config["webhook"]["port"]
    _up(ca, port)
    with Caller(port, (ca.dir / "bundle.pem").read_text()) as one:
        assert one.ask("GET", "/")[0] == one.ask("GET", "/metrics")[0] == 404
        status, said = one.ask("POST", "/inject", b"{}")
        assert status in (400, 503) and len(said) < 200


def test_health_and_metrics_of_control_hold_neither_key_nor_token(ca: Ca) -> None:
    _up(ca, ca.health)
    for page in ("/healthz/ready", "/metrics"):
        said = ca.page(page)[1]
        assert said and "PRIVATE" not in said and RIGHT not in said
    for page in ("/", "/config_dump", "/state.db", "/../root.key"):
        assert ca.page(page)[0] == 404
    assert RIGHT not in ca.running().log.read_text()


def _up(ca: Ca, port: int) -> None:
    def listens() -> Any:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True

    wait_for(listens, 20, f"port {port} listens", ca.running())
