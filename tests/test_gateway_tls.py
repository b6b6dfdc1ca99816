"""TLS that the gateway ends, by Istio's Gateways: openssl and curl outside, real backends.

Numbers: reference, section 1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests import gateway as gw
from tests.echo_backend import EchoBackend
from tests.pki import Ca, Cert, version_one
from tests.web import Response, parsed, rule, service, to

SYSTEM = "istio-system"
MUTUAL = ("m", "opt", "san", "hash", "spki")


@dataclass
class World:
    """A gateway, its ports, and who can prove what to it."""

    gateway: gw.Gateway
    folder: Path
    port: int
    plain: int
    pod: EchoBackend
    echo: gw.Raw
    ca: Ca
    certs: dict[str, Cert]
    objects: list[dict[str, Any]]

    def file(self, name: str) -> tuple[str, ...]:
        """``--cert`` and ``--key`` for curl."""
        crt, key = self.certs[name].files(self.folder.parent, name)
        return ("--cert", str(crt), "--key", str(key))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("tls") / "config"
    port, plain, ca, clients = gw.free_port(), gw.free_port(), Ca("servers"), Ca("clients")
    (folder.parent / "ca.pem").write_bytes(ca.pem)
    good = clients.issue("client.example.com", "spiffe://cluster.local/ns/x/sa/y", client=True)
    certs = {
        "good": good,
        "other": clients.issue("other.example.com", client=True),
        "revoked": clients.issue("client.example.com", client=True),
        "expired": clients.issue("client.example.com", client=True, days=-1),
        "stranger": Ca("strangers").issue("client.example.com", client=True),
        "wrong-usage": clients.issue("client.example.com"),
    }
    mutual = {"ca.crt": clients.pem, "ca.crl": clients.crl(certs["revoked"])}
    spki = good.made.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    public = base64.b64encode(hashlib.sha256(spki).digest()).decode()
    servers = [
        _https(port, "a", "a-credential"),
        _https(port, "b", "b-credential"),
        _https(port, "both", credentialNames=["both-rsa", "both-ec"]),
        _https(port, "v1", "v1-credential"),
        _https(port, "*.wild", "wild-credential"),
        _https(
            port,
            "old",
            "a-credential",
            minProtocolVersion="TLSV1_2",
            maxProtocolVersion="TLSV1_2",
            cipherSuites=["ECDHE-ECDSA-AES256-GCM-SHA384", "NO-SUCH-SUITE"],
        ),
        _https(port, "new", "a-credential", minProtocolVersion="TLSV1_3"),
        _https(port, "ancient", "a-credential", minProtocolVersion="TLSV1_0", cipherSuites=["ECDHE-ECDSA-AES128-SHA"]),
        _https(port, "lonely", "a-credential", minProtocolVersion="TLSV1_0"),
        _https(port, "m", "m-credential", mode="MUTUAL"),
        _https(port, "opt", "m-credential", mode="OPTIONAL_MUTUAL"),
        _https(port, "beside", "beside-credential", mode="MUTUAL"),
        _https(port, "san", "m-credential", mode="MUTUAL", subjectAltNames=["client.example.com"]),
        _https(port, "hash", "m-credential", mode="MUTUAL", verifyCertificateHash=[good.hash.upper()]),
        _https(port, "spki", "m-credential", mode="MUTUAL", verifyCertificateSpki=[public]),
        _https(port, "missing", "missing-credential"),
        _https(port, "noca", "a-credential", mode="MUTUAL"),
        gw.server(port, "TLS", "bytes.example.com", mode="SIMPLE", credentialName="a-credential"),
        gw.server(port, "TLS", "passed.example.com", mode="PASSTHROUGH"),
        {**gw.server(plain, "HTTP", "a.example.com"), "tls": {"httpsRedirect": True}},
    ]
    with ExitStack() as stack:
        pod = stack.enter_context(EchoBackend("webapp-0", "webapp", "shop"))
        echo = gw.Raw(echo=True)
        passed = stack.enter_context(_tls_pod(ca.issue("passed.example.com"), folder.parent))
        objects = [
            *(_secret(f"{name}-credential", ca.issue(f"{name}.example.com")) for name in "ab"),
            _secret("both-rsa", ca.issue("both.example.com", kind="rsa")),
            _secret("both-ec", ca.issue("both.example.com")),
            _secret("v1-credential", version_one(folder.parent, "v1.example.com")),
            _secret("wild-credential", ca.issue("*.wild.example.com")),
            _secret("m-credential", ca.issue(*(f"{name}.example.com" for name in MUTUAL)), **mutual),
            _secret("beside-credential", ca.issue("beside.example.com")),
            _generic("beside-credential-cacert", cacert=clients.pem),
            gw.gateway_yaml(*servers),
            gw.virtual("web", ["*.example.com"], http=[rule(to("webapp"))]),
            gw.virtual("bytes", ["bytes.example.com"], tcp=[gw.tcp(port, "echo.local")]),
            gw.virtual("passed", ["passed.example.com"], tls=[gw.sni(["passed.example.com"], "passed.local")]),
            gw.entry("echo.local", echo.port),
            gw.entry("passed.local", passed.port),
            *service("webapp", {"http": 80}, pod.port),
        ]
        gw.write(folder / "all.yaml", *objects)
        gateway = stack.enter_context(gw.running(folder))
        yield World(gateway, folder, port, plain, pod, echo, ca, certs, objects)


def _https(port: int, host: str, credential: str = "", mode: str = "SIMPLE", **tls: Any) -> dict[str, Any]:
    made = {"mode": mode, **({"credentialName": credential} if credential else {}), **tls}
    return gw.server(port, "HTTPS", f"{host}.example.com", **made)


def _secret(name: str, cert: Cert, **more: bytes) -> dict[str, Any]:
    return gw.secret(name, SYSTEM, cert.pem, cert.key, **more)


def _generic(name: str, **data: bytes) -> dict[str, Any]:
    """As ``kubectl create secret generic`` makes it."""
    made = gw.secret(name, SYSTEM, b"", b"")
    return {**made, "type": "Opaque", "data": {key: base64.b64encode(text).decode() for key, text in data.items()}}


def _tls_pod(cert: Cert, folder: Path) -> EchoBackend:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*cert.files(folder, "pod"))
    return EchoBackend("passed-0", tls=context)


def s_client(port: int, name: str | None, *options: str) -> str:
    """What ``openssl s_client`` prints."""
    named = ["-servername", name] if name else ["-noservername"]
    argv = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *named, *options]
    done = subprocess.run(argv, input=b"", capture_output=True, timeout=20, check=False)
    return (done.stdout + done.stderr).decode()


def call(world: World, host: str, *options: str, path: str = "/") -> subprocess.CompletedProcess[bytes]:
    """curl by a name, with the servers' CA."""
    name = f"{host}.example.com"
    argv = ["curl", "-sS", "-i", "-m", "10", "--cacert", str(world.folder.parent / "ca.pem")]
    argv += ["--resolve", f"{name}:{world.port}:127.0.0.1", *options, f"https://{name}:{world.port}{path}"]
    return subprocess.run(argv, capture_output=True, timeout=20, check=False)


