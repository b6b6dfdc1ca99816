"""outlierDetection and connectionPool, with real backends that fail or are slow."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import gateway as gw
from tests.echo_backend import EchoBackend
from tests.test_gateway_istio import load, said
from tests.test_gateway_istio_http import ROUTE, WORLD
from tests.test_gateway_istio_http import virtual as rules
from tests.test_gateway_sticky import backend, destination
from tproxy.cli import main
from tproxy.core.balance.limits import Caps, Keepalive
from tproxy.core.balance.outlier import Outlier
from tproxy.world.process import wait_for

Object = dict[str, Any]
FAILING = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4\r\n\r\nlost"
OFTEN = {"interval": "100ms", "baseEjectionTime": "600ms", "maxEjectionPercent": 100}


class Bad:
    """A backend whose answers are all errors, or none."""

    def __init__(self, answer: bytes = FAILING) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.answer, self.asked = answer, 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError), sock:
            while b"\r\n\r\n" in (sock.recv(65536) or b""):
                self.asked += 1
                if not self.answer:
                    return
                sock.sendall(self.answer)


@dataclass
class World:
    port: int
    metrics: int
    admin: int
    gateway: gw.Gateway

    def ask(self, path: str = "/") -> tuple[int, str, dict[str, str]]:
        """Status, the pod or the body, and headers."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as client:
            client.request("GET", path, headers={"host": "a.example"})
            answer = client.getresponse()
            text = answer.read().decode()
            body = str(json.loads(text)["pod"]) if text.startswith("{") else text
            return answer.status, body, {name.lower(): value for name, value in answer.getheaders()}

    def metric(self, name: str) -> dict[str, float]:
        """By the last label's value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=5) as page:
            text = page.read().decode()
        return {
            found[1]: float(found[2])
            for found in re.finditer(rf'^{name}\{{.*?"([^"]*)"\}} ([0-9.e+]+)$', text, re.MULTILINE)
        }

    def clusters(self) -> Object:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/clusters?format=json", timeout=5) as page:
            found: Object = json.load(page)
        return found


@contextmanager
def world(tmp_path: Path, ports: list[int], http: Object | None = None, **traffic: Any) -> Iterator[World]:
    port, metrics, admin = gw.free_port(), gw.free_port(), gw.free_port()
    if http is None:
        servers, routed = gw.server(port, "TCP", "*"), gw.virtual("web", ["*"], tcp=[gw.tcp(port, "web.test")])
    else:
        route = [{"route": [{"destination": {"host": "web.test"}}], **http}]
        servers, routed = gw.server(port, "HTTP", "*"), gw.virtual("web", ["a.example"], http=route)
    spec = {"host": "web.test", "trafficPolicy": traffic}
    meta = {"name": "web", "namespace": "shop"}
    policy = {"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": meta, "spec": spec}
    gw.write(tmp_path / "conf" / "a.yaml", gw.gateway_yaml(servers), routed, gw.entry("web.test", *ports), policy)
    options = "--metrics-port", str(metrics), "--admin-port", str(admin), "--access-log", "json"
    with gw.running(tmp_path / "conf", *options) as gateway:
        yield World(port, metrics, admin, gateway)


NO_RETRY = {"retries": {"attempts": 0}}


def test_an_endpoint_that_fails_is_left_out_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = Bad()
    with EchoBackend("good") as good:
        outlier = {**OFTEN, "consecutive5xxErrors": 3}
        with world(tmp_path, [good.port, bad.port], NO_RETRY, outlierDetection=outlier) as made:
            found = Counter(made.ask()[0] for _ in range(60))
            assert found[500] == 3
            where = f"127.0.0.1:{bad.port}"
            made.gateway.said(f"{where} is left out for 0.6 s: 3 failures in a row (consecutive_5xx); 1 of 2 are out")
            assert made.metric("tproxy_backend_ejections_total") == {"consecutive_5xx": 1}
            assert list(made.metric("tproxy_backend_endpoints_out").values()) == [1]
            assert {host["address"]["socket_address"]["port_value"]: host["health_status"] for host in hosts(made)} == {
                good.port: {"eds_health_status": "HEALTHY"},
                bad.port: {"eds_health_status": "HEALTHY", "failed_outlier_check": True},
            }
            assert main(["gateway", "endpoints", "--port", str(made.admin)]) == 1
            printed = capsys.readouterr().out
            assert re.search(rf"{where} +HEALTHY +FAILED +outbound\|443\|\|web.test\n", printed)
            assert re.search(rf":{good.port} +HEALTHY +OK +outbound", printed)
            made.gateway.said(f"{where} is asked again")
            assert main(["gateway", "endpoints", "--port", str(made.admin)]) == 0
            assert Counter(made.ask()[0] for _ in range(60))[500] == 3
            made.gateway.said(f"{where} is left out for 1.2 s")


def test_who_is_out_stays_out_when_the_configuration_is_read_again(tmp_path: Path) -> None:
    bad = Bad()
    with EchoBackend("good") as good:
        outlier = {**OFTEN, "consecutive5xxErrors": 1, "baseEjectionTime": "1h"}
        with world(tmp_path, [good.port, bad.port], NO_RETRY, outlierDetection=outlier) as made:
            wait_for(lambda: made.ask()[0] == 500, 5, "a failure", made.gateway.process)
            for number in range(1, 4):
                path = tmp_path / "conf" / "b.yaml"
                gw.write(path, gw._object("ServiceEntry", f"x{number}", "shop", **gw.entry("x.test", 1)["spec"]))
                made.gateway.said("reloaded", number)
            assert {made.ask()[0] for _ in range(20)} == {200}
            assert made.metric("tproxy_backend_ejections_total") == {"consecutive_5xx": 1}
            gw.write(tmp_path / "conf" / "a.yaml")
            made.gateway.said("reloaded", 4)
            assert made.metric("tproxy_backend_endpoints_out") == {}


def hosts(made: World) -> list[Object]:
    (cluster,) = made.clusters()["cluster_statuses"]
    assert cluster["name"] == "outbound|443||web.test"
    found: list[Object] = cluster["host_statuses"]
    return found


def test_endpoints_that_reset_or_are_not_there_count_as_gateway_errors(tmp_path: Path) -> None:
    broken, nobody = Bad(b""), gw.free_port()
    with EchoBackend("good") as good:
        outlier = {**OFTEN, "consecutiveGatewayErrors": 2, "consecutive5xxErrors": 0, "baseEjectionTime": "1h"}
        with world(tmp_path, [good.port, broken.port, nobody], NO_RETRY, outlierDetection=outlier) as made:
            for _ in range(60):
                made.ask()
            assert made.metric("tproxy_backend_ejections_total") == {"consecutive_gateway_failure": 2}
            assert {made.ask()[:2] for _ in range(10)} == {(200, "good")}


def test_where_all_are_left_out_nobody_is_asked(tmp_path: Path) -> None:
    bad = Bad()
    outlier = {**OFTEN, "consecutive5xxErrors": 1, "baseEjectionTime": "1h"}
    with world(tmp_path, [bad.port], NO_RETRY, outlierDetection=outlier) as made:
        assert [made.ask()[:2] for _ in range(2)] == [(500, "lost"), (503, "no healthy upstream")]
        assert bad.asked == 1
        line = wait_for(
            lambda: [one for one in logged(made) if one["response_flags"] == "UH"], 5, "a line", made.gateway.process
        )
        assert line


def logged(made: World) -> list[Object]:
    """The access log."""
    lines = [line for line in made.gateway.process.log.read_text().splitlines() if line.startswith("{")]
    return [one for one in map(json.loads, lines) if "response_flags" in one]


def test_connections_of_bytes_go_past_an_endpoint_that_refuses_them(tmp_path: Path) -> None:
    good, nobody = gw.Raw(echo=True), gw.free_port()
    outlier = {**OFTEN, "consecutive5xxErrors": 2, "baseEjectionTime": "1h"}
    with world(tmp_path, [good.port, nobody], outlierDetection=outlier) as made:
        for _ in range(30):
            assert echoed(made.port)
        assert made.metric("tproxy_backend_ejections_total") == {"consecutive_5xx": 1}


def test_a_backend_whose_tls_fails_counts_as_one_that_is_not_there(tmp_path: Path) -> None:
    plain = Bad()
    outlier = {**OFTEN, "consecutiveGatewayErrors": 2, "consecutive5xxErrors": 0, "baseEjectionTime": "1h"}
    tls = {"mode": "SIMPLE", "insecureSkipVerify": True}
    with world(tmp_path, [plain.port], tls=tls, outlierDetection=outlier) as made:
        assert not any(echoed(made.port) for _ in range(3))
        record = made.gateway.record(reason="no_backend")
        assert record["why"] == "all endpoints of outbound|443||web.test are left out for failing"
        assert made.metric("tproxy_backend_ejections_total") == {"consecutive_gateway_failure": 1}


def echoed(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        try:
            sock.sendall(b"hello")
            return sock.recv(100) == b"hello"
        except OSError:
            return False


def slow(made: World, count: int) -> list[tuple[int, str, dict[str, str]]]:
    """So many requests, hardly one after the other, each of which takes a second."""

    def late(number: int) -> tuple[int, str, dict[str, str]]:
        time.sleep(number * 0.07)
        return made.ask("/?delay=1000ms")

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(late, range(count)))


@pytest.mark.parametrize(
    ("pool", "served", "limit"),
    [
        ({"tcp": {"maxConnections": 1}, "http": {"http1MaxPendingRequests": 1}}, 2, "http1MaxPendingRequests"),
        ({"http": {"http2MaxRequests": 3}}, 3, "http2MaxRequests"),
    ],
)
def test_what_is_too_much_for_a_backend_is_answered_as_envoy_answers_it(
    tmp_path: Path, pool: Object, served: int, limit: str
) -> None:
    """istio.io, Circuit Breaking: response flag UO, x-envoy-overloaded."""
    with EchoBackend("good") as good, world(tmp_path, [good.port], NO_RETRY, connectionPool=pool) as made:
        answers = slow(made, 6)
        assert sorted(status for status, _, _ in answers) == [200] * served + [503] * (6 - served)
        for status, body, headers in answers:
            assert ("x-envoy-overloaded" in headers) == (status == 503)
            assert status == 200 or body.endswith("reset reason: overflow")
        lines = wait_for(lambda: logged(made) if len(logged(made)) == 6 else [], 5, "lines", made.gateway.process)
        refused = [line for line in lines if line["response_flags"] == "UO"]
        assert len(refused) == 6 - served
        assert {line["upstream_transport_failure_reason"] for line in refused} == {
            f"{limit} {next(iter(pool['http'].values()))} of outbound|443||web.test"
        }
        assert made.metric("tproxy_backend_overflows_total") == {limit: 6 - served}
        assert {made.ask()[0] for _ in range(4)} == {200}  # once it is over


def test_connections_to_all_endpoints_together_have_a_limit_but_each_may_have_one(tmp_path: Path) -> None:
    with EchoBackend("one") as one, EchoBackend("two") as two:
        pool = {"tcp": {"maxConnections": 3}}
        with world(tmp_path, [one.port, two.port], NO_RETRY, connectionPool=pool) as made:
            assert {status for status, _, _ in slow(made, 8)} == {200}
        assert one.connections + two.connections <= 3


def test_a_connection_serves_so_many_requests_and_no_more(tmp_path: Path) -> None:
    for http2 in ("DEFAULT", "UPGRADE"):
        pool = {"http": {"maxRequestsPerConnection": 4, "h2UpgradePolicy": http2}}
        (tmp_path / http2).mkdir()
        with EchoBackend("good") as good, world(tmp_path / http2, [good.port], NO_RETRY, connectionPool=pool) as made:
            assert {made.ask()[0] for _ in range(12)} == {200}
            assert good.connections == 3
            assert {seen.proto for seen in good.seen} == {"HTTP/2.0" if http2 == "UPGRADE" else "HTTP/1.1"}


def test_a_kept_connection_ends_when_it_was_idle_so_long(tmp_path: Path) -> None:
    pool = {"http": {"idleTimeout": "200ms"}}
    with EchoBackend("good") as good, world(tmp_path, [good.port], NO_RETRY, connectionPool=pool) as made:
        made.ask()
        wait_for(lambda: not good._writers, 5, "the end of the connection", made.gateway.process)


def test_retries_at_once_have_a_limit(tmp_path: Path) -> None:
    pool = {"http": {"maxRetries": 1}}
    again = {"retries": {"attempts": 3, "retryOn": "5xx", "perTryTimeout": "2s"}}
    bad = Bad()
    with world(tmp_path, [bad.port], again, connectionPool=pool) as made:
        assert {status for status, _, _ in slow(made, 8)} == {500}
        assert bad.asked < 8 * 4
        assert made.metric("tproxy_backend_overflows_total")["maxRetries"] > 0
        lines = wait_for(lambda: logged(made) if len(logged(made)) == 8 else [], 5, "lines", made.gateway.process)
        refused = {(line["response_code"], line["response_code_details"]) for line in lines if line["response_flags"]}
        assert refused == {(500, "via_upstream")}
        before = bad.asked
        assert made.ask()[0] == 500
        assert bad.asked == before + 4  # alone it has its tries


def test_connections_of_bytes_have_a_limit(tmp_path: Path) -> None:
    good = gw.Raw(echo=True)
    with world(tmp_path, [good.port], connectionPool={"tcp": {"maxConnections": 2}}) as made:
        with ExitStack() as stack:
            for _ in range(2):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", made.port), 10))
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
            assert not echoed(made.port)
            record = made.gateway.record(outcome="refused")
            assert (record["reason"], record["why"]) == ("backend_limit", "maxConnections 2 of outbound|443||web.test")
        wait_for(lambda: echoed(made.port), 5, "room", made.gateway.process)


def test_a_backend_that_does_not_answer_is_given_up_after_connect_timeout(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as stack:
        for _ in range(2):  # its queue
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        pool = {"tcp": {"connectTimeout": "300ms"}}
        with world(tmp_path, [full.getsockname()[1]], NO_RETRY, connectionPool=pool) as made:
            began = time.monotonic()
            assert made.ask()[0] == 503
            assert 0.25 < time.monotonic() - began < 3


def test_probes_of_kept_connections_are_as_asked_for(tmp_path: Path) -> None:
    keep = {"time": "47s", "interval": "13s", "probes": 3}
    with (
        EchoBackend("good") as good,
        world(tmp_path, [good.port], NO_RETRY, connectionPool={"tcp": {"tcpKeepalive": keep}}) as made,
    ):
        made.ask()
        timer = timer_of(good.port)
    assert 40 < timer <= 47


def timer_of(port: int) -> float:
    """Seconds until the first probe of the connection to this port, as /proc/net/tcp has it (timer 2, in jiffies)."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2] == f"0100007F:{port:04X}" and fields[3] == "01":
            kind, left = fields[5].split(":")
            assert kind == "02"
            return int(left, 16) / 100
    raise AssertionError("no such connection")


