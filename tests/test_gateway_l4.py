"""TLS passed on by the name that the client asks for, and TCP by port: real clients, real TLS backends, on loopback."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import test_hello as hellos
from tests.gateway import (
    Gateway,
    Nginx,
    Raw,
    curl,
    entry,
    finish,
    free_port,
    gateway_yaml,
    hello_of,
    running,
    server,
    sni,
    tcp,
    tls_client,
    virtual,
    write,
)
from tproxy.core.address import Endpoint
from tproxy.core.proxy_protocol import AUTHORITY, Header, parse, v1, v2
from tproxy.world.process import wait_for

TLS, TCP, ACCEPTS = free_port(), free_port(), free_port()
PASS = {"mode": "PASSTHROUGH"}


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    made = Nginx(tmp_path_factory.mktemp("nginx"))
    try:
        yield made.start(a="http2", b="", retry=";ssl_ecdh_curve secp384r1;", told="proxy_protocol")
    finally:
        made.stop()


@pytest.fixture(scope="module")
def raw() -> Raw:
    return Raw()


@pytest.fixture(scope="module")
def gateway(nginx: Nginx, raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """a, b, *.wild, retry and told to nginx; raw to the raw backend; half is dead; ended is not for passing on."""
    folder = tmp_path_factory.mktemp("gateway") / "conf"
    rules = {
        "a.example.com": "a.local",
        "b.example.com": "b.local",
        "*.wild.example.com": "b.local",
        "retry.example.com": "retry.local",
        "told.example.com": "told.local",
        "raw.example.com": "raw.local",
        "shop.example": "raw.local",
        "half.example.com": "half.local",
        "gone.example.com": "gone.local",
        "rawtold.example.com": "rawtold.local",
    }
    policy = {"trafficPolicy": {"proxyProtocol": {"version": "V2"}}}
    told = [
        {**virtual(h, ["x.y"]), "kind": "DestinationRule", "spec": {"host": h, **policy}}
        for h in ("told.local", "rawtold.local")
    ]
    write(
        folder / "all.yaml",
        gateway_yaml(
            server(TLS, "TLS", "*.example.com", "shop.example", **PASS),
            server(TLS, "HTTPS", "ended.example.com", mode="SIMPLE", credentialName="ended"),
            server(TCP, "TCP", "*"),
        ),
        *(virtual(f"v{n}", [name], tls=[sni([name], to)]) for n, (name, to) in enumerate(rules.items())),
        virtual("echo", ["*"], tcp=[tcp(TCP, "echo.local")]),
        *(entry(f"{name}.local", port) for name, port in nginx.ports.items()),
        entry("raw.local", raw.port),
        entry("rawtold.local", raw.port),
        entry("echo.local", Raw(echo=True).port),
        entry("half.local", nginx.ports["a"], free_port()),
        entry("gone.local", free_port()),
        *told,
    )
    with running(folder, "--hello", "2", "--half-open", "2000") as made:
        yield made


SOURCES = (f"127.1.{high}.{low}" for high in range(256) for low in range(1, 255))


def call(port: int = TLS, source: str = "127.0.0.1") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 10, (source, 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def stranger() -> socket.socket:
    """From an address nobody else calls from: a port alone is soon another's, and its records with it."""
    return call(source=next(SOURCES))


def reset_without_a_byte(sock: socket.socket) -> None:
    """RST, and no alert before it."""
    with pytest.raises(ConnectionResetError):
        assert sock.recv(100) == b"", "something was sent"
        raise AssertionError("FIN instead of RST")


def handshake(sock: socket.socket, name: str | None, **options: object) -> ssl.SSLObject:
    client = tls_client(name, **options)
    sock.sendall(hello_of(client))
    finish(sock, client)
    return client[0]


# where names lead


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("a.example.com", "a"),
        ("A.Example.COM", "a"),
        ("b.example.com", "b"),
        ("x.wild.example.com", "b"),
        ("x.y.wild.example.com", "b"),
    ],
)
def test_a_name_leads_to_its_backend_whose_own_certificate_is_seen(
    gateway: Gateway, nginx: Nginx, name: str, backend: str
) -> None:
    """001-10, 000-09."""
    assert curl(name, TLS).stdout.split()[0] == backend
    argv = ["openssl", "s_client", "-connect", f"127.0.0.1:{TLS}", "-servername", name]
    said = subprocess.run(argv, input="", capture_output=True, text=True, timeout=10, check=False)
    assert f"CN = {backend}.example.com" in said.stdout
    record = gateway.record(sni=name.lower(), outcome="closed")
    assert record["tls"] == "passthrough" and record["backend"] == f"127.0.0.1:{nginx.ports[backend]}"


