"""Servers of a Gateway that are of the mesh: ISTIO_MUTUAL with our own SVID, AUTO_PASSTHROUGH by SNI."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import gateway as gw
from tests.echo_backend import EchoBackend, server_context
from tests.gateway_mesh import mesh_file, svid
from tests.web import Response, parsed, rule, service, to
from tproxy.cli import main
from tproxy.control import authority
from tproxy.core.identity import SpiffeId

GATEWAY, CALLER, OTHER = (SpiffeId.parse(f"spiffe://mesh.local/ns/shop/sa/{name}") for name in ("gw", "web", "other"))
STRANGER = SpiffeId.parse("spiffe://elsewhere.local/ns/shop/sa/web")


@dataclass
class World:
    """A gateway with an identity, a port that ends mTLS of the mesh, one that passes it on, and callers' files."""

    gateway: gw.Gateway
    folder: Path
    port: int
    passing: int
    echo: gw.Raw

    def file(self, name: str) -> tuple[str, str]:
        return str(self.folder / f"{name}.crt"), str(self.folder / f"{name}.key")

    def call(self, host: str, caller: str = "", *options: str) -> subprocess.CompletedProcess[bytes]:
        crt, key = self.file(caller)
        shown = ("--cert", crt, "--key", key) if caller else ()
        argv = ["curl", "-sS", "-k", "-i", "-m", "8", "--resolve", f"{host}:{self.port}:127.0.0.1", *shown, *options]
        return subprocess.run([*argv, f"https://{host}:{self.port}/"], capture_output=True, timeout=20, check=False)

    def ask(self, host: str, caller: str, *options: str) -> Response:
        done = self.call(host, caller, *options)
        assert done.returncode == 0, (done.stderr, self.gateway.process.tail())
        return parsed(done.stdout.decode("latin-1"))

    def context(self, caller: str, *alpn: str) -> ssl.SSLContext:
        """A client of Python's, which verifies the chain that it is shown, but no host name."""
        made = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        made.check_hostname = False
        made.load_cert_chain(*self.file(caller))
        made.set_alpn_protocols(alpn)
        return made


def destination(host: str, **spec: Any) -> dict[str, Any]:
    meta = {"name": host, "namespace": "shop"}
    made = {"host": f"{host}.shop.svc.cluster.local", **spec}
    return {"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": meta, "spec": made}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("mutual")
    root, foreign = (authority.new_root(name, "ecdsa", authority.utc_now()) for name in ("mesh.local", "foreign"))
    mesh, port, passing = mesh_file(folder, root, GATEWAY), gw.free_port(), gw.free_port()
    for name, signer, who in (
        ("caller", root, CALLER),
        ("other", root, OTHER),
        ("elsewhere", root, STRANGER),
        ("stranger", foreign, CALLER),
        ("pod", root, CALLER),
    ):
        made = svid(signer, who)
        (folder / f"{name}.crt").write_bytes(made.chain_pem)
        (folder / f"{name}.key").write_bytes(made.key_pem)
    with ExitStack() as stack:
        web = stack.enter_context(EchoBackend("web-0", "web", "shop"))
        context = server_context(str(folder / "pod.crt"), str(folder / "pod.key"), str(folder / "ca.pem"))
        context.set_alpn_protocols(["istio", "http/1.1"])
        pod = stack.enter_context(EchoBackend("pod-0", "pod", "shop", tls=context))
        echo = gw.Raw(echo=True)
        one, other = service("pod", {"tls": 8080}, pod.port, pod.port)[1:]
        one["endpoints"][0]["targetRef"] = {"kind": "Pod", "name": "pod-0"}
        other["endpoints"][0]["addresses"] = ["127.0.0.9"]  # nobody
        other["endpoints"][0]["targetRef"] = {"kind": "Pod", "name": "pod-1"}
        pods = [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": labels}}
            for name, labels in (("pod-0", {"version": "v1"}), ("pod-1", {"version": "v2"}))
        ]
        only = {"mode": "ISTIO_MUTUAL", "subjectAltNames": [str(OTHER)]}
        gw.write(
            folder / "conf" / "all.yaml",
            gw.gateway_yaml(
                gw.server(port, "HTTPS", "web.example.com", mode="ISTIO_MUTUAL"),
                {**gw.server(port, "HTTPS", "only.example.com"), "tls": only},
                gw.server(port, "TLS", "bytes.example.com", mode="ISTIO_MUTUAL"),
                gw.server(passing, "TLS", "shop/*.local", mode="AUTO_PASSTHROUGH"),
            ),
            gw.virtual("web", ["web.example.com", "only.example.com"], http=[rule(to("web"))]),
            gw.virtual("bytes", ["bytes.example.com"], tcp=[gw.tcp(port, "echo.local")]),
            gw.entry("echo.local", echo.port),
            *service("web", {"http": 80}, web.port),
            *[*service("pod", {"tls": 8080}), one, other, *pods],
            *service("hidden", {"tls": 8080}, pod.port, namespace="vault"),
            destination("pod", subsets=[{"name": name, "labels": {"version": name}} for name in ("v1", "v2")]),
        )
        gateway = stack.enter_context(gw.running(folder / "conf", "--mesh", str(mesh)))
        gateway.said(f"in the mesh as {GATEWAY}")
        yield World(gateway, folder, port, passing, echo)


