"""Clients that come back to their endpoint: consistentHash and sessionPersistence, with real backends."""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import gateway as gw
from tests.echo_backend import EchoBackend
from tests.test_gateway_balance import rule
from tests.test_gateway_istio import load, said
from tests.test_gateway_istio_http import ROUTE, WORLD
from tests.test_gateway_istio_http import virtual as rules
from tests.web import api_gateway, http_route, service
from tproxy.cli import main
from tproxy.core.balance.affinity import Affinity, By
from tproxy.core.routes import Backend, Balance, HttpListener

PODS = 4
Object = dict[str, Any]


@dataclass
class World:
    port: int
    pods: list[EchoBackend]

    def ask(self, path: str = "/", method: str = "GET", **headers: str) -> tuple[str, list[str]]:
        """Which pod answered, and the cookies that were set."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as client:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            client.request(method, path, headers={"host": "a.example", **sent})
            answer = client.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            return str(json.loads(body)["pod"]), answer.headers.get_all("set-cookie", [])

    def name(self, path: str = "/", **headers: str) -> str:
        return self.ask(path, **headers)[0]


@contextmanager
def pods(count: int = PODS) -> Iterator[list[EchoBackend]]:
    with ExitStack() as stack:
        yield [stack.enter_context(EchoBackend(f"web-{number}")) for number in range(count)]


@contextmanager
def hashing(tmp_path: Path, **balancer: Any) -> Iterator[World]:
    port = gw.free_port()
    with pods() as made:
        routes = [{"route": [{"destination": {"host": "web.test"}}]}]
        things = gw.gateway_yaml(gw.server(port, "HTTP", "*")), gw.virtual("web", ["a.example"], http=routes)
        entry = gw.entry("web.test", *(pod.port for pod in made))
        gw.write(tmp_path / "conf" / "a.yaml", *things, entry, rule(consistentHash=balancer))
        with gw.running(tmp_path / "conf"):
            yield World(port, made)


@pytest.mark.parametrize("algorithm", [{}, {"ringHash": {"minimumRingSize": 64}}, {"maglev": {"tableSize": 1009}}])
def test_requests_with_one_header_go_to_one_pod(tmp_path: Path, algorithm: Object) -> None:
    with hashing(tmp_path, httpHeaderName="X-User", **algorithm) as world:
        owners = {f"user{number}": world.name(x_user=f"user{number}") for number in range(64)}
        assert all(world.name(x_user=user) == owner for user, owner in owners.items())
        assert len(set(owners.values())) == PODS
        assert len({world.name() for _ in range(80)}) == PODS  # without it they go anywhere


def test_a_query_parameter_is_a_key(tmp_path: Path) -> None:
    with hashing(tmp_path, httpQueryParameterName="user") as world:
        owners = {number: world.name(f"/?x=1&user={number}") for number in range(16)}
        assert all(world.name(f"/other?user={number}") == owner for number, owner in owners.items())
        assert len(set(owners.values())) > 1


@pytest.mark.parametrize("bytes_", [b"%ff%ed%a0%80", b"%00", b"a" * 8000, b"%F0%9F%98%80"])
def test_whatever_bytes_a_key_has_it_is_one(tmp_path: Path, bytes_: bytes) -> None:
    with hashing(tmp_path, httpQueryParameterName="user") as world:
        request = b"GET /?user=" + bytes_ + b" HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n"
        found = set[bytes]()
        for _ in range(6):
            with socket.create_connection(("127.0.0.1", world.port), 10) as sock:
                sock.sendall(request)
                answer = b"".join(iter(lambda: sock.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200")
            found.add(answer[answer.index(b'"pod"') :][:16])
        assert len(found) == 1


def test_a_clients_address_is_a_key(tmp_path: Path) -> None:
    with hashing(tmp_path, useSourceIp=True) as world:
        assert len({world.name() for _ in range(12)}) == 1


def test_a_cookie_is_made_for_clients_without_one(tmp_path: Path) -> None:
    with hashing(tmp_path, httpCookie={"name": "user", "ttl": "90s", "path": "/shop"}) as world:
        found = Counter[str]()
        for _ in range(64):
            pod, cookies = world.ask()
            assert len(cookies) == 1
            made = re.fullmatch('user="([0-9a-f]{14})"; Max-Age=90; Path=/shop; HttpOnly', cookies[0])
            assert made is not None
            again = [world.ask(cookie=f"a=b; user={quote}{made[1]}{quote}") for quote in ("", '"')]
            assert again == [(pod, [])] * 2
            found[pod] += 1
        assert len(found) == PODS


def test_a_cookie_without_ttl_is_not_made_and_one_of_0s_ends_with_the_client(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with hashing(tmp_path / "a", httpCookie={"name": "user"}) as world:
        assert {tuple(world.ask()[1]) for _ in range(3)} == {()}
        assert len({world.name(cookie="user=me") for _ in range(8)}) == 1
    (tmp_path / "b").mkdir()
    with hashing(tmp_path / "b", httpCookie={"name": "user", "ttl": "0s"}) as world:
        assert re.fullmatch('user="[0-9a-f]{14}"; HttpOnly', world.ask()[1][0])


def test_keys_of_a_pod_that_is_gone_move_and_no_others(tmp_path: Path) -> None:
    with hashing(tmp_path, httpHeaderName="x-user") as world:
        before = {number: world.name(x_user=str(number)) for number in range(24)}
        world.pods[0].__exit__()
        after = {number: world.name(x_user=str(number)) for number in range(24)}
        assert {number for number in before if before[number] != after[number]} == {
            number for number, pod in before.items() if pod == "web-0"
        }


def test_connections_of_one_address_go_to_one_backend(tmp_path: Path) -> None:
    port, folder = gw.free_port(), tmp_path / "conf"
    backends = [gw.Raw(echo=True) for _ in range(4)]
    things = gw.gateway_yaml(gw.server(port, "TCP", "*")), gw.virtual("web", ["*"], tcp=[gw.tcp(port, "web.test")])
    things += gw.entry("web.test", *(backend.port for backend in backends)), rule(consistentHash={"useSourceIp": True})
    gw.write(folder / "a.yaml", *things)
    with gw.running(folder) as gateway:
        for number in range(8):
            with socket.create_connection(("127.0.0.1", port), 10) as sock:
                sock.sendall(b"hello")
            gateway.said('"outcome"', number + 1)
    assert sorted(len(backend.got) for backend in backends) == [0, 0, 0, 8]


def affinity(balancer: str, *more: str) -> Affinity | None:
    loaded = load(WORLD, destination(f"trafficPolicy: {{loadBalancer: {balancer}}}"), *more, rules(ROUTE))
    assert not loaded.findings, said(loaded)
    return backend(loaded.table.listeners["", 80]).affinity


def backend(listener: Any) -> Backend:
    assert isinstance(listener, HttpListener)
    return next(iter(listener.table.hosts.items()))[1][0].rule.backends[0]


def destination(spec: str) -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web, namespace: shop}}
spec: {{host: web, {spec}}}
"""