@pytest.mark.parametrize("name", ["localhost", "example.com", "wild.example.com", "a.example.com.", None, "127.0.0.1"])
def test_an_unmatched_name_is_reset_without_an_alert_and_the_record_says_what_is_configured(
    gateway: Gateway, name: str | None
) -> None:
    """001-05."""
    with stranger() as sock:
        sock.sendall(hellos.hello(hellos.ext(43, b"\x02\x03\x04") + (hellos.sni(name.encode()) if name else b"")))
        reset_without_a_byte(sock)
        mine = "{}:{}".format(*sock.getsockname())
    record = gateway.record(reason="no_route", source=mine)
    assert (repr(name) if name else "a client without SNI") in record["why"] and "a.example.com" in record["why"]
    assert "explain --sni" in record["advice"]


def test_curl_by_a_wrong_name_ends_with_35(gateway: Gateway) -> None:
    """001-05, as people meet it."""
    done = curl("localhost", TLS)
    assert done.returncode == 35 and "reset by peer" in done.stderr


def test_a_name_whose_tls_ends_here_is_never_passed_on(gateway: Gateway) -> None:
    with call() as sock:
        sock.sendall(hello_of(tls_client("ended.example.com")))
        reset_without_a_byte(sock)
    assert gateway.record(sni="ended.example.com")["reason"] == "no_credentials"


@pytest.mark.parametrize("options", [("--tlsv1.3",), ("--tls-max", "1.2"), ("--http1.1",), ("--http2",)])
def test_every_version_and_protocol_passes(gateway: Gateway, options: tuple[str, ...]) -> None:
    assert curl("a.example.com", TLS, *options).stdout == "a a.example.com \n"


def test_a_second_hello_after_a_retry_request_is_not_routed_again(gateway: Gateway) -> None:
    assert curl("retry.example.com", TLS).stdout.startswith("retry ")


# hellos as hostile networks cut them


def test_a_hello_cut_at_any_byte_is_routed(gateway: Gateway, raw: Raw) -> None:
    """Once another connection has been carried, the gateway has looked at every first part alone."""
    before, whole = len(raw.got), hello_of(tls_client("raw.example.com"))
    with ExitStack() as stack:
        socks = [stack.enter_context(call()) for _ in range(1, len(whole))]
        for cut, sock in enumerate(socks, 1):
            sock.sendall(whole[:cut])
        with call() as probe:
            handshake(probe, "b.example.com")
        for cut, sock in enumerate(socks, 1):
            sock.sendall(whole[cut:])
        wait_for(lambda: raw.got[before:] == [whole] * len(socks), 10, "every hello at the backend, whole")


@pytest.mark.parametrize("sizes", [[1] * 600, [9, 1, 1, 1], [130, 3], [16]])
def test_a_hello_in_many_records_is_routed_and_carried(gateway: Gateway, sizes: list[int]) -> None:
    client = tls_client("a.example.com")
    with call() as sock:
        sock.sendall(hellos.records(hello_of(client)[5:], sizes))
        finish(sock, client)
        assert client[0].version() == "TLSv1.3"


def test_a_post_quantum_hello_in_pieces_goes_by_its_outer_name(gateway: Gateway, raw: Raw) -> None:
    before = len(raw.got)
    with call() as sock:
        for at in range(0, len(hellos.POST_QUANTUM), 400):
            sock.sendall(hellos.POST_QUANTUM[at : at + 400])
        wait_for(lambda: raw.got[before:] == [hellos.POST_QUANTUM], 5, "the hello at the backend")


def test_what_follows_the_hello_arrives_behind_it_exactly_once(gateway: Gateway, raw: Raw) -> None:
    """Early data, and whoever does not wait."""
    before, data = len(raw.got), hellos.hello(hellos.sni(b"raw.example.com")) + bytes(range(256)) * 2000
    with call() as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        wait_for(lambda: raw.got[before:] == [data], 5, "every byte at the backend")
        raw.socks[-1].sendall(b"still open this way")
        assert sock.recv(100) == b"still open this way"
        raw.socks[-1].close()
        assert sock.recv(1) == b""