def ask(world: World, host: str, *options: str, path: str = "/") -> Response:
    """What it answers."""
    done = call(world, host, *options, path=path)
    assert done.returncode == 0, (done.stderr.decode(), world.gateway.process.tail())
    return parsed(done.stdout.decode("latin-1"))


def test_001_04_the_secret_of_the_pods_namespace_is_shown_for_its_name(world: World) -> None:
    """001-08, 000-09: and each name has its own."""
    for name in ("a", "b"):
        assert f"CN = {name}.example.com" in s_client(world.port, f"{name}.example.com", "-brief")
        found = ask(world, name)
        assert (found.status, found.said["host"]) == (200, f"{name}.example.com:{world.port}")
    assert "CN = a.example.com" in s_client(world.port, "A.EXAMPLE.COM", "-brief")


def test_001_05_a_name_that_nobody_has_is_reset_without_an_alert_and_the_record_says_which_there_are(
    world: World,
) -> None:
    done = subprocess.run(
        ["curl", "-sS", "-k", "-H", "Host: a.example.com", f"https://localhost:{world.port}/"],
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, b"Connection reset by peer" in done.stderr) == (35, True), done.stderr
    record = world.gateway.record(sni="localhost")
    assert (record["reason"], record["outcome"]) == ("no_route", "refused")
    assert "no server for SNI 'localhost'" in record["why"]
    assert "a.example.com" in record["why"]


