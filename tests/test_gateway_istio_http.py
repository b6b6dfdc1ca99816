"""Istio's ``http`` rules, from YAML to what is done with a request."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.test_gateway_istio import load, said
from tproxy.core.http.filters import Retry, Timeouts
from tproxy.core.http.forwarded import Client
from tproxy.core.http.head import Head, Reply
from tproxy.core.http.plan import Answer, Forward, plan
from tproxy.core.http.routes import HttpTable
from tproxy.core.routes import HttpListener, Terminate, TlsListener, by_sni
from tproxy.gateway.compile import Loaded

WORLD = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw, namespace: shop}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {ports: [{name: grpc, port: 9000}, {name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: idle, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: api-1, namespace: shop, labels: {kubernetes.io/service-name: api}}
addressType: IPv4
ports: [{name: grpc, port: 9000}, {name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.2]}]
"""
WEB = {"destination": {"host": "web"}}
ROUTE: dict[str, Any] = {"route": [WEB]}


def virtual(*http: dict[str, Any], name: str = "web", **spec: Any) -> str:
    made = {"hosts": ["a.example"], "gateways": ["gw"], **spec, "http": list(http)}
    meta = {"name": name, "namespace": "shop"}
    return "\n" + yaml.safe_dump(
        {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": meta, "spec": made}
    )


def loaded_of(*http: dict[str, Any]) -> Loaded:
    return load(WORLD, virtual(*http))


def table(*texts: str) -> HttpTable:
    loaded = load(WORLD, *texts)
    assert not loaded.errors, said(loaded)
    found = loaded.table.listeners["", 80]
    assert isinstance(found, HttpListener)
    return found.table


def ask(made: HttpTable, target: str = "/", *headers: tuple[str, str], host: str = "a.example", **more: Any) -> Any:
    head = Head(more.pop("method", "GET"), "http", host, target, list(headers))
    return plan(made, head, more.pop("client", Client("192.0.2.7")), lambda: more.get("draw", 0.0), lambda: "id")


def one(http: dict[str, Any], target: str = "/", *headers: tuple[str, str], **more: Any) -> Any:
    return ask(table(virtual(http)), target, *headers, **more)


def test_headers_are_changed_at_rule_and_destination() -> None:
    change = {"request": {"set": {"X-A": "1", "Host": "b.example"}, "add": {"x-b": "2"}, "remove": ["X-C"]}}
    own = {"response": {"set": {"x-own": "1"}, "remove": ["server"]}}
    made = one({"route": [{**WEB, "headers": own}], "headers": change}, "/", ("x-c", "1"), ("x-a", "0"))
    found = dict(made.head.headers)
    assert (found["x-a"], found["x-b"], found.get("x-c"), made.head.authority) == ("1", "2", None, "b.example")
    assert ("x-own", "1") in made.respond(Reply(200, []), 1).headers


def test_the_backend_is_told_what_istio_tells_it() -> None:
    made = one(
        {"match": [{"uri": {"prefix": "/v1"}}], "route": [WEB], "rewrite": {"uri": "/"}, "timeout": "1.5s"}, "/v1/x"
    )
    assert made.head.target == "/x"
    assert dict(made.head.headers) == {
        "x-envoy-attempt-count": "1",
        "x-envoy-decorator-operation": "web.shop.svc.cluster.local:80/v1*",
        "x-envoy-expected-rq-timeout-ms": "1500",
        "x-envoy-external-address": "192.0.2.7",
        "x-envoy-original-path": "/v1/x",
        "x-forwarded-for": "192.0.2.7",
        "x-forwarded-proto": "http",
        "x-request-id": "id",
    }
    assert made.backend.name == "outbound|80||web.shop.svc.cluster.local"


@pytest.mark.parametrize(
    ("redirect", "status", "to"),
    [
        ({"uri": "/new"}, 301, "http://a.example:8080/new?q"),
        ({"authority": "b.example", "redirectCode": 307}, 307, "http://b.example/x/y?q"),
        ({"scheme": "https", "derivePort": "FROM_REQUEST_PORT"}, 301, "https://a.example:80/x/y?q"),
        ({"scheme": "https", "port": 443}, 301, "https://a.example/x/y?q"),
        ({"prefixRewrite": "/z", "redirectCode": 308}, 308, "http://a.example:8080/z/y?q"),
    ],
)
def test_redirects_as_istio_has_them(redirect: dict[str, Any], status: int, to: str) -> None:
    made = one({"match": [{"uri": {"prefix": "/x"}}], "redirect": redirect}, "/x/y?q", host="a.example:8080")
    assert (made.reply.status, dict(made.reply.headers)["location"]) == (status, to)


@pytest.mark.parametrize(
    ("match", "rewrite", "asked", "becomes"),
    [
        ({"uri": {"prefix": "/v1"}}, {"uri": "/"}, "/v1/x", "/x"),
        ({"uri": {"prefix": "/v1/"}}, {"uri": "/"}, "/v1/x", "/x"),
        ({"uri": {"prefix": "/v1"}}, {"uri": "/v2"}, "/v1x?q", "/v2x?q"),
        ({"uri": {"exact": "/v1"}}, {"uri": "/v2"}, "/v1?q", "/v2?q"),
        ({"uri": {"regex": "/v[0-9]+/.*"}}, {"uri": "/v2"}, "/v1/x", "/v2"),
        (
            {"uri": {"prefix": "/service"}},
            {"uriRegexRewrite": {"match": "^/service/([^/]+)(/.*)$", "rewrite": r"\2/instance/\1"}},
            "/service/foo/v1/api?q",
            "/v1/api/instance/foo?q",
        ),
    ],
)
def test_rewrites_as_istio_has_them(match: dict[str, Any], rewrite: dict[str, Any], asked: str, becomes: str) -> None:
    assert one({"match": [match], "route": [WEB], "rewrite": rewrite}, asked).head.target == becomes


@pytest.mark.parametrize(
    ("match", "target", "headers", "holds"),
    [
        ({"uri": {"prefix": "/V2"}, "ignoreUriCase": True}, "/v2x", [], True),
        ({"uri": {"regex": "/v[0-9]"}}, "/v12", [], False),
        ({"headers": {"X-User": {"regex": "a.*"}}}, "/", [("x-user", "abc")], True),
        ({"headers": {"x-user": {"exact": "a"}}}, "/", [], False),
        ({"withoutHeaders": {"x-user": {"exact": "a"}}}, "/", [], True),
        ({"withoutHeaders": {"x-user": {"exact": "a"}}}, "/", [("x-user", "a")], False),
        ({"withoutHeaders": {"x-user": {"regex": ".*"}}}, "/", [], False),
        ({"withoutHeaders": {"x-user": {}}}, "/", [("x-user", "b")], False),
        ({"queryParams": {"v": {"exact": "a b"}}}, "/?v=a%20b&v=c", [], True),
        ({"queryParams": {"v": {"prefix": "b"}}}, "/?v=abc", [], False),
        ({"authority": {"exact": "a.example:8080"}}, "/", [], False),
        ({"port": 80}, "/", [], True),
        ({"port": 81}, "/", [], False),
        ({"scheme": {"exact": "https"}}, "/", [], False),
        ({"gateways": ["other/gw"]}, "/", [], False),
    ],
)
def test_matches_as_istio_has_them(
    match: dict[str, Any], target: str, headers: list[tuple[str, str]], holds: bool
) -> None:
    assert isinstance(one({"match": [match], "route": [WEB]}, target, *headers), Forward) is holds


def test_an_unknown_host_is_503_nc_and_one_without_endpoints_uh() -> None:
    nobody = one({"route": [{"destination": {"host": "nobody"}}]})
    assert (nobody.reply.status, nobody.flags, nobody.body) == (503, "NC", b"")
    idle = one({"route": [{"destination": {"host": "idle"}}]})
    assert (idle.reply.status, idle.flags, idle.body) == (503, "UH", b"no healthy upstream")


def test_a_port_that_speaks_grpc_by_its_name_is_asked_by_http2() -> None:
    made = one({"route": [{"destination": {"host": "api", "port": {"number": 9000}}}]})
    assert made.backend.http2
    assert not one({"route": [{"destination": {"host": "api", "port": {"number": 80}}}]}).backend.http2


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (None, Retry(2, frozenset({"connect-failure", "refused-stream", "unavailable", "cancelled"}))),
        ({"attempts": 0}, None),
        (
            {"attempts": 3, "perTryTimeout": "2s", "retryOn": "5xx, 409,gateway-error", "backoff": "50ms"},
            Retry(3, frozenset({"5xx", "gateway-error"}), frozenset({409}), 2.0, 0.05),
        ),
    ],
)
def test_retries_are_istios_default_none_or_as_written(given: dict[str, Any] | None, made: Retry | None) -> None:
    found = one({"route": [WEB], **({"retries": given} if given else {}), "timeout": "10s"})
    assert (found.retry, found.timeouts) == (made, Timeouts(10.0))