@pytest.mark.parametrize(
    ("balancer", "made"),
    [
        ("{consistentHash: {useSourceIp: true}}", (By.SOURCE, "", None, "")),
        ("{consistentHash: {httpHeaderName: ':authority'}}", (By.HEADER, ":authority", None, "")),
        ("{consistentHash: {httpCookie: {name: U, path: /x, ttl: 1m}, maglev: {}}}", (By.COOKIE, "U", 60.0, "/x")),
        ("{consistentHash: {httpQueryParameterName: q, minimumRingSize: 4096}}", (By.QUERY, "q", None, "")),
    ],
)
def test_keys_are_read(balancer: str, made: tuple[object, ...]) -> None:
    found = affinity(balancer)
    assert found is not None
    assert (found.by, found.name, found.ttl, found.path) == made


@pytest.mark.parametrize(
    ("hashed", "why"),
    [
        ("{httpCookie: {ttl: 1s}}", "name required for HttpCookie"),
        ("{httpCookie: {name: 'a b'}}", "expected a cookie's name"),
        ("{httpCookie: {name: a, path: '/;Domain=x'}}", "expected a path without ';'"),
        ("{httpHeaderName: x, useSourceIp: true}", "useSourceIp: stands beside httpHeaderName; one key can be given"),
        ("{useSourceIp: true, maglev: {tableSize: 100}}", "tableSize must be a prime number for maglev"),
        ("{useSourceIp: true, minimumRingSize: 9, maglev: {}}", "only one of MinimumRingSize or Maglev/Ringhash"),
        ("{}", "names no key"),
        ("{useSourceIp: true, ringHash: {minimumRingSize: 1000000}}", "minimumRingSize 1000000 is taken as 65537"),
        ("{httpHeadrName: x}", "unknown field; did you mean 'httpHeaderName'?"),
    ],
)
def test_what_is_wrong_with_a_hash_is_said(hashed: str, why: str) -> None:
    loaded = load(WORLD, destination(f"trafficPolicy: {{loadBalancer: {{consistentHash: {hashed}}}}}"), rules(ROUTE))
    assert why in said(loaded)