def test_001_06_a_client_without_the_ca_says_so_and_the_record_has_its_alert(world: World) -> None:
    done = subprocess.run(
        ["curl", "-sS", "--resolve", f"b.example.com:{world.port}:127.0.0.1", f"https://b.example.com:{world.port}/"],
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 60
    assert b"unable to get local issuer certificate" in done.stderr
    record = world.gateway.record(sni="b.example.com", reason="refused_by_client")
    assert "unknown ca" in record["why"]
    assert ask(world, "b").status == 200


def test_001_07_plaintext_of_an_https_host_is_redirected(world: World) -> None:
    argv = ["curl", "-sS", "-i", "-H", "Host: a.example.com", f"http://127.0.0.1:{world.plain}/x?y=1"]
    found = parsed(subprocess.run(argv, capture_output=True, timeout=20, check=True).stdout.decode())
    assert (found.status, found.header("location")) == (301, "https://a.example.com/x?y=1")


def test_003_07_a_certificate_of_version_1_is_chosen_by_its_common_name(world: World) -> None:
    told = s_client(world.port, "v1.example.com")
    assert "subject=O = x, CN = v1.example.com" in told
    assert ask(world, "v1", "-k").status == 200


def test_a_client_gets_the_kind_of_certificate_that_it_can_verify_ecdsa_if_both(world: World) -> None:
    assert "ECDSA" in s_client(world.port, "both.example.com", "-brief")
    assert "Signature type: RSA-PSS" in s_client(world.port, "both.example.com", "-brief", "-sigalgs", "RSA-PSS+SHA256")
    old = s_client(world.port, "both.example.com", "-brief", "-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256")
    assert "ECDHE-RSA-AES128-GCM-SHA256" in old


def test_a_wildcard_is_shown_for_one_level_and_is_the_first_certificate_for_more(world: World) -> None:
    """As Envoy: the listener's pattern covers more levels than the certificate's."""
    for name in ("x.wild.example.com", "x.y.wild.example.com"):
        assert "CN = *.wild.example.com" in s_client(world.port, name, "-brief")
    assert ask(world, "x.wild").status == 200


def test_versions_and_suites_are_bounded_as_the_server_says(world: World) -> None:
    """The default is TLS 1.2 at least, 1.3 where the client has it."""
    assert "TLSv1.3" in s_client(world.port, "a.example.com", "-brief")
    assert "TLSv1.2" in s_client(world.port, "a.example.com", "-brief", "-tls1_2")
    assert "alert protocol version" in s_client(world.port, "a.example.com", "-tls1_1", "-cipher", "ALL@SECLEVEL=0")
    old = s_client(world.port, "old.example.com", "-brief")
    assert "TLSv1.2" in old
    assert "ECDHE-ECDSA-AES256-GCM-SHA384" in old
    assert "handshake failure" in s_client(
        world.port, "old.example.com", "-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"
    )
    assert "alert protocol version" in s_client(world.port, "new.example.com", "-tls1_2")
    assert world.gateway.record(sni="new.example.com")["reason"] == "handshake_failed"


def test_old_versions_are_served_only_with_suites_that_they_know(world: World) -> None:
    """minProtocolVersion alone does not bring them back, as in Istio."""
    old = ("-tls1", "-cipher", "ALL@SECLEVEL=0")
    assert "Protocol version: TLSv1\n" in s_client(world.port, "ancient.example.com", "-brief", *old)
    assert "ECDHE-ECDSA-AES128-SHA" in s_client(world.port, "ancient.example.com", "-brief", "-tls1_2")
    assert "alert" in s_client(world.port, "lonely.example.com", *old)


def test_mutual_demands_a_certificate_of_its_ca_that_is_not_revoked_nor_expired(world: World) -> None:
    assert ask(world, "m", *world.file("good")).status == 200
    for name, reason in (
        (None, "no_certificate"),
        ("stranger", "client_untrusted"),
        ("expired", "peer_expired"),
        ("revoked", "peer_revoked"),
        ("wrong-usage", "peer_wrong_usage"),
    ):
        done = call(world, "m", *(world.file(name) if name else ()))
        assert done.returncode in gw.CUT_OFF, (name, done.stdout, done.stderr)
        assert b"alert" in done.stderr, (name, done.stderr)
        assert world.gateway.record(sni="m.example.com", reason=reason)["outcome"] == "refused"


def test_a_clients_names_hash_or_key_can_be_demanded(world: World) -> None:
    for host in ("san", "hash", "spki"):
        assert ask(world, host, *world.file("good")).status == 200
        assert call(world, host, *world.file("other")).returncode in gw.CUT_OFF
        assert world.gateway.record(sni=f"{host}.example.com", reason="client_untrusted")["why"].count("certificate")


def test_an_optional_certificate_is_verified_if_it_is_shown(world: World) -> None:
    assert ask(world, "opt").status == 200
    assert ask(world, "opt", *world.file("good")).status == 200
    assert call(world, "opt", *world.file("stranger")).returncode in gw.CUT_OFF


def test_the_client_ca_may_stand_in_a_secret_beside(world: World) -> None:
    assert ask(world, "beside", *world.file("good")).status == 200
    assert call(world, "beside").returncode in gw.CUT_OFF


def test_a_backend_hears_of_a_verified_certificate_and_of_nothing_that_a_client_says(world: World) -> None:
    lie = ("-H", "x-forwarded-client-cert: Hash=lie")
    said = ask(world, "m", *world.file("good"), *lie).said["headers"]
    [told] = {key.lower(): value for key, value in said.items()}["x-forwarded-client-cert"]
    good = world.certs["good"]
    assert told.startswith(f'Hash={good.hash};Cert="-----BEGIN%20CERTIFICATE-----%0A')
    assert 'Subject="CN=client.example.com";URI=spiffe://cluster.local/ns/x/sa/y;DNS=client.example.com' in told
    for host in ("opt", "a"):
        assert "x-forwarded-client-cert" not in json.dumps(ask(world, host, *lie).said["headers"]).lower()


def test_without_its_secret_or_its_ca_a_name_is_refused_and_others_are_served(world: World) -> None:
    for host in ("missing", "noca"):
        assert call(world, host).returncode == 35
    assert world.gateway.record(sni="missing.example.com")["reason"] == "no_credentials"
    assert world.gateway.record(sni="noca.example.com")["reason"] == "no_credentials"


def test_bytes_behind_tls_go_to_a_tcp_route_and_each_direction_ends_by_itself(world: World) -> None:
    context = ssl.create_default_context(cadata=world.ca.pem.decode())
    context.check_hostname = False  # it is shown a's certificate
    raw = socket.create_connection(("127.0.0.1", world.port), 10)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="bytes.example.com")
    gw.finish(raw, (tls, incoming, outgoing))
    tls.write(b"x" * 300_000)
    with pytest.raises(ssl.SSLWantReadError):
        tls.unwrap()  # close_notify; the echo comes after it
    raw.sendall(outgoing.read())
    got, data = bytearray(), b""
    while data := raw.recv(65536):
        incoming.write(data)
    with pytest.raises((ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLError)):
        while True:
            got += tls.read(65536)
    raw.close()
    record = world.gateway.record(sni="bytes.example.com")
    assert (record["outcome"], record["tls"], record["sent"]) == ("closed", "TLSv1.3", 300_000)
    assert record["received"] == 300_000