def test_faults_mirrors_and_direct_responses() -> None:
    fault = {
        "delay": {"fixedDelay": "5s", "percentage": {"value": 10}},
        "abort": {"grpcStatus": "UNAVAILABLE", "percentage": {"value": 50}},
    }
    made = one({"route": [WEB], "fault": fault}, "/", ("content-type", "application/grpc"), draw=0.3)
    assert isinstance(made, Answer) and dict(made.reply.headers)["grpc-status"] == "14" and made.delay == 0.0
    assert one({"route": [WEB], "fault": fault}, draw=0.05).delay == 5.0
    mirrors = [
        {"destination": {"host": "api", "port": {"number": 80}}, "percentage": {"value": 50}},
        {"destination": {"host": "web"}},
    ]
    both = one({"route": [WEB], "mirrors": mirrors})
    assert [(each.name, head.authority) for each, head in both.mirrors] == [
        ("outbound|80||api.shop.svc.cluster.local", "a.example-shadow"),
        ("outbound|80||web.shop.svc.cluster.local", "a.example-shadow"),
    ]
    assert len(one({"route": [WEB], "mirrors": mirrors}, draw=0.5).mirrors) == 1
    said_at_once = one({"directResponse": {"status": 503, "body": {"bytes": "dGVh"}}})
    assert (said_at_once.reply.status, said_at_once.body) == (503, b"tea")


