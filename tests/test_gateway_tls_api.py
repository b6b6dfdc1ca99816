"""TLS by Gateway API: listeners with several certificates, clients' certificates, BackendTLSPolicies, TLSRoutes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import gateway as gw
from tests.echo_backend import EchoBackend, server_context
from tests.pki import Ca, Cert
from tests.web import GATEWAY_API, Response, api_gateway, http_route, parsed, service

URI = "spiffe://abc.example.com/test-identity"


@dataclass
class World:
    """One Gateway: https on a port, client certificates on two more, TLS ended and passed for bytes on a fourth."""

    gateway: gw.Gateway
    folder: Path
    https: int
    strict: int
    lax: int
    l4: int
    certs: dict[str, Cert]

    def call(self, name: str, port: int = 0, path: str = "/", shown: str = "") -> subprocess.CompletedProcess[bytes]:
        """curl by a name; ``shown``: the client's certificate."""
        port = port or self.https
        argv = ["curl", "-sS", "-i", "-m", "10", "--cacert", str(self.folder / "ca.pem")]
        if shown:
            crt, key = self.certs[shown].files(self.folder, shown)
            argv += ["--cert", str(crt), "--key", str(key)]
        argv += ["--resolve", f"{name}:{port}:127.0.0.1", f"https://{name}:{port}{path}"]
        return subprocess.run(argv, capture_output=True, timeout=20, check=False)

    def ask(self, name: str, port: int = 0, path: str = "/", shown: str = "") -> Response:
        done = self.call(name, port, path, shown)
        assert done.returncode == 0, (done.stderr.decode(), self.gateway.process.tail())
        return parsed(done.stdout.decode("latin-1"))


def listener(name: str, port: int, protocol: str, *secrets: str, **more: Any) -> dict[str, Any]:
    refs = {"certificateRefs": [{"name": secret} for secret in secrets]} if secrets else {"mode": "Passthrough"}
    return {"name": name, "port": port, "protocol": protocol, "tls": refs, **more}


def config_map(name: str, ca: bytes) -> dict[str, Any]:
    meta = {"name": name, "namespace": "shop"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"ca.crt": ca.decode()}}


def policy(name: str, target: str, hostname: str, *names: dict[str, str], **more: Any) -> dict[str, Any]:
    ca = more or {"caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "pods-ca"}]}
    alternatives = {"subjectAltNames": list(names)} if names else {}
    spec = {
        "targetRefs": [{"group": "", "kind": "Service", "name": target}],
        "validation": {"hostname": hostname, **ca, **alternatives},
    }
    meta = {"name": name, "namespace": "shop"}
    return {"apiVersion": GATEWAY_API, "kind": "BackendTLSPolicy", "metadata": meta, "spec": spec}


def tls_route(name: str, host: str, section: str, backend: str) -> dict[str, Any]:
    spec = {
        "parentRefs": [{"name": "gw", "sectionName": section}],
        "hostnames": [host],
        "rules": [{"backendRefs": [{"name": backend, "port": 80}]}],
    }
    meta = {"name": name, "namespace": "shop"}
    return {"apiVersion": GATEWAY_API, "kind": "TLSRoute", "metadata": meta, "spec": spec}


def validation(name: str, mode: str = "AllowValidOnly") -> dict[str, Any]:
    return {"validation": {"mode": mode, "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": name}]}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("api")
    https, strict, lax, l4 = (gw.free_port() for _ in range(4))
    ca, clients, pods = Ca("servers"), Ca("clients"), Ca("pods")
    (folder / "ca.pem").write_bytes(ca.pem)
    (folder / "clients.pem").write_bytes(clients.pem)
    certs = {
        "good": clients.issue("client.example.com", client=True),
        "stranger": Ca("strangers").issue("client.example.com", client=True),
        "own": clients.issue("gateway.example.com", client=True),
    }
    shown = {
        "example-cert": ca.issue("www.example.com"),
        "sample-cert": ca.issue("www.sample.com"),
        "validity": ca.issue("example.org", "*.example.org"),
        "ended": ca.issue("ended.example.com", "re.example.com"),
    }
    with ExitStack() as stack:
        plain = stack.enter_context(EchoBackend("plain-0", "plain", "shop"))
        crt, key = pods.issue("abc.example.com", URI).files(folder, "pod")
        secret = stack.enter_context(EchoBackend("secret-0", tls=server_context(str(crt), str(key))))
        demanding = server_context(str(crt), str(key), str(folder / "clients.pem"))
        mutual = stack.enter_context(EchoBackend("mutual-0", tls=demanding))
        passed_crt, passed_key = ca.issue("passed.example.com").files(folder, "passed")
        passed = stack.enter_context(EchoBackend("passed-0", tls=server_context(str(passed_crt), str(passed_key))))
        targets = {
            "plain": plain,
            **dict.fromkeys(("good", "mismatch", "san", "not-san", "stranger", "noca", "system"), secret),
            "mutual": mutual,
            "passed": passed,
        }
        rules = [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/" if name == "plain" else f"/{name}"}}],
                "backendRefs": [{"name": name, "port": 80}],
            }
            for name in targets
        ]
        made = api_gateway(
            listener("https", https, "HTTPS", "example-cert", "sample-cert"),
            listener("strict", strict, "HTTPS", "validity"),
            listener("lax", lax, "HTTPS", "validity"),
            listener("ended", l4, "TLS", "ended", hostname="*.example.com"),
            listener("passed", l4, "TLS", hostname="passed.example.com"),
        )
        made[1]["spec"]["tls"] = {
            "frontend": {
                "default": {},
                "perPort": [
                    {"port": strict, "tls": validation("clients-ca")},
                    {"port": lax, "tls": validation("clients-ca", "AllowInsecureFallback")},
                ],
            },
            "backend": {"clientCertificateRef": {"name": "own"}},
        }
        objects = [
            *made,
            *(gw.secret(name, "shop", one.pem, one.key) for name, one in shown.items()),
            gw.secret("own", "shop", certs["own"].pem, certs["own"].key),
            config_map("clients-ca", clients.pem),
            config_map("pods-ca", pods.pem),
            config_map("others-ca", Ca("others").pem),
            http_route("all", [], *rules),
            policy("good", "good", "abc.example.com"),
            policy("mismatch", "mismatch", "other.example.com"),
            policy("san", "san", "any.example.com", {"type": "URI", "uri": URI}),
            policy("not-san", "not-san", "abc.example.com", {"type": "Hostname", "hostname": "no.example.com"}),
            policy("stranger", "stranger", "abc.example.com", caCertificateRefs=[_ref("others-ca")]),
            policy("noca", "noca", "abc.example.com", caCertificateRefs=[_ref("missing")]),
            policy("system", "system", "abc.example.com", wellKnownCACertificates="System"),
            policy("mutual", "mutual", "abc.example.com"),
            policy("again", "again", "abc.example.com"),
            tls_route("ended", "ended.example.com", "ended", "plain"),
            tls_route("re", "re.example.com", "ended", "again"),
            tls_route("passed", "passed.example.com", "passed", "passed"),
            *service("again", {"tcp": 80}, secret.port),
        ]
        for name, one in targets.items():
            objects += service(name, {"http": 80}, one.port)
        gw.write(folder / "config" / "all.yaml", *objects)
        gateway = stack.enter_context(gw.running(folder / "config"))
        yield World(gateway, folder, https, strict, lax, l4, certs)