def test_a_ports_settings_inherit_nothing_and_a_subsets_go_before_them() -> None:
    """istio.io, TrafficPolicy.portLevelSettings; MergeTrafficPolicy."""
    balancer = "loadBalancer: {{simple: {}}}"
    port = f"portLevelSettings: [{{port: {{number: 80}}, {balancer.format('RANDOM')}}}]"
    both = f"trafficPolicy: {{{balancer.format('ROUND_ROBIN')}, {port}}}"
    assert read(both) is Balance.RANDOM
    assert read(both.replace("number: 80", "number: 81")) is Balance.ROUND_ROBIN
    assert read(f"{both}, subsets: [{{name: v1}}]", "v1") is Balance.RANDOM
    own = "trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}}"
    assert read(f"{both}, subsets: [{{name: v1, {own}}}]", "v1") is Balance.LEAST_REQUEST
    tls = "tls: {mode: SIMPLE, sni: a.example}"
    loaded = load(WORLD, destination(f"trafficPolicy: {{{tls}, {port}}}"), rules(ROUTE))
    assert "a port inherits nothing: it is spoken to in plaintext" in said(loaded)
    assert backend(loaded.table.listeners["", 80]).tls is None


def test_tools_say_by_what_an_endpoint_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pods() as made:
        things = conf(80, made, sticky("/", "web", sessionName="s"))
        gw.write(tmp_path / "conf" / "a.yaml", *things)
        main(["gateway", "explain", "--config", str(tmp_path / "conf"), "--host", "a.example"])
        assert "endpoint by the session in cookie s" in capsys.readouterr().out
    hashed = destination("trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}")
    (tmp_path / "conf" / "a.yaml").write_text(f"{WORLD}\n---{hashed}---{rules(ROUTE)}")
    main(["gateway", "explain", "--config", str(tmp_path / "conf"), "--host", "a.example"])
    assert "endpoint by consistent hash of header x-user" in capsys.readouterr().out
    main(["gateway", "routes", "--config", str(tmp_path / "conf"), "--json"])
    (line,) = json.loads(capsys.readouterr().out)
    assert line["backends"][0]["affinity"] == "consistent hash of header x-user"


def read(spec: str, subset: str = "") -> Balance:
    web = {"destination": {"host": "web", "port": {"number": 80}, **({"subset": subset} if subset else {})}}
    loaded = load(WORLD, destination(spec), rules({"route": [web]}))
    return backend(loaded.table.listeners["", 80]).balance


