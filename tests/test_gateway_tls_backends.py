"""TLS that the gateway begins, by DestinationRules: who is believed, what is shown, what is asked for."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import gateway as gw
from tests.echo_backend import EchoBackend, server_context
from tests.pki import Ca, Cert
from tests.web import Response, curl, rule, service, to, url

SYSTEM = "istio-system"
URI = "spiffe://cluster.local/ns/shop/sa/web"


@dataclass
class World:
    """A gateway with a plain port, one where TLS is ended for bytes, and pods that speak TLS."""

    gateway: gw.Gateway
    port: int
    bytes: int
    web: EchoBackend
    strict: EchoBackend

    def ask(self, name: str, path: str = "/") -> Response:
        return curl(url(self.port, path), host=f"{name}.example.com")


def pod(folder: Path, name: str, cert: Cert, clients: Ca | None = None) -> EchoBackend:
    """With a certificate; it may demand one of its callers."""
    authority = folder / f"{name}-clients.pem"
    if clients:
        authority.write_bytes(clients.pem)
    crt, key = cert.files(folder, name)
    context = server_context(str(crt), str(key), str(authority) if clients else "")
    return EchoBackend(f"{name}-0", name, "shop", tls=context)


def generic(name: str, **data: bytes) -> dict[str, Any]:
    made = gw.secret(name, SYSTEM, b"", b"")
    return {**made, "type": "Opaque", "data": {key: base64.b64encode(text).decode() for key, text in data.items()}}


def destination(host: str, **policy: Any) -> dict[str, Any]:
    meta = {"name": host, "namespace": "shop"}
    spec = {"host": f"{host}.shop.svc.cluster.local", **policy}
    return {"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": meta, "spec": spec}


def tls(mode: str, **more: Any) -> dict[str, Any]:
    return {"trafficPolicy": {"tls": {"mode": mode, **more}}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("backends") / "config"
    top, port, ended = folder.parent, gw.free_port(), gw.free_port()
    ca, clients = Ca("pods"), Ca("gateways")
    own = clients.issue("gateway.example.com", client=True)
    expired = ca.issue("old.example.com", days=-1)
    policies = {
        "auto": tls("SIMPLE", credentialName="pods-ca"),
        "named": tls("SIMPLE", credentialName="pods-ca", sni="web.example.com"),
        "other": tls("SIMPLE", credentialName="pods-ca", sni="web.example.com", subjectAltNames=["x.example.com"]),
        "uri": tls("SIMPLE", credentialName="pods-ca", sni="any.example.com", subjectAltNames=["no", URI]),
        "stranger": tls("SIMPLE", credentialName="others-ca", sni="web.example.com"),
        "system": tls("SIMPLE", sni="web.example.com"),
        "skipped": tls("SIMPLE", sni="web.example.com", insecureSkipVerify=True),
        "nobody": tls("SIMPLE", credentialName="missing"),
        "strict": tls("MUTUAL", credentialName="own", sni="strict.example.com"),
        "bare": tls("SIMPLE", credentialName="own", sni="strict.example.com"),
        "old": tls("SIMPLE", credentialName="pods-ca", sni="old.example.com"),
        "mesh": tls("ISTIO_MUTUAL"),
        "h2": tls("SIMPLE", credentialName="pods-ca", sni="web.example.com"),
        "bytes": tls("SIMPLE", credentialName="pods-ca"),
        "ports": {
            "trafficPolicy": {"tls": {"mode": "DISABLE"}},
            "subsets": [{"name": "plain", "labels": {}, **tls("DISABLE")}],
        },
        "web": tls("SIMPLE", caCertificates=str(top / "pods.pem"), sni="web.example.com"),
    }
    (top / "pods.pem").write_bytes(ca.pem)
    with ExitStack() as stack:
        simple = {"mode": "SIMPLE", "credentialName": "pods-ca", "sni": "web.example.com"}
        policies["ports"]["trafficPolicy"]["portLevelSettings"] = [{"port": {"number": 443}, "tls": simple}]
        names = ("web.example.com", "auto.example.com", "bytes.example.com", URI)
        web = stack.enter_context(pod(top, "web", ca.issue(*names)))
        strict = stack.enter_context(pod(top, "strict", ca.issue("strict.example.com"), clients))
        old = stack.enter_context(pod(top, "old", expired))
        where = {"strict": strict, "bare": strict, "old": old}
        hosts = [*policies]
        objects = [
            generic("pods-ca", cacert=ca.pem),
            generic("others-ca", **{"ca.crt": Ca("others").pem}),
            gw.secret("own", SYSTEM, own.pem, own.key, **{"ca.crt": ca.pem}),
            gw.secret("front", SYSTEM, *gw.self_signed("bytes.example.com")),
            gw.gateway_yaml(
                gw.server(port, "HTTP", "*"),
                gw.server(ended, "TLS", "bytes.example.com", mode="SIMPLE", credentialName="front"),
            ),
            *(
                gw.virtual(host, [f"{host}.example.com"], http=[rule(to(host, 443 if host == "ports" else 80))])
                for host in hosts
            ),
            gw.virtual("tcp", ["bytes.example.com"], tcp=[gw.tcp(ended, "bytes.shop.svc.cluster.local")]),
            *(destination(host, **policy) for host, policy in policies.items()),
        ]
        for host in hosts:
            kind = "http2" if host == "h2" else "http"
            named = {"http": 80, "https": 443} if host == "ports" else {kind: 80}
            objects += service(host, named, where.get(host, web).port)
        gw.write(folder / "all.yaml", *objects)
        yield World(stack.enter_context(gw.running(folder)), port, ended, web, strict)


def test_the_requests_host_is_the_sni_and_the_name_that_is_verified(world: World) -> None:
    """Reference, section 6, row 15."""
    found = world.ask("auto")
    assert (found.status, found.said["tls"]["serverName"]) == (200, "auto.example.com")
    assert found.said["tls"]["version"] == "TLSv1.3"


def test_a_rules_sni_goes_before_it(world: World) -> None:
    assert world.ask("named").said["tls"]["serverName"] == "web.example.com"


def test_a_uri_or_a_name_can_be_demanded_instead(world: World) -> None:
    assert world.ask("uri").status == 200
    assert world.ask("other").status == 503
    world.gateway.said("its certificate is for")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("stranger", "unable to get local issuer certificate"),
        ("system", "unable to get local issuer certificate"),
        ("old", "certificate has expired"),
        ("nobody", "Secret missing does not exist"),
        ("mesh", "no identity in the mesh"),
    ],
)
def test_who_cannot_be_believed_is_503_and_the_log_says_why_with_the_sni(world: World, name: str, reason: str) -> None:
    assert world.ask(name).status == 503
    world.gateway.said(reason)


def test_nothing_is_verified_only_where_the_rule_says_so(world: World) -> None:
    assert world.ask("skipped").status == 200


def test_mutual_shows_our_certificate_and_simple_does_not(world: World) -> None:
    found = world.ask("strict")
    assert found.status == 200
    assert found.said["tls"]["peerCertificates"]
    assert world.ask("bare").status == 503


def test_a_port_has_settings_of_its_own(world: World) -> None:
    assert world.ask("ports").said["tls"]["serverName"] == "web.example.com"


def test_the_ca_may_be_a_file(world: World) -> None:
    assert world.ask("web").status == 200


def test_http2_is_spoken_over_tls_where_the_service_says_so(world: World) -> None:
    found = world.ask("h2")
    assert (found.said["proto"], found.said["tls"]["negotiatedProtocol"]) == ("HTTP/2.0", "h2")


def test_connections_over_tls_are_kept(world: World) -> None:
    world.ask("named")
    before = world.web.connections
    for _ in range(5):
        assert world.ask("named").status == 200
    assert world.web.connections == before


def test_bytes_are_ended_and_begun_again_with_the_clients_sni(world: World) -> None:
    options = ("-k", "--http1.1", "--resolve", f"bytes.example.com:{world.bytes}:127.0.0.1")
    found = curl(f"https://bytes.example.com:{world.bytes}/", *options)
    assert found.said["tls"]["serverName"] == "bytes.example.com"
    assert world.gateway.record(sni="bytes.example.com")["tls"] == "TLSv1.3"