@pytest.mark.parametrize(
    ("pool", "caps", "http2"),
    [
        ("{tcp: {maxConnections: 5, connectTimeout: 30ms}}", Caps(connections=5, connect=0.03), False),
        ("{http: {h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 7}}", Caps(streams=7), True),
        ("{tcp: {tcpKeepalive: {time: 7200s, interval: 75s}}}", Caps(keepalive=Keepalive(7200, 75)), False),
        (
            "{http: {idleTimeout: 1h, maxRetries: 2, maxRequestsPerConnection: 1}}",
            Caps(0, 0, 0, 2, 1, idle=3600),
            False,
        ),
    ],
)
def test_limits_are_read(pool: str, caps: Caps, http2: bool) -> None:
    loaded = load(WORLD, destination(f"trafficPolicy: {{connectionPool: {pool}}}"), rules(ROUTE))
    assert not loaded.findings, said(loaded)
    found = backend(loaded.table.listeners["", 80])
    assert found.care is not None or caps == Caps()
    assert (found.care.caps if found.care else Caps(), found.http2) == (caps, http2)


def test_the_defaults_of_outlier_detection_are_istios() -> None:
    loaded = load(
        WORLD, destination("trafficPolicy: {outlierDetection: {splitExternalLocalOriginErrors: true}}"), rules(ROUTE)
    )
    found = backend(loaded.table.listeners["", 80])
    assert found.care is not None
    assert found.care.outlier == Outlier(5, 0, 5, True, 10.0, 30.0, 10, 0)


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("connectionPool: {}", "connection pool must have at least one field"),
        ("connectionPool: {http: {useClientProtocol: true}}", "useClientProtocol: DestinationRule shop/web"),
        ("connectionPool: {tcp: {maxConnectionDuration: 1h}}", "maxConnectionDuration: DestinationRule shop/web"),
        ("connectionPool: {tcp: {idleTimeout: 1h}}", "connections of bytes have no such end here"),
        ("connectionPool: {tcp: {connectTimeout: 0s}}", "expected 1ms or more"),
        ("connectionPool: {http: {maxRetrys: 1}}", "did you mean 'maxRetries'?"),
        ("connectionPool: {http: {http2MaxRequests: -1}}", "expected a number from 0"),
        ("outlierDetection: {consecutiveErrors: 7}", "is deprecated, use consecutiveGatewayErrors"),
        ("outlierDetection: {consecutiveLocalOriginFailures: 7}", "splitExternalLocalOriginErrors is set to false"),
        ("outlierDetection: {maxEjectionPercent: 101}", "expected a number from 0 to 100"),
        ("outlierDetection: {interval: 10}", "expected a duration"),
    ],
)
def test_what_is_wrong_with_limits_is_said(policy: str, why: str) -> None:
    assert why in said(load(WORLD, destination(f"trafficPolicy: {{{policy}}}"), rules(ROUTE)))