def test_weights_of_endpoints_count_in_a_hash() -> None:
    entry = gw.entry("web.test", 1, 2)
    entry["spec"]["endpoints"][1]["weight"] = 3
    gateway = gw.gateway_yaml(gw.server(80, "HTTP", "*"))
    virtual = gw.virtual("web", ["a.example"], http=[{"route": [{"destination": {"host": "web.test"}}]}])
    texts = [json.dumps(thing) for thing in (gateway, virtual, entry, rule(consistentHash={"useSourceIp": True}))]
    made = backend(load("\n---\n".join(texts)).table.listeners["", 80]).affinity
    assert made is not None
    shares = Counter(made.ring.first(place << 51).port for place in range(2**13))
    assert 2.4 < shares[2] / shares[1] < 3.7


# -- sessions ---------------------------------------------------------------------------------------------------------

SECRET = {"key": base64.b64encode(b"a key that nobody knows").decode()}
SHARED = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "tproxy-session-key", "namespace": "istio-system"},
    "data": SECRET,
}


def sticky(path: str, *services: str, weights: tuple[int, ...] = (), **session: Any) -> Object:
    refs = [{"name": name, "port": 80} for name in services]
    for ref, weight in zip(refs, weights, strict=False):
        ref["weight"] = weight
    match = [{"path": {"type": "PathPrefix", "value": path}}]
    return {"matches": match, "backendRefs": refs, "sessionPersistence": session}


def conf(port: int, made: list[EchoBackend], *routed: Object) -> list[Object]:
    things = api_gateway({"name": "http", "port": port, "protocol": "HTTP"})
    things += service("web", {"http": 80}, *(pod.port for pod in made[:3]))
    things += service("new", {"http": 80}, made[3].port)
    return [*things, http_route("r", ["a.example"], *routed)]


@contextmanager
def sessions(tmp_path: Path, *routed: Object, shared: bool = True) -> Iterator[tuple[World, gw.Gateway]]:
    port = gw.free_port()
    with pods() as made:
        things = conf(port, made, *routed)
        gw.write(tmp_path / "conf" / "a.yaml", *things, *([SHARED] if shared else []))
        with gw.running(tmp_path / "conf") as gateway:
            yield World(port, made), gateway


def test_a_session_stays_with_its_pod_and_its_cookie_says_nothing_of_it(tmp_path: Path) -> None:
    """GEP-1619, conformance tests: simple cookie, session lifetime, scoped to the route rule."""
    with sessions(tmp_path, sticky("/a", "web", sessionName="s"), sticky("/b", "web")) as (world, gateway):
        firsts = [world.ask("/a") for _ in range(40)]
        assert len({pod for pod, _ in firsts}) == 3
        for pod, (cookie,) in firsts:
            assert re.fullmatch("s=[A-Za-z0-9_-]{43}; Path=/a; HttpOnly; SameSite=Strict", cookie)
            token = cookie.partition(";")[0]
            assert [world.ask("/a/x", cookie=f"x=y; {token}") for _ in range(4)] == [(pod, [])] * 4
            assert world.ask("/b", cookie=token)[1] != []  # no session of that rule
        assert re.match("tproxy-session-[0-9a-f]{8}=", world.ask("/b")[1][0])
        assert "sessions end with this process" not in gateway.process.log.read_text()


def test_what_is_no_cookie_of_ours_begins_a_session_among_the_rules_endpoints(tmp_path: Path) -> None:
    with sessions(tmp_path, sticky("/", "web", sessionName="s"), shared=False) as (world, gateway):
        gateway.said("sessions end with this process, and other replicas do not know them: Secret istio-system/")
        for value in ("", "x", "127.0.0.1:1", "A" * 43, "%00", "A" * 4000, base64.b64encode(b"127.0.0.1:22").decode()):
            pod, cookies = world.ask(cookie=f"s={value}")
            assert pod in {"web-0", "web-1", "web-2"}
            assert len(cookies) == 1


def test_a_session_is_kept_by_a_header_where_that_is_asked_for(tmp_path: Path) -> None:
    with sessions(tmp_path, sticky("/", "web", type="Header", sessionName="X-Session")) as (world, _):
        with closing(http.client.HTTPConnection("127.0.0.1", world.port, timeout=10)) as client:
            client.request("GET", "/", headers={"host": "a.example"})
            answer = client.getresponse()
            pod, token = json.loads(answer.read())["pod"], answer.headers["x-session"]
        assert [world.ask(x_session=token) for _ in range(6)] == [(pod, [])] * 6


