"""What an operator chooses of the gateway's TLS: a certificate for who names nobody, where Secrets are, an identity."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import gateway as gw
from tests.gateway_mesh import mesh_file, svid
from tests.pki import Ca, Cert
from tests.web import curl, rule, service, to, url
from tproxy.cli import main
from tproxy.control import authority
from tproxy.core.config import Config
from tproxy.core.identity import Snapshot, SpiffeId
from tproxy.core.reason import Deny
from tproxy.core.routes import ServerTls, TlsMode
from tproxy.gateway.contexts import Contexts
from tproxy.gateway.secrets import Material, Vault, Where
from tproxy.identity.openssl import Role
from tproxy.proxy.reactor import Reactor
from tproxy.proxy.tls import Session, contexts, handshake

GATEWAY, POD = (SpiffeId.parse(f"spiffe://mesh.local/ns/shop/sa/{name}") for name in ("gateway", "web"))


def shown(port: int, *options: str) -> str:
    argv = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-brief", *options]
    done = subprocess.run(argv, input=b"", capture_output=True, timeout=10, check=False)
    return (done.stdout + done.stderr).decode("latin-1")


def ended(port: int, name: str, credential: str) -> dict[str, Any]:
    return gw.server(port, "HTTPS", name, mode="SIMPLE", credentialName=credential)


def test_a_client_that_asks_for_nobody_gets_the_default_name(tmp_path: Path) -> None:
    """Reference, section 6, row 11: load balancers that send no SNI."""
    port, ca = gw.free_port(), Ca("x")
    made = [ca.issue("a.example.com"), ca.issue("b.example.com")]
    gw.write(
        tmp_path / "conf" / "all.yaml",
        *(gw.secret(one, "istio-system", cert.pem, cert.key) for one, cert in zip("ab", made, strict=True)),
        gw.gateway_yaml(ended(port, "a.example.com", "a"), ended(port, "b.example.com", "b")),
    )
    with gw.running(tmp_path / "conf", "--default-sni", "b.example.com"):
        assert "CN = b.example.com" in shown(port, "-noservername")
        assert "CN = a.example.com" in shown(port, "-servername", "a.example.com")
        assert "CN" not in shown(port, "-servername", "c.example.com")


def test_secrets_are_those_of_the_pods_namespace_and_if_asked_for_of_the_gateways_own(tmp_path: Path) -> None:
    """Reference, section 6, row 2."""
    port, ca = gw.free_port(), Ca("x")
    gateway = gw.gateway_yaml(ended(port, "a.example.com", "mine"), ended(port, "b.example.com", "theirs"))
    gateway["metadata"]["namespace"] = "team"
    a, b = ca.issue("a.example.com"), ca.issue("b.example.com")
    gw.write(
        tmp_path / "conf" / "all.yaml",
        gw.secret("mine", "team", a.pem, a.key),
        gw.secret("theirs", "edge", b.pem, b.key),
        gateway,
    )
    with gw.running(tmp_path / "conf", "--pod-namespace", "edge") as made:
        assert "CN = b.example.com" in shown(port, "-servername", "b.example.com")
        assert "CN" not in shown(port, "-servername", "a.example.com")
        assert made.record(sni="a.example.com")["reason"] == "no_credentials"
        made.said("Secret mine does not exist in namespace edge (IST0101)")
    with gw.running(tmp_path / "conf", "--pod-namespace", "edge", "--secrets-beside"):
        for name in "ab":
            assert f"CN = {name}.example.com" in shown(port, "-servername", f"{name}.example.com")


def test_a_reload_keeps_the_contexts_of_what_has_not_changed() -> None:
    ca = Ca("x")
    certs = {name: ca.issue(f"{name}.example.com") for name in ("same", "other")}
    before = Contexts(material(**certs))
    tls = {name: ServerTls(TlsMode.TERMINATE, (f"x/{name}",)) for name in certs}
    first = {name: before.server(tls[name], "", ()) for name in certs}
    after = before.following(material(same=certs["same"], other=ca.issue("other.example.com")))
    assert isinstance(first["same"], Role)
    assert after.server(tls["same"], "", ()) is first["same"]
    assert after.server(tls["other"], "", ()) is not first["other"]
    gone = after.following({}).server(tls["same"], "", ())
    assert isinstance(gone, Deny)


def material(**certs: Cert) -> dict[str, Material]:
    vault = Vault([], Where())
    for name, cert in certs.items():
        vault.keep(f"x/{name}", cert.pem, cert.key)
    return vault.material


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"tls.crt": b"x", "tls.key": b"y"}, "tls.crt is not PEM"),
        ({"tls.crt": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, "tls.key is not PEM"),
        ({}, "has no tls.crt and tls.key"),
    ],
)
def test_a_secret_that_cannot_be_used_says_why_and_nothing_of_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: dict[str, bytes], why: str
) -> None:
    made = gw.secret("a", "istio-system", b"", b"")
    made["data"] = gw.secret("a", "x", data.get("tls.crt", b""), data.get("tls.key", b""))["data"] if data else {}
    gw.write(tmp_path / "all.yaml", made, gw.gateway_yaml(ended(443, "a.example.com", "a")))
    assert main(["gateway", "check", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert why in said
    assert "AAAA" not in said


@pytest.mark.parametrize("name", ["/dev/zero", "/proc/self/mem", "/no/such/file", "/"])
def test_a_certificate_can_only_be_a_plain_file(name: str) -> None:
    found = Vault([], Where()).files(name, name)
    assert isinstance(found, str)
    assert name in found


def test_a_key_of_another_certificate_is_found_before_anybody_calls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = Ca("x").issue("a.example.com"), Ca("x").issue("a.example.com")
    gw.write(
        tmp_path / "all.yaml",
        gw.secret("a", "istio-system", one.pem, other.key),
        gw.gateway_yaml(ended(443, "a.example.com", "a")),
    )
    main(["gateway", "check", str(tmp_path)])
    assert "the key is not the certificate's" in capsys.readouterr().out


# the mesh


@contextmanager
def workload(root: authority.Pair) -> Iterator[int]:
    """What stands before a pod of the mesh: mTLS as a sidecar does it, and an answer that names the caller."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    loop = asyncio.new_event_loop()
    snapshot = Snapshot(svid(root, POD), {"mesh.local": root.certificate_pem()})
    role = contexts(snapshot, Config.parse({"trustDomain": "mesh.local"})).server

    async def one(sock: socket.socket, reactor: Reactor) -> None:
        session = await handshake(sock, role, 5, reactor)
        if not isinstance(session, Session):
            sock.close()
            return
        told = f"hello {session.peer}\n".encode()

        class Answer(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.line = transport

            def data_received(self, data: bytes) -> None:
                head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(told)
                self.line.write(head + told)  # type: ignore[attr-defined]

        reactor.attach(session.leg, Answer())

    async def serve() -> None:
        reactor, tasks = Reactor(), set()
        try:
            while True:
                sock, _ = await loop.sock_accept(listener)
                sock.setblocking(False)
                tasks.add(loop.create_task(one(sock, reactor)))
        finally:
            reactor.close()

    serving = loop.create_task(serve())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.gather(serving, return_exceptions=True)))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        loop.call_soon_threadsafe(serving.cancel)
        thread.join(10)
        loop.close()
        listener.close()