def _ref(name: str) -> dict[str, str]:
    return {"group": "", "kind": "ConfigMap", "name": name}


def test_003_08_one_listener_has_several_certificates_and_shows_each_name_its_own(world: World) -> None:
    for name in ("www.example.com", "www.sample.com"):
        assert world.ask(name).said["host"] == f"{name}:{world.https}"


def test_003_06_http2_and_the_suite_that_people_see(world: World) -> None:
    assert world.ask("www.example.com").proto == "HTTP/2"
    argv = ["openssl", "s_client", "-connect", f"127.0.0.1:{world.https}", "-servername", "www.example.com"]
    done = subprocess.run([*argv, "-alpn", "h2", "-brief"], input=b"", capture_output=True, timeout=10, check=True)
    told = (done.stdout + done.stderr).decode("latin-1")
    assert "TLSv1.3" in told
    assert "TLS_AES_256_GCM_SHA384" in told


@pytest.mark.parametrize("name", ["other.example.com", "www.example.com.", None])
def test_a_name_without_a_certificate_is_shown_the_first(world: World, name: str | None) -> None:
    """As Envoy with one chain: also for a trailing dot, and without a name."""
    argv = ["openssl", "s_client", "-connect", f"127.0.0.1:{world.https}", "-brief"]
    argv += ["-servername", name] if name else ["-noservername"]
    done = subprocess.run(argv, input=b"", capture_output=True, timeout=10, check=True)
    assert b"CN = www.example.com" in done.stderr + done.stdout


def test_clients_certificates_are_demanded_on_the_port_that_says_so(world: World) -> None:
    assert world.ask("example.org", world.strict, shown="good").status == 200
    for shown in ("", "stranger"):
        assert world.call("example.org", world.strict, shown=shown).returncode in gw.CUT_OFF
    assert world.ask("www.example.com").status == 200


def test_insecure_fallback_serves_everyone_and_vouches_for_verified_ones_only(world: World) -> None:
    """GEP-91, AllowInsecureFallback."""
    for shown in ("good", "stranger", ""):
        found = world.ask("example.org", world.lax, shown=shown)
        assert found.status == 200
        assert ("x-forwarded-client-cert" in found.body.lower()) is (shown == "good"), shown


@pytest.mark.parametrize(
    ("path", "good"),
    [("good", True), ("san", True), ("mismatch", False), ("not-san", False), ("stranger", False), ("noca", False)],
)
def test_a_backend_is_believed_as_its_policy_says(world: World, path: str, good: bool) -> None:
    found = world.ask("www.example.com", path=f"/{path}")
    if not good:
        assert found.status in (500, 503)
        return
    assert (found.status, found.said["pod"]) == (200, "secret-0")
    assert found.said["tls"]["serverName"] == ("any.example.com" if path == "san" else "abc.example.com")


def test_the_systems_authorities_are_those_of_this_machine(world: World) -> None:
    assert world.ask("www.example.com", path="/system").status == 503
    world.gateway.said("unable to get local issuer certificate")


def test_a_gateway_shows_backends_its_own_certificate(world: World) -> None:
    found = world.ask("www.example.com", path="/mutual")
    assert found.said["pod"] == "mutual-0"
    assert found.said["tls"]["peerCertificates"]


def test_a_tls_route_ends_tls_for_bytes_beside_one_that_passes_it_on(world: World) -> None:
    """TLSRouteModeTerminate, TLSRouteModeMixed."""
    assert world.ask("ended.example.com", world.l4).said["pod"] == "plain-0"
    assert world.ask("passed.example.com", world.l4).said["pod"] == "passed-0"
    tls = {world.gateway.record(sni=f"{name}.example.com")["tls"] for name in ("ended", "passed")}
    assert tls == {"TLSv1.3", "passthrough"}


def test_a_tls_route_that_ends_tls_begins_it_again_where_a_policy_says_so(world: World) -> None:
    assert world.ask("re.example.com", world.l4).said["tls"]["serverName"] == "abc.example.com"