def test_our_own_svid_is_shown_and_a_caller_of_the_mesh_is_served(world: World) -> None:
    found = world.ask("web.example.com", "caller")
    assert (found.status, found.proto, found.said["pod"]) == (200, "HTTP/2", "web-0")
    raw = socket.create_connection(("127.0.0.1", world.port), 8)
    with world.context("caller", "istio").wrap_socket(raw, server_hostname="web.example.com") as sock:
        shown = sock.getpeercert()
        assert shown is not None
        assert shown["subjectAltName"] == (("URI", str(GATEWAY)),)


def test_the_record_says_who_called_and_the_backend_hears_of_both_ends(world: World) -> None:
    """Envoy's XFCC: By is the URI of the certificate that we have shown."""
    said = world.ask("web.example.com", "caller", "-H", "x-forwarded-client-cert: By=lie").said["headers"]
    [told] = {key.lower(): value for key, value in said.items()}["x-forwarded-client-cert"]
    assert told.startswith(f"By={GATEWAY};Hash=")
    assert told.endswith(f";URI={CALLER}")
    record = world.gateway.record(sni="web.example.com", peer=str(CALLER))
    assert (record["outcome"], record["tls"]) == ("closed", "TLSv1.3")


@pytest.mark.parametrize(
    ("caller", "reason", "alert"),
    [("", "no_certificate", b"alert"), ("stranger", "peer_untrusted", b"alert"), ("elsewhere", "peer_foreign", b"")],
)
def test_who_shows_no_certificate_of_the_meshs_bundle_is_refused(
    world: World, caller: str, reason: str, alert: bytes
) -> None:
    done = world.call("web.example.com", caller)
    assert done.returncode in gw.CUT_OFF
    assert alert in done.stderr
    record = world.gateway.record(sni="web.example.com", reason=reason)
    assert record["outcome"] == "refused"


def test_callers_can_be_named(world: World) -> None:
    assert world.ask("only.example.com", "other").status == 200
    assert world.call("only.example.com", "caller").returncode in gw.CUT_OFF
    assert str(CALLER) in world.gateway.record(sni="only.example.com", reason="client_untrusted")["why"]


def test_bytes_of_a_caller_of_the_mesh_go_to_a_tcp_route_whatever_protocol_it_offers(world: World) -> None:
    raw = socket.create_connection(("127.0.0.1", world.port), 8)
    with world.context("caller", "istio-peer-exchange", "istio").wrap_socket(
        raw, server_hostname="bytes.example.com"
    ) as sock:
        sock.sendall(b"hello")
        assert sock.recv(10) == b"hello"


def passed(world: World, sni: str, *alpn: str) -> bytes:
    """What the pod says by this SNI."""
    raw = socket.create_connection(("127.0.0.1", world.passing), 8)
    with world.context("caller", *alpn).wrap_socket(raw, server_hostname=sni) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        with sock.makefile("rb") as reader:
            return reader.read()