def test_tls_is_ended_and_passed_on_beside_each_other_on_one_port(world: World) -> None:
    assert ask(world, "passed").said["pod"] == "passed-0"
    assert world.gateway.record(sni="passed.example.com")["tls"] == "passthrough"
    assert ask(world, "a").said["pod"] == "webapp-0"


def test_a_session_resumes_without_mutual_and_never_with_it(world: World) -> None:
    session = world.folder.parent / "session"
    s_client(world.port, "a.example.com", "-tls1_2", "-sess_out", str(session))
    assert "Reused, TLSv1.2" in s_client(world.port, "a.example.com", "-tls1_2", "-sess_in", str(session))
    session.unlink()
    crt, key = world.certs["good"].files(world.folder.parent, "good")
    told = s_client(
        world.port, "m.example.com", "-tls1_2", "-sess_out", str(session), "-cert", str(crt), "-key", str(key)
    )
    assert "New, TLSv1.2" in told
    assert not session.exists()


def test_000_13_a_new_secret_is_shown_at_the_next_handshake_and_open_connections_go_on(world: World) -> None:
    context = ssl.create_default_context(cadata=world.ca.pem.decode())
    with context.wrap_socket(
        socket.create_connection(("127.0.0.1", world.port), 10), server_hostname="b.example.com"
    ) as kept:
        before = kept.getpeercert(True)
        assert _get(kept).startswith(b"HTTP/1.1 200")
        fresh = world.ca.issue("b.example.com")
        objects = [_secret("b-credential", fresh) if _named(one) == "b-credential" else one for one in world.objects]
        gw.write(world.folder / "all.yaml", *objects)
        world.gateway.said("reloaded: ports")
        with context.wrap_socket(
            socket.create_connection(("127.0.0.1", world.port), 10), server_hostname="b.example.com"
        ) as other:
            assert other.getpeercert(True) != before
            assert other.getpeercert(True) == fresh.made.public_bytes(Encoding.DER)
        assert _get(kept).startswith(b"HTTP/1.1 200")


