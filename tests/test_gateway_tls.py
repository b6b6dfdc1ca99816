"""TLS that the gateway ends, and TLS that it begins: openssl, curl and nginx at the other ends, on loopback."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway import (
    Gateway,
    Raw,
    entry,
    free_port,
    gateway_yaml,
    running,
    secret,
    self_signed,
    server,
    tcp,
    virtual,
    write,
)

PORT = free_port()


def s_client(port: int, *options: str, said: bytes = b"") -> str:
    """What ``openssl s_client`` prints."""
    argv = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *options]
    done = subprocess.run(argv, input=said, capture_output=True, timeout=20, check=False)
    return (done.stdout + done.stderr).decode()


@pytest.fixture(scope="module")
def echo() -> Raw:
    return Raw(echo=True)


@pytest.fixture(scope="module")
def gateway(echo: Raw, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """a and b are ended here, for bytes."""
    folder = tmp_path_factory.mktemp("tls")
    secrets = [secret(f"{name}-credential", "istio-system", *self_signed(f"{name}.example.com")) for name in "ab"]
    servers = [
        server(PORT, "TLS", f"{name}.example.com", mode="SIMPLE", credentialName=f"{name}-credential") for name in "ab"
    ]
    write(
        folder / "conf" / "all.yaml",
        *secrets,
        gateway_yaml(*servers),
        virtual("tcp", ["a.example.com", "b.example.com"], tcp=[tcp(PORT, "echo.local")]),
        entry("echo.local", echo.port),
    )
    with running(folder / "conf") as made:
        yield made


def connect(name: str, **options: Any) -> ssl.SSLSocket:
    """A client of the standard library."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for key, value in options.items():
        setattr(context, key, value)
    return context.wrap_socket(socket.create_connection(("127.0.0.1", PORT), 10), server_hostname=name)


@pytest.mark.usefixtures("gateway")
def test_001_04_each_name_is_shown_its_own_certificate() -> None:
    for name in ("a", "b"):
        told = s_client(PORT, "-servername", f"{name}.example.com", "-brief")
        assert f"CN = {name}.example.com" in told
        assert "TLSv1.3" in told


def test_bytes_behind_tls_go_to_a_tcp_route_and_back(gateway: Gateway) -> None:
    with connect("a.example.com") as sock:
        sock.sendall(b"x" * 300_000)
        got = b""
        while len(got) < 300_000:
            got += sock.recv(65536)
        assert got == b"x" * 300_000
        plain = sock.unwrap()
        plain.close()
    record = gateway.record(sni="a.example.com", sent=300_000)
    assert (record["outcome"], record["tls"], record["received"]) == ("closed", "TLSv1.3", 300_000)