def test_explain_says_what_is_bounded_and_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = (
        "connectionPool: {tcp: {maxConnections: 5}}, outlierDetection: {consecutive5xxErrors: 7, baseEjectionTime: 15m}"
    )
    (tmp_path / "a.yaml").write_text(f"{WORLD}\n---{destination(f'trafficPolicy: {{{policy}}}')}---{rules(ROUTE)}")
    main(["gateway", "explain", str(tmp_path), "--host", "a.example"])
    printed = capsys.readouterr().out
    assert "endpoints: maxConnections 5\n" in printed
    assert "endpoints: left out for 900 s and more after 7 5xx in a row\n" in printed


def test_a_percentage_that_is_less_than_one_endpoint_is_said() -> None:
    entry, gateway = gw.entry("web.test", 1, 2, 3), gw.gateway_yaml(gw.server(80, "HTTP", "*"))
    virtual = gw.virtual("web", ["a.example"], http=[{"route": [{"destination": {"host": "web.test"}}]}])
    spec = {"host": "web.test", "trafficPolicy": {"outlierDetection": {"consecutive5xxErrors": 1}}}
    policy = gw._object("DestinationRule", "web", "shop", **spec)
    loaded = load("\n---\n".join(json.dumps(thing) for thing in (gateway, virtual, entry, policy)))
    assert "maxEjectionPercent 10 of 3 endpoints is less than one: none is ever left out; 34 would do" in said(loaded)