def test_cors_origins_may_be_prefixes_and_expressions() -> None:
    cors = {
        "allowOrigins": [{"regex": r"https://.*\.a\.example"}, {"prefix": "http://l"}],
        "allowMethods": ["GET"],
        "maxAge": "24h",
    }
    asked = [("origin", "https://x.a.example"), ("access-control-request-method", "GET")]
    made = one({"route": [WEB], "corsPolicy": cors}, "/", *asked, method="OPTIONS")
    assert dict(made.reply.headers)["access-control-max-age"] == "86400"
    foreign = [("origin", "https://evil.example"), asked[1]]
    assert isinstance(one({"route": [WEB], "corsPolicy": cors}, "/", *foreign, method="OPTIONS"), Forward)


def test_https_redirect_answers_for_every_host_of_its_server() -> None:
    """001-07: 301 even where no VirtualService is bound; the port in the Host stays, as Envoy has it."""
    made = load(WORLD.replace('hosts: ["*"]', 'hosts: ["*"], tls: {httpsRedirect: true}'), virtual({"route": [WEB]}))
    found = made.table.listeners["", 80]
    assert isinstance(found, HttpListener)
    for host in ("a.example", "other.example:8080"):
        answer = ask(found.table, "/x?q", host=host)
        assert (answer.reply.status, answer.body) == (301, b"")
        assert dict(answer.reply.headers)["location"] == f"https://{host}/x?q"


def test_rules_of_a_delegate_hold_where_both_match() -> None:
    root = virtual(
        {
            "match": [{"uri": {"prefix": "/api"}}],
            "delegate": {"name": "api"},
            "timeout": "3s",
            "headers": {"request": {"set": {"x-root": "1"}}},
        },
        {"route": [WEB]},
    )
    delegate = virtual(
        {
            "match": [{"uri": {"prefix": "/api/v1"}}],
            "route": [{"destination": {"host": "api", "port": {"number": 80}}}],
        },
        {"match": [{"uri": {"prefix": "/elsewhere"}}], "route": [WEB]},
        name="api",
        hosts=[],
        gateways=[],
    )
    made = table(root, delegate)
    found = ask(made, "/api/v1/x")
    assert found.backend.name == "outbound|80||api.shop.svc.cluster.local" and found.timeouts == Timeouts(3.0)
    assert dict(found.head.headers)["x-root"] == "1"
    assert ask(made, "/elsewhere").rule.name == "VirtualService shop/web http[1]"
    assert "has no match in common with" in said(load(WORLD, root, delegate))
    assert "there is no VirtualService shop/api without hosts" in said(load(WORLD, root))


HTTPS = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw, namespace: shop}
spec:
  servers:
  - {port: {number: 443, name: one, protocol: HTTPS}, hosts: [a.example], tls: {mode: SIMPLE, credentialName: both}}
  - {port: {number: 443, name: two, protocol: HTTPS}, hosts: [b.example], tls: {mode: SIMPLE, credentialName: both}}
  - {port: {number: 443, name: three, protocol: HTTPS}, hosts: [c.example], tls: {mode: SIMPLE, credentialName: own}}
