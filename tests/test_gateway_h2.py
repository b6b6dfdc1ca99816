"""HTTP/2 through a real gateway, both sides: curl, grpcio, websockets over extended CONNECT, GOAWAY at its end."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from tests import gateway as gw
from tests.echo_backend import EchoBackend
from tests.web import GATEWAY_API, api_gateway, curl, http_route, service, url
from tproxy.proxy.transport import LINGER
from tproxy.world.process import wait_for

PRIOR = "--http2-prior-knowledge"
HOST, TWO = "www.example.com", "two.example.com"  # the backend's version


@dataclass
class World:
    """One gateway, and a pod that speaks both versions."""

    gateway: gw.Gateway
    port: int
    secure: int
    authority: str  # a file with the certificate
    pod: EchoBackend


def grpc_route() -> dict[str, Any]:
    spec = {
        "parentRefs": [{"name": "gw"}],
        "hostnames": ["grpc.example.com"],
        "rules": [
            {
                "matches": [{"method": {"service": "t.T"}}],
                "filters": [
                    {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-a", "value": "b"}]}}
                ],
                "backendRefs": [{"name": "grpc", "port": 80}],
            }
        ],
    }
    meta = {"name": "grpc", "namespace": "shop"}
    return {"apiVersion": GATEWAY_API, "kind": "GRPCRoute", "metadata": meta, "spec": spec}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("h2") / "config"
    port, secure = gw.free_port(), gw.free_port()
    crt, key = gw.self_signed("example.com")
    authority = folder.parent / "example.crt"
    authority.write_bytes(crt)
    with ExitStack() as stack:
        pod = stack.enter_context(EchoBackend("backend-0", "web", "shop"))
        backend = grpc.server(ThreadPoolExecutor(8))
        stack.callback(lambda: backend.stop(0).wait(5))
        methods = {
            "Unary": grpc.unary_unary_rpc_method_handler(unary),
            "Stream": grpc.stream_stream_rpc_method_handler(lambda requests, _: (one.upper() for one in requests)),
        }
        backend.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", methods),))
        grpc_port = backend.add_insecure_port("127.0.0.1:0")
        backend.start()
        gw.write(
            folder / "all.yaml",
            *api_gateway(
                {"name": "http", "port": port, "protocol": "HTTP"},
                {"name": "https", "port": secure, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "cert"}]}},
            ),
            gw.secret("cert", "shop", crt, key),
            *service("one", {"http": 80}, pod.port),
            *service("two", {"http": 80}, pod.port, appProtocol="kubernetes.io/h2c"),
            *service("grpc", {"http": 80}, grpc_port),
            *service("none", {"http": 80}),
            grpc_route(),
            http_route("one", [HOST], {"backendRefs": [{"name": "one", "port": 80}]}),
            http_route("two", [TWO], {"backendRefs": [{"name": "two", "port": 80}]}),
            http_route("empty", ["empty.example.com"], {"backendRefs": [{"name": "none", "port": 80}]}),
        )
        gateway = stack.enter_context(gw.running(folder))
        yield World(gateway, port, secure, str(authority), pod)


def over_tls(world: World, host: str = HOST) -> tuple[str, ...]:
    """Options of curl."""
    return "--cacert", world.authority, "--connect-to", f"{host}:443:127.0.0.1:{world.secure}", f"https://{host}/get"


def unary(request: bytes, call: grpc.ServicerContext) -> bytes:
    call.set_trailing_metadata((("x-trailer", "t"),))
    return dict(call.invocation_metadata()).get("x-a", "").encode() + request


@pytest.mark.parametrize(("options", "version"), [((PRIOR,), "HTTP/2"), (("--http1.1",), "HTTP/1.1")])
@pytest.mark.parametrize(("host", "proto"), [(HOST, "HTTP/1.1"), (TWO, "HTTP/2.0")])
def test_every_version_of_a_client_meets_every_version_of_a_backend(
    world: World, options: tuple[str, ...], version: str, host: str, proto: str
) -> None:
    found = curl(url(world.port, "/get"), *options, "-d", "x" * 100_000, host=host)
    assert (found.status, found.proto) == (200, version)
    assert (found.said["path"], found.said["host"], found.said["proto"]) == ("/get", host, proto)
    assert len(world.pod.seen[-1].body) == 100_000


def test_headers_that_a_backend_sees_are_the_same_for_both_versions(world: World) -> None:
    """Row 003-03."""
    seen = []
    for option in (PRIOR, "--http1.1"):
        curl(url(world.port, "/get"), option, "-b", "a=1; b=2", host=HOST)
        names = {name.lower() for name, _ in world.pod.seen[-1].headers}
        seen.append(names)
        assert world.pod.seen[-1].first("x-forwarded-proto") == "http"
    assert seen[0] == seen[1]


def test_a_head_request_has_a_length_and_no_body(world: World) -> None:
    """Row 003-09, in cleartext."""
    found = curl(url(world.port, "/get"), "-I", PRIOR, host=HOST)
    assert (found.status, found.body) == (200, "")
    assert int(found.header("content-length")) > 0


def test_an_upgrade_to_h2c_is_ignored(world: World) -> None:
    found = curl(url(world.port, "/get"), "--http2", host=HOST)
    assert (found.status, found.proto) == (200, "HTTP/1.1")


def test_003_06_a_client_of_tls_agrees_on_h2_or_gets_http_1_1(world: World) -> None:
    *options, address = over_tls(world)
    for more, version in (((), "HTTP/2"), (("--http1.1",), "HTTP/1.1"), (("--no-alpn",), "HTTP/1.1")):
        found = curl(address, *options, *more)
        assert (found.status, found.proto) == (200, version)
        assert world.pod.seen[-1].first("x-forwarded-proto") == "https"
    said = subprocess.run(["curl", "-svI", *over_tls(world)], capture_output=True, check=True).stderr.decode()
    assert "ALPN: server accepted h2" in said
    assert "SSL certificate verify ok" in said


def test_003_09_a_head_request_over_h2_and_tls_has_a_length_and_no_body(world: World) -> None:
    *options, address = over_tls(world)
    found = curl(address, "-I", *options)
    assert (found.status, found.proto, found.body) == (200, "HTTP/2", "")
    assert int(found.header("content-length")) > 0


@pytest.mark.parametrize("host", [HOST, TWO])
def test_large_bodies_pass_through_tls_both_ways(world: World, host: str) -> None:
    *options, address = over_tls(world, host)
    data = b"z" * 10_000_000
    got = subprocess.run(
        ["curl", "-sS", *options, "--data-binary", "@-", address.replace("/get", "/echo")],
        input=data, capture_output=True, check=True, timeout=30,
    ).stdout  # fmt: skip
    assert got == data


def test_grpc_over_tls_is_what_it_is_without(world: World) -> None:
    options = [("grpc.ssl_target_name_override", "grpc.example.com"), ("grpc.default_authority", "grpc.example.com")]
    trust = grpc.ssl_channel_credentials(Path(world.authority).read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{world.secure}", trust, options) as channel:
        assert channel.unary_unary("/t.T/Unary")(b"c" * 100_000, timeout=10) == b"b" + b"c" * 100_000


def test_a_host_without_a_rule_is_404_in_either_version(world: World) -> None:
    assert curl(url(world.port), PRIOR, host="other.example.com").status == 404


@pytest.mark.parametrize("host", [HOST, TWO])
def test_a_large_body_comes_whole(world: World, host: str) -> None:
    argv = ["curl", "-sS", PRIOR, "-H", f"Host: {host}", "-o", "/dev/null", "-w", "%{size_download}"]
    argv.append(url(world.port, "/bytes?n=30000000"))
    assert subprocess.run(argv, capture_output=True, check=True).stdout == b"30000000"


@pytest.mark.parametrize("host", [HOST, TWO])
def test_many_requests_at_once_have_no_failed_one(world: World, host: str) -> None:
    argv = ["h2load", "-n", "3000", "-c", "6", "-m", "100", "-H", f":authority: {host}", url(world.port, "/get")]
    seen = subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout.decode()
    assert re.search("3000 succeeded, 0 failed, 0 errored", seen), seen
    assert re.search("3000 2xx", seen), seen


@pytest.fixture
def channel(world: World) -> Iterator[grpc.Channel]:
    options = [("grpc.default_authority", "grpc.example.com")]
    with grpc.insecure_channel(f"127.0.0.1:{world.port}", options) as made:
        yield made


def test_a_grpc_call_goes_by_its_method_with_headers_and_trailers(channel: grpc.Channel) -> None:
    found, call = channel.unary_unary("/t.T/Unary").with_call(b"c" * 1_000_000, timeout=10)
    assert found == b"b" + b"c" * 1_000_000
    assert ("x-trailer", "t") in [tuple(one) for one in call.trailing_metadata()]


def test_a_grpc_stream_flows_both_ways(channel: grpc.Channel) -> None:
    said = [b"%d-a" % number for number in range(500)]
    assert list(channel.stream_stream("/t.T/Stream")(iter(said), timeout=10)) == [one.upper() for one in said]


def test_a_grpc_call_that_meets_no_rule_is_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.Other/Unary")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_grpc_call_without_a_backend_is_unavailable(world: World) -> None:
    options = [("grpc.default_authority", "empty.example.com")]
    with grpc.insecure_channel(f"127.0.0.1:{world.port}", options) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/Unary")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "no healthy upstream"


class Talk:
    """A connection of the library ``h2``."""

    def __init__(self, port: int, sni: str = "") -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 5)
        if sni:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(["h2"])
            self.sock = context.wrap_socket(self.sock, server_hostname=sni)
        self.conn = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="latin-1"))
        self.conn.local_settings.enable_connect_protocol = 1
        self.conn.initiate_connection()
        self.events: list[h2.events.Event] = []

    def until(self, kind: type[h2.events.Event]) -> Any:
        """The next event of this kind; those before it are dropped."""
        self.sock.sendall(self.conn.data_to_send())
        while True:
            while self.events:
                event = self.events.pop(0)
                if isinstance(event, h2.events.DataReceived):
                    self.conn.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
                if isinstance(event, kind):
                    return event
            data = self.sock.recv(65536)
            assert data, f"the connection ended before {kind.__name__}"
            self.events += self.conn.receive_data(data)
            self.sock.sendall(self.conn.data_to_send())


def test_a_websocket_opens_by_extended_connect_and_talks_with_a_backend_of_http_1(world: World) -> None:
    """RFC 8441; the key of HTTP/1.1 is made here, as clients of HTTP/2 send none."""
    talk = Talk(world.port)
    talk.until(h2.events.RemoteSettingsChanged)
    assert talk.conn.remote_settings.enable_connect_protocol
    fields = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/ws")]
    talk.conn.send_headers(1, [*fields, (":authority", HOST), ("sec-websocket-version", "13")])
    found = dict(talk.until(h2.events.ResponseReceived).headers)
    assert found[":status"] == "200"
    assert not {"upgrade", "connection", "sec-websocket-accept"} & found.keys()
    talk.conn.send_data(1, b"\x81\x85\0\0\0\0hello")  # a text frame with a mask of zeros
    assert talk.until(h2.events.DataReceived).data == b"\x81\x05hello"
    talk.conn.send_data(1, b"\x88\x82\0\0\0\0\x03\xe8")
    talk.until(h2.events.StreamEnded)
    talk.sock.close()


def test_a_connection_that_lingers_takes_nothing_from_those_that_came_after_it(world: World) -> None:
    """Its descriptor was given to the next one, which then was never read again."""
    first = Talk(world.secure, HOST)
    first.until(h2.events.RemoteSettingsChanged)
    first.conn.close_connection()
    first.sock.sendall(first.conn.data_to_send())
    while first.sock.recv(65536):
        pass
    world.gateway.record(source="{}:{}".format(*first.sock.getsockname()))
    second = Talk(world.secure, HOST)
    fields = [(":method", "GET"), (":scheme", "https"), (":authority", HOST), (":path", "/get")]
    until = time.monotonic() + LINGER * 1.5
    while time.monotonic() < until:
        number = second.conn.get_next_available_stream_id()
        second.conn.send_headers(number, fields, end_stream=True)
        assert second.until(h2.events.StreamEnded).stream_id == number
    first.sock.close()
    second.sock.close()


def test_a_gateway_that_stops_says_goaway_and_answers_what_it_took(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("h2-drain") / "config"
    port = gw.free_port()
    with EchoBackend("backend-0", "web", "shop") as pod:
        gw.write(
            folder / "all.yaml",
            *api_gateway({"name": "http", "port": port, "protocol": "HTTP"}),
            *service("one", {"http": 80}, pod.port),
            http_route("www", [HOST], {"backendRefs": [{"name": "one", "port": 80}]}),
        )
        with gw.running(folder, "--drain", "5") as gateway:
            argv = ["nghttp", "-nv", "--no-dep", f"-H:authority: {HOST}", url(port, "/get?delay=2s")]
            with subprocess.Popen(argv, stdout=subprocess.PIPE) as client:
                wait_for(lambda: pod.seen, 5, "the request at the backend")
                gateway.process.popen.terminate()
                seen = client.communicate(timeout=10)[0].decode()
            assert gateway.process.wait() == 0  # asked once; a second signal may come after its handlers have gone
    goaways = re.findall(r"recv GOAWAY frame.*\n *\(last_stream_id=(\d+), error_code=(\w+)", seen)
    assert goaways == [("2147483647", "NO_ERROR"), ("1", "NO_ERROR")]
    assert seen.index("GOAWAY") < seen.index(":status: 200")