def test_a_session_outlives_weights_reloads_and_the_process_but_not_its_pod(tmp_path: Path) -> None:
    port, folder = gw.free_port(), tmp_path / "conf"
    with pods() as made:
        world = World(port, made)
        gw.write(folder / "a.yaml", *conf(port, made, sticky("/", "web", "new", weights=(0, 1))), SHARED)
        with gw.running(folder):
            pod, (cookie,) = world.ask()
            assert pod == "web-3"
            token = cookie.partition(";")[0]
        gw.write(folder / "a.yaml", *conf(port, made, sticky("/", "web", "new", weights=(1, 0))), SHARED)
        with gw.running(folder) as gateway:
            assert [world.ask(cookie=token) for _ in range(4)] == [("web-3", [])] * 4
            assert world.name() != "web-3"
            gw.write(folder / "a.yaml", *conf(port, [*made[:3], made[0]], sticky("/", "web", "new")), SHARED)
            gateway.said("reloaded")
            again, cookies = world.ask(cookie=token)
            assert again != "web-3"
            assert len(cookies) == 1


def test_workers_know_each_others_sessions(tmp_path: Path) -> None:
    port = gw.free_port()
    with pods() as made:
        gw.write(tmp_path / "conf" / "a.yaml", *conf(port, made, sticky("/", "web")))
        process = gw.started(tmp_path / "conf", "--workers", "2")
        try:
            gw.Gateway(tmp_path / "conf", process).said("ready: ports", 2)
            world = World(port, made)
            pod, (cookie,) = world.ask()
            token = cookie.partition(";")[0]
            assert [world.ask(cookie=token) for _ in range(20)] == [(pod, [])] * 20  # each on a connection of its own
            assert process.stop() == 0
        finally:
            process.kill()


def test_a_session_goes_on_elsewhere_when_its_pod_cannot_be_reached(tmp_path: Path) -> None:
    with sessions(tmp_path, sticky("/", "web")) as (world, _):
        pod, (cookie,) = world.ask()
        world.pods[int(pod[-1])].__exit__()
        other, (moved,) = world.ask(cookie=cookie.partition(";")[0])
        assert other != pod
        assert [world.ask(cookie=moved.partition(";")[0]) for _ in range(4)] == [(other, [])] * 4


def test_a_permanent_cookie_says_when_it_ends(tmp_path: Path) -> None:
    given = {"absoluteTimeout": "5m", "cookieConfig": {"lifetimeType": "Permanent"}}
    with sessions(tmp_path, sticky("/", "web", **given)) as (world, _):
        assert re.search("; Max-Age=300; Expires=[A-Z][a-z]{2}, [0-9]{2} .* GMT; Path=/; HttpOnly", world.ask()[1][0])


@pytest.mark.parametrize(
    ("session", "why"),
    [
        ({"cookieConfig": {"lifetimeType": "Permanent"}}, "AbsoluteTimeout must be specified when cookie lifetimeType"),
        ({"type": "Header", "cookieConfig": {}, "sessionName": "x"}, "cookieConfig can only be set with type Cookie"),
        ({"type": "Query"}, "expected one of Cookie, Header"),
        ({"sessionName": "a;b"}, "expected a cookie's name"),
        ({"sessionName": "Connection", "type": "Header"}, "cannot be changed by a rule"),
        ({"absoluteTimeout": "0s"}, "expected more than 0s"),
        ({"idleTimout": "1s"}, "did you mean 'idleTimeout'?"),
    ],
)
def test_what_is_wrong_with_a_session_is_said(session: Object, why: str) -> None:
    things = [*api_gateway({"name": "http", "port": 80, "protocol": "HTTP"}), *service("web", {"http": 80}, 1)]
    things.append(http_route("r", ["a.example"], sticky("/", "web", **session)))
    assert why in said(load("\n---\n".join(json.dumps(thing) for thing in things)))