def destination(name: str, *names: str) -> dict[str, Any]:
    tls = {"mode": "ISTIO_MUTUAL", **({"subjectAltNames": list(names)} if names else {})}
    spec = {"host": f"{name}.shop.svc.cluster.local", "trafficPolicy": {"tls": tls}}
    meta = {"name": name, "namespace": "shop"}
    return {"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": meta, "spec": spec}


def test_pods_of_the_mesh_are_called_with_our_own_identity_and_must_be_who_is_expected(tmp_path: Path) -> None:
    root, port = authority.new_root("mesh.local", "ecdsa", authority.utc_now()), gw.free_port()
    mesh = mesh_file(tmp_path, root, GATEWAY)
    names = {"any": (), "right": (str(POD),), "wrong": ("spiffe://mesh.local/ns/shop/sa/other",)}
    with workload(root) as pod:
        objects = [gw.gateway_yaml(gw.server(port, "HTTP", "*"))]
        for name, wanted in names.items():
            objects += [
                gw.virtual(name, [f"{name}.example.com"], http=[rule(to(name))]),
                destination(name, *wanted),
                *service(name, {"http": 80}, pod),
            ]
        gw.write(tmp_path / "conf" / "all.yaml", *objects)
        with gw.running(tmp_path / "conf", "--mesh", str(mesh)) as made:
            made.said(f"in the mesh as {GATEWAY}")
            for name in ("any", "right"):
                found = curl(url(port), host=f"{name}.example.com")
                assert (found.status, found.body) == (200, f"hello {GATEWAY}\n")
            assert curl(url(port), host="wrong.example.com").status == 503
            made.said(f"it is {POD}, not spiffe://mesh.local/ns/shop/sa/other")