"""


@pytest.mark.parametrize(
    ("host", "status"), [("a.example", 0), ("b.example", 0), ("c.example", 421), ("d.example", 404)]
)
def test_a_shared_connection_serves_whoever_has_the_same_tls_and_misdirects_the_rest(host: str, status: int) -> None:
    loaded = load(WORLD, HTTPS, virtual({"route": [WEB]}, hosts=["*"]))
    listener = loaded.table.listeners["", 443]
    assert isinstance(listener, TlsListener)
    chain = by_sni(listener, "a.example")
    assert isinstance(chain, Terminate) and isinstance(chain.inside, HttpTable)
    found = ask(chain.inside, host=host)
    assert (found.reply.status if isinstance(found, Answer) else 0) == status


@pytest.mark.parametrize(
    ("http", "why"),
    [
        (ROUTE | {"redirect": {"uri": "/"}}, "HTTP route cannot contain both route and redirect"),
        ({"redirect": {"uri": "/"}, "fault": {}}, "HTTP route cannot contain both fault and redirect"),
        ({"redirect": {"uri": "/"}, "rewrite": {"uri": "/"}}, "cannot contain both rewrite and redirect"),
        (ROUTE | {"directResponse": {"status": 200}}, "cannot contain both route and direct_response"),
        ({"redirect": {}}, "redirect must specify URI, authority, scheme, or port"),
        ({"redirect": {"uri": "/", "redirectCode": 200}}, "200 is not a valid redirect code, must be 3xx"),
        (ROUTE | {"rewrite": {"uri": "/", "uriRegexRewrite": {}}}, "one of URI or UriRegexRewrite"),
        (ROUTE | {"mirror": {"host": "web"}, "mirrors": [{}]}, "HTTP route cannot contain both mirror and mirrors"),
        (
            ROUTE | {"mirror": {"host": "web"}, "mirrorPercentage": {"value": 101}},
            "max value of 100 (it has 101.000000)",
        ),
        (ROUTE | {"fault": {}}, "HTTP fault injection must have an abort and/or a delay"),
        (ROUTE | {"fault": {"abort": {"httpStatus": 99}}}, "HTTP status 99 is not in range 200-599"),
        (ROUTE | {"headers": {"request": {"set": {":path": "x"}}}}, 'header cannot have ":" prefix'),
        (ROUTE | {"headers": {"request": {"set": {"x": "%REQUEST_ID%"}}}}, "the nearest is %STREAM_ID%"),
        (ROUTE | {"headers": {"request": {"set": {"x": "100%"}}}}, "%% is a percent sign"),
        (ROUTE | {"headers": {"request": {"set": {"host": "%REQ(y)%"}}}}, "a host cannot be made of command operators"),
        (
            ROUTE | {"headers": {"request": {"set": {"host": "x"}}}, "rewrite": {"authority": "y"}},
            "cannot be set multiple times",
        ),
        (ROUTE | {"headers": {"response": {"add": {"transfer-encoding": "x"}}}}, "cannot be changed by a rule"),
        (ROUTE | {"match": [{"uri": {"regex": "(?=a)"}}]}, "Istio uses RE2 style regex-based match"),
        (ROUTE | {"match": [{"uri": {"regex": "a" * 1025}}]}, "regex is too large, max length allowed is 1024"),
        (ROUTE | {"match": [{"sourceLabels": {"app": "x"}}]}, "sourceLabels: is not supported by this gateway"),
        (ROUTE | {"match": [{"headers": {"@request.auth.claims.a": {"exact": "b"}}}]}, "claims of tokens"),
        (ROUTE | {"retries": {"attempts": -1}}, "attempts cannot be negative"),
        (ROUTE | {"retries": {"attempts": 1, "retryOn": "5x"}}, "did you mean '5xx'?"),
        (ROUTE | {"timeout": "soon"}, "expected a duration such as 5s or 250ms"),
        (ROUTE | {"timeouts": "1s"}, "unknown field; did you mean 'timeout'?"),
        ({"match": [{}]}, "HTTP route, redirect or direct_response is required"),
    ],
)
def test_what_cannot_be_is_said_in_istios_words_with_file_and_line(http: dict[str, Any], why: str) -> None:
    loaded = loaded_of(http)
    assert any(why in finding.text and "conf.yaml:" in finding.text for finding in loaded.errors), said(loaded)
