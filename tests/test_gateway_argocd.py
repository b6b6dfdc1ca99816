"""000-11: ``argocd login``, replayed as its client does it, for there is no argocd here.

It looks whether there is TLS by a handshake alone, asks for the version by gRPC and, where that fails, by gRPC-Web (a
POST, whose trailers are a frame of the body); then it creates a session in the way that worked. Source: argo-cd,
pkg/apiclient/apiclient.go and grpcproxy.go; github.com/improbable-eng/grpc-web for the frames.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests import gateway as gw
from tests.pki import Ca, Cert
from tests.web import rule, service, to

HOST = "argocd.dev.local.me"
VERSION, SESSION = "/version.VersionService/Version", "/session.SessionService/Create"
SAID = {VERSION: b"\x0a\x06v3.1.0", SESSION: b"\x0a\x05token"}  # protobuf: the first field, a string


def answers(request: bytes, call: grpc.ServicerContext) -> bytes:
    """Whatever the credentials."""
    return SAID[SESSION if request else VERSION]


@contextmanager
def argocd_server(cert: Cert | None) -> Iterator[int]:
    """gRPC as argocd-server speaks it; without a certificate as with its ``--insecure``."""
    handler = grpc.unary_unary_rpc_method_handler(answers)
    server = grpc.server(ThreadPoolExecutor(4))
    for path in SAID:
        name, _, method = path[1:].partition("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {method: handler}),))
    if cert is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(cert.key, cert.pem)]))
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait(5)


class Web(BaseHTTPRequestHandler):
    """What HTTP/1.1 gets of argocd-server: gRPC-Web, and no gRPC."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])) if "content-length" in self.headers else b""
        web = self.headers["content-type"] == "application/grpc-web+proto"
        found = SAID[SESSION if len(body) > 5 else VERSION]
        told = framed(found) + framed(b"grpc-status: 0\r\n", 0x80) if web else b""
        self.send_response(200 if web else 415)
        self.send_header("content-type", "application/grpc-web+proto" if web else "text/plain")
        self.send_header("content-length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def framed(data: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(data)) + data


def login(port: int, ca: Ca, name: str, password: bytes) -> tuple[str, bytes]:
    """How it was logged in, and the token."""
    context = ssl.create_default_context(cadata=ca.pem.decode())
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname=HOST):
        pass  # the client's TestTLS
    options = (("grpc.ssl_target_name_override", HOST), ("grpc.default_authority", f"{HOST}:{port}"))
    with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(ca.pem), options) as channel:
        try:
            assert channel.unary_unary(VERSION)(b"", timeout=10) == SAID[VERSION]
            return "grpc", channel.unary_unary(SESSION)(password, timeout=10)
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE), error  # no hanging
    asked(port, context, VERSION, b"")
    return "grpc-web", asked(port, context, SESSION, password)


def asked(port: int, context: ssl.SSLContext, path: str, message: bytes) -> bytes:
    """By gRPC-Web."""
    body = framed(message)
    head = f"POST {path} HTTP/1.1\r\nhost: {HOST}:{port}\r\ncontent-type: application/grpc-web+proto\r\n"
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname=HOST) as sock:
        sock.sendall(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        with sock.makefile("rb") as reader:
            answer = reader.read()
    said, _, data = answer.partition(b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 "), answer
    size = int.from_bytes(data[1:5])
    assert data[5 + size :] == framed(b"grpc-status: 0\r\n", 0x80)
    return data[5 : 5 + size]


def policy(**traffic: Any) -> dict[str, Any]:
    meta = {"name": "argocd", "namespace": "argocd"}
    spec = {"host": "argocd-server.argocd.svc.cluster.local", "trafficPolicy": traffic}
    return {"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": meta, "spec": spec}


UPGRADE = {"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE"}}}
TLS = {"tls": {"mode": "SIMPLE", "credentialName": "pods", "sni": "argocd-server"}}


@pytest.mark.parametrize(
    ("backend", "name", "more", "rules", "way"),
    [
        ("insecure", "grpc", {}, {}, "grpc"),
        ("insecure", "https", {"appProtocol": "kubernetes.io/h2c"}, {}, "grpc"),
        ("insecure", "https", {}, UPGRADE, "grpc"),
        ("tls", "https", {}, {**UPGRADE, **TLS}, "grpc"),
        ("web", "https", {}, {}, "grpc-web"),
    ],
)
def test_000_11_argocd_login_works_through_the_port_that_browsers_use(
    tmp_path: Path, backend: str, name: str, more: dict[str, Any], rules: dict[str, Any], way: str
) -> None:
    """By gRPC where the backend is known to speak HTTP/2, else by gRPC-Web, as argocd itself falls back."""
    port, ca = gw.free_port(), Ca("dev")
    cert, pod = ca.issue(HOST), ca.issue("argocd-server")
    web = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    with argocd_server(pod if backend == "tls" else None) as grpc_port:
        target = web.server_port if backend == "web" else grpc_port
        one = gw.virtual("argocd", [HOST], http=[rule(to("argocd-server.argocd.svc.cluster.local", 443))])
        gw.write(
            tmp_path / "conf" / "all.yaml",
            gw.secret("argocd-cert", "istio-system", cert.pem, cert.key),
            gw.secret("pods", "istio-system", pod.pem, pod.key, **{"ca.crt": ca.pem}),
            gw.gateway_yaml(gw.server(port, "HTTPS", HOST, mode="SIMPLE", credentialName="argocd-cert")),
            one,
            *([policy(**rules)] if rules else []),
            *service("argocd-server", {name: 443}, target, namespace="argocd", **more),
        )
        with gw.running(tmp_path / "conf") as gateway:
            assert login(port, ca, "admin", b"\x0a\x05admin") == (way, SAID[SESSION]), gateway.process.tail()
    web.shutdown()
    web.server_close()