def test_a_reset_of_the_backend_is_a_reset_of_the_client(gateway: Gateway, raw: Raw) -> None:
    before, first = len(raw.got), hellos.hello(hellos.sni(b"raw.example.com"))
    with call() as sock:
        sock.sendall(first)
        wait_for(lambda: raw.got[before:] == [first], 5, "the hello at the backend")
        raw.socks[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        raw.socks[-1].shutdown(socket.SHUT_RD)
        raw.socks[-1].close()
        reset_without_a_byte(sock)


TWO_NAMES = hellos.sni(b"a.example.com") + hellos.sni(b"b.example.com")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n", "plaintext"),
        (b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10", "plaintext"),  # SSLv2
        (hellos.hello(TWO_NAMES), "hello_malformed"),
        (hellos.record(b"\x01\x00")[:7] + b"\x15\x03\x01\x00\x02\x02\x28", "hello_malformed"),  # an alert inside
        (b"\x16\x03\x01\x40\x01\x01", "hello_malformed"),  # a record above 2**14
        (hellos.record(b""), "hello_malformed"),
        (b"\x16\x03\x01\x40\x00\x01\xff\xff\xff", "hello_malformed"),  # 16 MiB announced in nine bytes
        (hellos.hello(hellos.sni(b"a\0.example.com")), "hello_malformed"),
        (hellos.hello(hellos.sni("ä.example.com".encode())), "hello_malformed"),
        (hellos.hello(hellos.sni(b"")), "hello_malformed"),
        (hellos.hello(hellos.sni(b"a" * 256)), "hello_malformed"),
    ],
)
def test_what_is_no_proper_hello_is_reset_and_reaches_nobody(gateway: Gateway, data: bytes, reason: str) -> None:
    with stranger() as sock:
        sock.sendall(data)
        reset_without_a_byte(sock)
        mine = "{}:{}".format(*sock.getsockname())
    record = gateway.record(source=mine)
    assert (record["reason"], "backend" in record) == (reason, False)


