"""AuthorizationPolicy at a running gateway: requests, bytes and datagrams of real clients, reloads."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h2.events
import pytest

from tests import gateway as gw
from tests.echo_backend import EchoBackend
from tests.pki import Ca, Cert
from tests.test_gateway_h2 import Talk
from tests.test_gateway_policies import policy
from tests.test_gateway_udp import Echo, client
from tests.web import api_gateway, curl, parsed, rule, service, to, url
from tproxy.cli import main
from tproxy.core.address import Endpoint
from tproxy.core.proxy_protocol import v1
from tproxy.world.process import wait_for

MESH = "spiffe://cluster.local/ns/shop/sa/web"


@dataclass
class World:
    """One gateway with every kind of port, and nothing in its way until a policy is written."""

    folder: Path
    gateway: gw.Gateway
    http: int
    https: int
    passed: int
    tcp: int
    ended: int
    udp: int
    pod: EchoBackend
    clients: Ca
    reloads: int = 0
    certs: dict[str, Cert] = field(default_factory=dict)

    def obey(self, *policies: dict[str, Any]) -> None:
        """From now on."""
        self.reloads += 1
        gw.write(
            self.folder / "policies.yaml",
            *policies,
            {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": f"n{self.reloads}"}},
        )
        self.gateway.said("reloaded: ports", self.reloads)

    def file(self, *names: str) -> tuple[str, ...]:
        """``--cert`` and ``--key`` for curl."""
        if names[0] not in self.certs:
            self.certs[names[0]] = self.clients.issue(*names, client=True)
        crt, key = self.certs[names[0]].files(self.folder.parent, str(len(self.certs)))
        return ("--cert", str(crt), "--key", str(key))

    def asked(self, name: str, *options: str) -> int:
        """The status of a request over TLS that the gateway ends."""
        done = gw.curl(name, self.https, "-i", *options)
        assert done.returncode == 0, done.stderr
        return parsed(done.stdout).status

    def call(self, port: int, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), 10, (source, 0))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("guarded") / "conf"
    http, https, passed, tcp, ended, udp = (gw.free_port() for _ in range(6))
    servers, clients = Ca("servers"), Ca("clients")
    mutual = {"mode": "OPTIONAL_MUTUAL", "credentialName": "c"}
    with ExitStack() as stack:
        pod = stack.enter_context(EchoBackend("web-0", "web", "shop"))
        raw, datagrams = gw.Raw(echo=True), Echo()
        cert = servers.issue("a.example.com", "b.example.com")
        meta = {"name": "dns", "namespace": "shop"}
        route = {"parentRefs": [{"name": "gw"}], "rules": [{"backendRefs": [{"name": "dns", "port": 53}]}]}
        gw.write(
            folder / "all.yaml",
            gw.secret("c", "istio-system", cert.pem, cert.key, **{"ca.crt": clients.pem}),
            gw.gateway_yaml(
                gw.server(http, "HTTP", "*"),
                gw.server(https, "HTTPS", "a.example.com", **mutual),
                gw.server(passed, "TLS", "b.example.com", mode="PASSTHROUGH"),
                gw.server(tcp, "TCP", "*"),
                gw.server(ended, "TLS", "b.example.com", **mutual),
            ),
            gw.virtual(
                "web", ["*"], http=[rule(to("web"))], tcp=[gw.tcp(tcp, "raw.local"), gw.tcp(ended, "raw.local")]
            ),
            gw.virtual("passed", ["b.example.com"], tls=[gw.sni(["b.example.com"], "raw.local")]),
            gw.entry("raw.local", raw.port),
            *service("web", {"http": 80}, pod.port),
            *api_gateway({"name": "dns", "port": udp, "protocol": "UDP"}),
            {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "UDPRoute", "metadata": meta, "spec": route},
            *service("dns", {"dns": 53}, datagrams.port, protocol="UDP"),
        )
        gateway = stack.enter_context(gw.running(folder, "--access-log", "text"))
        yield World(folder, gateway, http, https, passed, tcp, ended, udp, pod, clients)


def address(sock: socket.socket) -> str:
    """As records have it."""
    host, port = sock.getsockname()
    return f"{host}:{port}"


def deny(**source: Any) -> dict[str, Any]:
    return policy("no", action="DENY", rules=[{"from": [{"source": source}]}])


def test_a_request_is_refused_by_its_path_and_never_reaches_the_backend(world: World) -> None:
    world.obey(policy("no", action="DENY", rules=[{"to": [{"operation": {"paths": ["/admin*"]}}]}]))
    assert curl(url(world.http, "/public")).status == 200
    before = len(world.pod.seen)
    for path in ("/admin/x", "//admin", "/x/..%2fadmin"):
        refused = curl(url(world.http, path), "--path-as-is")
        assert (refused.status, refused.body, refused.header("server")) == (403, "RBAC: access denied", "istio-envoy")
    assert curl(f"http://127.0.0.1:{world.http}/admin", "--http2-prior-knowledge").status == 403
    assert len(world.pod.seen) == before
    world.gateway.said("rbac_access_denied_matched_policy[istio-system/no[0]]", 4)


def test_on_one_connection_each_request_is_judged_by_the_policies_of_its_moment(world: World) -> None:
    world.obey()
    with world.call(world.http) as sock:
        for policies, status in (((), b"200"), ((policy(),), b"403"), ((), b"200")):
            world.obey(*policies)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.rstrip().endswith((b"}", b"denied")):
                data = sock.recv(65536)
                assert data, answer
                answer += data
            assert answer[9:12] == status


def test_who_has_proven_a_spiffe_id_is_known_by_it(world: World) -> None:
    principal = {"principals": [MESH.removeprefix("spiffe://")]}
    world.obey(policy("mesh", action="ALLOW", rules=[{"from": [{"source": principal}]}]))
    assert world.asked("a.example.com") == 403
    assert world.asked("a.example.com", *world.file("spiffe://cluster.local/ns/shop/sa/other")) == 403
    assert world.asked("a.example.com", *world.file(MESH)) == 200


def test_a_certificate_that_nobody_vouches_for_proves_nothing(world: World) -> None:
    world.obey(policy("mesh", action="ALLOW", rules=[{"from": [{"source": {"principals": ["*"]}}]}]))
    stranger = Ca("strangers").issue(MESH, client=True)
    crt, key = stranger.files(world.folder.parent, "stranger")
    done = gw.curl("a.example.com", world.https, "-i", "--cert", str(crt), "--key", str(key))
    assert done.returncode in gw.CUT_OFF or parsed(done.stdout).status == 403


def test_a_tcp_connection_is_refused_by_its_address_with_one_record(world: World) -> None:
    world.obey(deny(ipBlocks=["127.3.0.0/16"]))
    with world.call(world.tcp, "127.3.0.7") as sock:
        source = address(sock)
        with pytest.raises(ConnectionResetError):
            assert sock.recv(100) == b"", "something was sent"
            raise AssertionError("FIN instead of RST")
    record = world.gateway.record(source=source)
    assert (record["outcome"], record["rule"]) == ("refused", "istio-system/no[0]")
    assert "127.3.0.7 is denied on port" in record["why"] and "AuthorizationPolicy" in json.dumps(record)
    with world.call(world.tcp) as sock:
        sock.sendall(b"ping")
        assert sock.recv(4) == b"ping"


def test_a_name_that_is_passed_through_is_refused_by_its_sni(world: World) -> None:
    when = [{"key": "connection.sni", "values": ["b.example.com"]}]
    world.obey(policy("no", action="DENY", rules=[{"when": when}]))
    assert gw.curl("b.example.com", world.passed).returncode in gw.CUT_OFF
    record = world.gateway.record(sni="b.example.com", outcome="refused")
    assert record["rule"] == "istio-system/no[0]"


def test_bytes_in_tls_that_we_end_are_let_in_by_the_certificate(world: World) -> None:
    principal = {"principals": [MESH.removeprefix("spiffe://")]}
    world.obey(policy("mesh", action="ALLOW", rules=[{"from": [{"source": principal}]}]))
    options = ("-T", "-", "-m", "2", "--http0.9")
    assert gw.curl("b.example.com", world.ended, *options).returncode in gw.CUT_OFF
    echoed = gw.curl("b.example.com", world.ended, "-m", "2", "--http0.9", *world.file(MESH))
    assert "GET / HTTP/1.1" in echoed.stdout, echoed


def test_what_runs_when_a_policy_comes_is_cut_if_it_would_not_be_let_in(world: World) -> None:
    world.obey()
    with world.call(world.tcp, "127.3.0.8") as theirs, world.call(world.tcp, "127.4.0.8") as others:
        for sock in (theirs, others):
            sock.sendall(b"ping")
            assert sock.recv(4) == b"ping"
        source = address(theirs)
        world.obey(deny(ipBlocks=["127.3.0.0/16"]))
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
        others.sendall(b"pong")
        assert others.recv(4) == b"pong"
    record = world.gateway.record(source=source, outcome="cut")
    assert (record["reason"], record["rule"]) == ("cut_by_policy", "istio-system/no[0]")


UPGRADE = "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\n\r\n"


def test_a_websocket_is_cut_by_a_policy_that_would_not_let_it_in(world: World) -> None:
    world.obey()
    with world.call(world.http, "127.3.0.9") as theirs, world.call(world.http, "127.4.0.9") as others:
        source = address(theirs)
        for sock in (theirs, others):
            sock.sendall(UPGRADE.encode())
            assert sock.recv(4096).startswith(b"HTTP/1.1 101 ")
        world.obey(deny(ipBlocks=["127.3.0.0/16"]))
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
        others.sendall(b"\x81\x84\0\0\0\0pong")  # RFC 6455, 5.2: a message with a mask of zeros
        assert others.recv(100) == b"\x81\x04pong"
    record = world.gateway.record(source=source, outcome="cut")
    assert (record["reason"], record["rule"]) == ("cut_by_policy", "istio-system/no[0]")
    world.gateway.said('GET /ws HTTP/1.1" 101 - rbac_access_denied_matched_policy[istio-system/no[0]]')


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_a_request_that_waits_is_refused_by_a_policy_that_comes(world: World, version: str) -> None:
    world.obey()
    before = len(world.pod.seen)
    argv = ["curl", "-s", "-m", "20", version, url(world.http, "/?delay=3s"), "-o", "/dev/null", "-w", "%{http_code}"]
    theirs, others = (
        subprocess.Popen([*argv, "--interface", source], stdout=subprocess.PIPE, text=True)
        for source in ("127.3.0.10", "127.4.0.10")
    )
    wait_for(lambda: len(world.pod.seen) == before + 2, 5, "both requests are with the backend")
    world.obey(deny(ipBlocks=["127.3.0.0/16"]))
    assert theirs.communicate(timeout=20)[0] == "403"
    assert others.poll() is None, "the other one still waits"
    assert others.communicate(timeout=20)[0] == "200"


def test_a_stream_of_http_2_is_reset_by_a_policy_that_comes_and_its_connection_goes_on(world: World) -> None:
    world.obey()
    talk = Talk(world.http)
    talk.until(h2.events.RemoteSettingsChanged)
    common = [(":scheme", "http"), (":authority", "x")]
    talk.conn.send_headers(1, [(":method", "CONNECT"), (":protocol", "websocket"), *common, (":path", "/ws")])
    assert dict(talk.until(h2.events.ResponseReceived).headers)[":status"] == "200"
    world.obey(policy("no", action="DENY", rules=[{"to": [{"operation": {"paths": ["/ws"]}}]}]))
    assert talk.until(h2.events.StreamReset).stream_id == 1
    talk.conn.send_headers(3, [(":method", "GET"), *common, (":path", "/public")], end_stream=True)
    assert dict(talk.until(h2.events.ResponseReceived).headers)[":status"] == "200"
    talk.sock.close()


def test_datagrams_obey_policies_too(world: World) -> None:
    world.obey()
    with client(world.udp) as first:
        first.send(b"a")
        assert first.recv(100) == b"echo a"
        world.obey(deny(ipBlocks=["127.0.0.1"]))
        world.gateway.record(source=address(first), outcome="cut", reason="cut_by_policy")
        first.send(b"b")
        record = world.gateway.record(source=address(first), outcome="refused")
        assert record["rule"] == "istio-system/no[0]"
        first.settimeout(0.3)
        with pytest.raises(TimeoutError):
            first.recv(100)


def test_one_that_cannot_be_read_stops_a_reload_and_a_start(world: World) -> None:
    """What was served goes on as it was; a gateway that begins with it does not begin."""
    world.obey(policy("no", action="DENY", rules=[{"to": [{"operation": {"paths": ["/admin*"]}}]}]))
    bad = policy("jwt", action="ALLOW", rules=[{"from": [{"source": {"requestPrincipals": ["*"]}}]}])
    gw.write(world.folder / "policies.yaml", bad)
    world.gateway.said("requestPrincipals")
    assert (curl(url(world.http, "/")).status, curl(url(world.http, "/admin")).status) == (200, 403)
    begun = gw.started(world.folder)
    assert begun.popen.wait(20) == 2
    assert "requestPrincipals" in begun.log.read_text()
    world.obey()


def test_remote_addresses_are_those_of_proxy_headers(tmp_path: Path) -> None:
    """Istio's documentation of ingress access control: behind PROXY protocol, remoteIpBlocks."""
    port = gw.free_port()
    with EchoBackend("web-0", "web", "shop") as pod:
        gw.write(
            tmp_path / "conf" / "all.yaml",
            gw.gateway_yaml(gw.server(port, "HTTP", "*")),
            gw.virtual("web", ["*"], http=[rule(to("web"))]),
            *service("web", {"http": 80}, pod.port),
            policy("office", action="ALLOW", rules=[{"from": [{"source": {"remoteIpBlocks": ["203.0.113.0/24"]}}]}]),
        )
        with gw.running(tmp_path / "conf", "--proxy-from", "127.0.0.0/8"):
            for address, status in (("203.0.113.9", b"200"), ("198.51.100.9", b"403")):
                with socket.create_connection(("127.0.0.1", port), 10) as sock:
                    told = v1(Endpoint.parse(f"{address}:1234"), Endpoint.parse(f"127.0.0.1:{port}"))
                    sock.sendall(told + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    assert sock.recv(12)[9:] == status


def test_explain_says_who_is_refused_by_what(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.obey(policy("office", action="ALLOW", rules=[{"from": [{"source": {"ipBlocks": ["10.0.0.0/8"]}}]}]))
    asked = ["gateway", "explain", str(world.folder), "--host", "x", "--port", str(world.http)]
    assert main([*asked, "--from", "10.0.0.1"]) == 0
    assert "let in by istio-system/office[0]" in capsys.readouterr().out
    assert main([*asked, "--from", "192.0.2.9"]) == 1
    said = capsys.readouterr().out
    assert "192.0.2.9 is not allowed: istio-system/office" in said
    assert "ALLOW istio-system/office[0] misses: rules[0].from[0].source.ipBlocks wants 10.0.0.0/8" in said
    assert main(asked) == 2
    assert "--from: is missing" in capsys.readouterr().err
    assert main([*asked, "--from", "192.0.2.9", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["taken"] is None
    assert main(["gateway", "listeners", str(world.folder)]) == 0
    assert f"port {world.http} obeys AuthorizationPolicy istio-system/office\n" in capsys.readouterr().out
    world.obey()