@pytest.mark.parametrize("subset", ["", "v1"])
def test_an_sni_that_names_a_service_needs_no_virtualservice_and_its_pod_ends_tls(world: World, subset: str) -> None:
    sni = f"outbound_.8080_.{subset}_.pod.shop.svc.cluster.local"
    for _ in range(4):  # a subset never leads to other pods; of both, one is not there and the next is tried
        text = passed(world, sni, "istio")
        said = json.loads(text.partition(b"\r\n\r\n")[2])
        assert (said["pod"], said["tls"]["serverName"]) == ("pod-0", sni)
        assert said["tls"]["peerCertificates"]


def test_auto_passthrough_is_for_mtls_of_the_mesh_and_for_hosts_that_its_server_means(world: World) -> None:
    sni = "outbound_.8080_._.pod.shop.svc.cluster.local"
    for name, alpn, why in (
        (sni, ("h2", "http/1.1"), "the client offers h2, http/1.1"),
        (sni.replace("8080", "9"), ("istio",), "no server for SNI"),
        (sni.replace("_._", "_.v9_"), ("istio",), "no server for SNI"),
        (sni.replace("pod.shop", "hidden.vault"), ("istio",), "no server for SNI"),
        ("pod.shop.svc.cluster.local", ("istio",), "no server for SNI"),
    ):
        with pytest.raises(OSError, match="reset"):
            passed(world, name, *alpn)
        assert why in world.gateway.record(sni=name, reason="no_route")["why"]


def test_a_subset_whose_pods_do_not_answer_is_refused_and_never_given_to_others(world: World) -> None:
    with pytest.raises(OSError, match="reset"):
        passed(world, "outbound_.8080_.v2_.pod.shop.svc.cluster.local", "istio")
    world.gateway.record(sni="outbound_.8080_.v2_.pod.shop.svc.cluster.local", reason="connect_refused")


def test_a_connection_ends_when_the_bundle_no_longer_vouches_for_its_caller(world: World) -> None:
    raw = socket.create_connection(("127.0.0.1", world.port), 8)
    with world.context("caller", "http/1.1").wrap_socket(raw, server_hostname="web.example.com") as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: web.example.com\r\n\r\n")
        assert sock.recv(9) == b"HTTP/1.1 "
        next_root = authority.new_root("mesh.local", "ecdsa", authority.utc_now())
        before = {name: (world.folder / f"{name}.pem").read_bytes() for name in ("cert", "key", "ca")}
        mesh_file(world.folder, next_root, GATEWAY)
        with suppress(ConnectionResetError):
            while sock.recv(65536):
                pass
        assert world.gateway.record(reason="cut_by_trust")["peer"] == str(CALLER)
        assert world.call("web.example.com", "caller").returncode in gw.CUT_OFF
    times = world.gateway.process.log.read_text().count("in the mesh as")
    for name, text in before.items():
        (world.folder / f"{name}.pem").write_bytes(text)
    world.gateway.said("in the mesh as", times + 1)
    assert world.ask("web.example.com", "caller").status == 200


def test_without_an_identity_handshakes_are_refused_and_the_record_says_what_to_do(tmp_path: Path) -> None:
    port = gw.free_port()
    gw.write(
        tmp_path / "conf" / "all.yaml",
        gw.gateway_yaml(gw.server(port, "HTTPS", "a.example.com", mode="ISTIO_MUTUAL")),
    )
    with gw.running(tmp_path / "conf") as gateway:
        assert gw.curl("a.example.com", port).returncode == 35
        record = gateway.record(sni="a.example.com")
    assert (record["reason"], "--mesh" in record["why"]) == ("no_credentials", True)


@pytest.mark.parametrize("key", ["serverCertificate", "privateKey", "caCertificates", "caCrl", "caCertCredentialName"])
def test_istio_mutual_has_no_credentials_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    tls = {"mode": "ISTIO_MUTUAL", key: "/x"}
    gw.write(tmp_path / "all.yaml", gw.gateway_yaml({**gw.server(443, "HTTPS", "a.example.com"), "tls": tls}))
    assert main(["gateway", "check", str(tmp_path)]) == 1
    assert f"ISTIO_MUTUAL TLS cannot have associated {key}" in capsys.readouterr().out