@pytest.mark.parametrize("start", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_a_hello_that_does_not_come_is_reset_at_its_deadline_while_others_are_served(
    gateway: Gateway, start: bytes
) -> None:
    with stranger() as slow:
        slow.sendall(start)
        assert curl("a.example.com", TLS).returncode == 0
        reset_without_a_byte(slow)
        mine = "{}:{}".format(*slow.getsockname())
    record = gateway.record(source=mine)
    assert record["reason"] == "hello_timeout" and 1.9 < record["duration"] < 5


# backends


def test_a_dead_endpoint_is_passed_over(gateway: Gateway) -> None:
    assert all(curl("half.example.com", TLS).stdout.startswith("a ") for _ in range(8))


def test_a_backend_that_is_not_there_is_a_reset_with_a_reason(gateway: Gateway) -> None:
    assert curl("gone.example.com", TLS).returncode == 35
    assert gateway.record(sni="gone.example.com")["reason"] == "connect_refused"


def test_a_tcp_port_carries_bytes_both_ways_whoever_speaks_first(gateway: Gateway) -> None:
    """001-09."""
    with call(TCP) as sock:
        sock.sendall(b"hello, world\r\n")
        assert sock.recv(100) == b"hello, world\r\n"


def test_a_backend_is_told_of_the_client_where_it_asks(gateway: Gateway, raw: Raw) -> None:
    assert curl("told.example.com", TLS, "--interface", "127.0.0.7").stdout == "told told.example.com 127.0.0.7\n"
    before, first = len(raw.got), hellos.hello(hellos.sni(b"rawtold.example.com"))
    with call(source="127.0.0.8") as sock:
        sock.sendall(first)
        wait_for(lambda: raw.got[before:] and raw.got[-1].endswith(first), 5, "header and hello")
        found = parse(bytes(raw.got[-1]))
        assert isinstance(found, Header) and found.tlvs[AUTHORITY] == b"rawtold.example.com"
        assert found.source == Endpoint.of_socket(sock.getsockname())


# who may come, and how often


@pytest.fixture(scope="module")
def guarded(nginx: Nginx, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One name, PROXY headers from 127.0.0.1 only, four half-open connections of one client."""
    folder = tmp_path_factory.mktemp("guarded") / "conf"
    write(
        folder / "all.yaml",
        gateway_yaml(server(ACCEPTS, "TLS", "*", **PASS)),
        virtual("a", ["*"], tls=[sni(["*"], "a.local")]),
        entry("a.local", nginx.ports["a"]),
    )
    with running(folder, "--hello", "3", "--half-open", "4", "--proxy-from", "127.0.0.1") as made:
        yield made


TOLD = Endpoint.parse("192.0.2.7:4711"), Endpoint.parse("192.0.2.1:443")


@pytest.mark.parametrize("header", [v1(*TOLD), v2(*TOLD, "x", "h2")], ids=["v1", "v2"])
@pytest.mark.parametrize("cut", [1, 12, 20])
def test_the_client_that_a_load_balancer_tells_of_stands_in_the_record(
    guarded: Gateway, header: bytes, cut: int
) -> None:
    before = len(guarded.records(source="192.0.2.7:4711"))
    client = tls_client("any.example.com")
    with call(ACCEPTS) as sock:
        sock.sendall(header[:cut])
        sock.sendall(header[cut:] + hello_of(client))
        finish(sock, client)
    wait_for(lambda: len(guarded.records(source="192.0.2.7:4711")) > before, 5, "its record")


@pytest.mark.parametrize("start", [b"", b"PROXY TCP4 x\r\n"])
def test_without_a_proper_header_nobody_is_served(guarded: Gateway, start: bytes) -> None:
    with call(ACCEPTS) as sock:
        sock.sendall(start + hello_of(tls_client("any.example.com")))
        reset_without_a_byte(sock)
        mine = "{}:{}".format(*sock.getsockname())
    assert guarded.record(source=mine)["reason"] == "proxy_header"


def test_from_elsewhere_nobody_is_served_whatever_they_tell(guarded: Gateway) -> None:
    with pytest.raises(ConnectionResetError), call(ACCEPTS, "127.0.0.2") as sock:
        sock.sendall(v1(*TOLD) + hello_of(tls_client("any.example.com")))
        sock.recv(1)
    assert guarded.record(why="127.0.0.2 is not in --proxy-from")["reason"] == "proxy_header"


def test_one_client_cannot_hold_more_half_open_connections_than_its_cap_and_others_do_not_mind(
    guarded: Gateway,
) -> None:
    header = v1(Endpoint.parse("192.0.2.66:1"), TOLD[1])
    with ExitStack() as stack:
        held = [stack.enter_context(call(ACCEPTS)) for _ in range(5)]
        for sock in held:
            sock.sendall(header + b"\x16")
        assert guarded.record(source="192.0.2.66:1", reason="source_limit")
        client = tls_client("any.example.com")
        with call(ACCEPTS) as other:
            other.sendall(v1(*TOLD) + hello_of(client))
            finish(other, client)
    wait_for(lambda: len(guarded.records(source="192.0.2.66:1")) == 5, 10, "the records of all five")
    assert len(guarded.records(source="192.0.2.66:1", reason="source_limit")) == 1


# reload


def test_fifty_reloads_under_load_lose_no_connection_and_touch_no_open_one(nginx: Nginx, tmp_path: Path) -> None:
    port, folder = free_port(), tmp_path / "conf"

    def table(turn: int) -> None:
        write(
            folder / "all.yaml",
            gateway_yaml(server(port, "TLS", "*.example.com", **PASS)),
            virtual("a", ["a.example.com"], tls=[sni(["a.example.com"], ("a.local", 50), ("b.local", 50))]),
            virtual("turn", [f"t{turn}.example.com"], tls=[sni([f"t{turn}.example.com"], "b.local")]),
            entry("a.local", nginx.ports["a"]),
            entry("b.local", nginx.ports["b"]),
        )

    table(0)
    with running(folder) as gateway, call(port) as old:
        running_through = tls_client("t0.example.com")
        old.sendall(hello_of(running_through))
        finish(old, running_through)
        done, failed, stop = [0], list[str](), threading.Event()

        def load() -> None:
            while not stop.is_set():
                try:
                    with call(port) as sock:
                        handshake(sock, "a.example.com")
                    done[0] += 1
                except (OSError, ssl.SSLError) as error:
                    failed.append(repr(error))

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(1, 51):
            table(turn)
            gateway.said("reloaded:", turn)
        stop.set()
        for thread in threads:
            thread.join()
        assert not failed and done[0] > 200
        running_through[0].write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        old.sendall(running_through[2].read())
        assert old.recv(100)
        assert curl("t50.example.com", port).returncode == 0 and curl("t0.example.com", port).returncode == 35


def test_gateway_api_s_routes_are_carried_as_istio_s_are(nginx: Nginx, raw: Raw, tmp_path: Path) -> None:
    """TLSRoute with weights of nothing and all, TCPRoute, and an exact listener beside a wildcard."""
    port, plain = free_port(), free_port()

    def made(kind: str, name: str, **spec: Any) -> dict[str, Any]:
        meta = {"name": name, "namespace": "web"}
        return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": meta, "spec": spec}

    def to(name: str, weight: int = 1) -> dict[str, Any]:
        return {"name": name, "port": 443, "weight": weight}

    def service(name: str, port: int) -> list[dict[str, Any]]:
        meta = {"name": name, "namespace": "web"}
        slice_ = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "ports": [{"name": "t", "port": port}]}
        labels = {"labels": {"kubernetes.io/service-name": name}}
        return [
            {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"name": "t", "port": 443}]}},
            {**slice_, "metadata": {**meta, **labels}, "endpoints": [{"addresses": ["127.0.0.1"]}]},
        ]

    tls = {"protocol": "TLS", "port": port, "tls": {"mode": "Passthrough"}}
    listeners = [{**tls, "name": "a", "hostname": "a.example.com"}, {**tls, "name": "w", "hostname": "*.example.com"}]
    parent = [{"name": "gw"}]
    write(
        tmp_path / "conf" / "all.yaml",
        made(
            "Gateway",
            "gw",
            gatewayClassName="any",
            listeners=[*listeners, {"name": "t", "protocol": "TCP", "port": plain}],
        ),
        made(
            "TLSRoute",
            "a",
            parentRefs=parent,
            hostnames=["a.example.com"],
            rules=[{"backendRefs": [to("a"), to("b", 0)]}],
        ),
        made("TLSRoute", "b", parentRefs=parent, hostnames=["*.example.com"], rules=[{"backendRefs": [to("b")]}]),
        made("TCPRoute", "t", parentRefs=parent, rules=[{"backendRefs": [to("raw")]}]),
        *service("a", nginx.ports["a"]),
        *service("b", nginx.ports["b"]),
        *service("raw", raw.port),
    )
    with running(tmp_path / "conf"):
        assert [curl(f"{name}.example.com", port).stdout[0] for name in "aaabc"] == list("aaabb")
        assert curl("a.example.org", port).returncode == 35
        before = len(raw.got)
        with call(plain) as sock:
            sock.sendall(b"any bytes")
            wait_for(lambda: raw.got[before:] == [b"any bytes"], 5, "the bytes at the backend")


def test_what_cannot_be_used_is_not_taken_up_and_ports_come_and_go(nginx: Nginx, tmp_path: Path) -> None:
    one, two, folder = free_port(), free_port(), tmp_path / "conf"

    def table(port: int) -> None:
        rules = virtual("a", ["*"], tls=[sni(["*"], "a.local")])
        write(
            folder / "a.yaml", gateway_yaml(server(port, "TLS", "*", **PASS)), rules, entry("a.local", nginx.ports["a"])
        )

    table(one)
    with running(folder) as gateway:
        (folder / "b.yaml").write_text("kind: [")
        gateway.said("not taken up, what was served before goes on")
        assert curl("a.example.com", one).returncode == 0
        (folder / "b.yaml").unlink()
        gateway.said("reloaded: ports")
        folder.rename(tmp_path / "away")
        gateway.said("not taken up", 2)
        assert curl("a.example.com", one).returncode == 0
        (tmp_path / "away").rename(folder)
        gateway.said("reloaded: ports", 2)
        table(two)
        gateway.said(f"reloaded: ports {two}")
        assert curl("a.example.com", two).returncode == 0
        with pytest.raises(ConnectionRefusedError):
            call(one)