def _get(sock: ssl.SSLSocket) -> bytes:
    """One request, and its whole response."""
    sock.sendall(b"GET / HTTP/1.1\r\nhost: b.example.com\r\n\r\n")
    got = b""
    while not got.endswith(b"}\n"):
        got += sock.recv(65536)
    return got


def _named(one: dict[str, Any]) -> str:
    return str(one["metadata"]["name"])


def test_no_key_is_ever_written_to_the_log(world: World) -> None:
    assert "PRIVATE" not in world.gateway.process.log.read_text()


def test_certificates_change_again_and_again_under_load_and_nothing_fails(world: World) -> None:
    """Done when: reload many times under load, 0 failed requests; here with another certificate each time."""
    stop, done, failed = threading.Event(), [0, 0], list[str]()
    context = ssl.create_default_context(cadata=world.ca.pem.decode())

    def fresh() -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", world.port), 10)
        return context.wrap_socket(plain, server_hostname="b.example.com")

    def ask_on(kept: bool) -> None:
        try:
            sock = fresh()
            while not stop.is_set():
                assert _get(sock).startswith(b"HTTP/1.1 200")
                done[kept] += 1
                if not kept:
                    sock.close()
                    sock = fresh()
            sock.close()
        except (OSError, AssertionError) as error:
            failed.append(f"{'kept' if kept else 'new'}: {error!r}")

    threads = [threading.Thread(target=ask_on, args=(kept,)) for kept in (True, False)]
    for thread in threads:
        thread.start()
    before = world.gateway.process.log.read_text().count("reloaded: ports")
    for turn in range(1, 31):
        one = _secret("b-credential", world.ca.issue("b.example.com"))
        gw.write(
            world.folder / "all.yaml", *(one if _named(each) == "b-credential" else each for each in world.objects)
        )
        world.gateway.said("reloaded: ports", before + turn)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert not failed
    assert min(done) > 30, done


def test_000_12_a_service_is_added_at_run_time_and_nobody_else_notices(tmp_path: Path) -> None:
    """A Secret, a Gateway and a VirtualService of their own, as three objects that are applied later."""
    port, ca, folder = gw.free_port(), Ca("servers"), tmp_path / "config"
    with EchoBackend("webapp-0", "webapp", "shop") as pod:

        def objects(name: str) -> list[dict[str, Any]]:
            host = f"{name}.example.com"
            made = [_secret(f"{name}-credential", ca.issue(host)), *service("webapp", {"http": 80}, pod.port)]
            made += [gw.gateway_yaml(_https(port, name, f"{name}-credential"), name=f"{name}-gw")]
            web = gw.virtual(name, [host], http=[rule(to("webapp"))])
            return [*made, {**web, "spec": {**web["spec"], "gateways": [f"istio-system/{name}-gw"]}}]

        gw.write(folder / "b.yaml", *objects("b"))
        context = ssl.create_default_context(cadata=ca.pem.decode())
        with gw.running(folder) as gateway:
            with context.wrap_socket(
                socket.create_connection(("127.0.0.1", port), 10), server_hostname="b.example.com"
            ) as kept:
                assert _get(kept).startswith(b"HTTP/1.1 200")
                assert "CN = a.example.com" not in s_client(port, "a.example.com", "-brief")
                gw.write(folder / "a.yaml", *objects("a"))
                gateway.said("reloaded: ports")
                assert "CN = a.example.com" in s_client(port, "a.example.com", "-brief")
                assert _get(kept).startswith(b"HTTP/1.1 200")
            done = gw.curl("a.example.com", port)
            assert done.returncode == 0 and '"webapp-0"' in done.stdout, done
            assert gateway.process.alive
