"""HTTPRoute and GRPCRoute, from YAML to what is done with a request; also the conformance suite's own manifests."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.gateway import secret, self_signed
from tests.test_gateway_api import NS, suite
from tests.test_gateway_istio import load, said
from tproxy.core.http.filters import Retry, Timeouts
from tproxy.core.http.forwarded import Client
from tproxy.core.http.head import Head, Reply
from tproxy.core.http.plan import Answer, Forward, plan
from tproxy.core.http.routes import HttpTable
from tproxy.core.routes import HttpListener, Terminate, TlsListener, by_sni

WORLD = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: shop}
spec:
  gatewayClassName: any
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}, {name: h2c, port: 81, appProtocol: kubernetes.io/h2c}]}
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
ports: [{name: http, port: 8080}, {name: h2c, port: 8081}]
endpoints: [{addresses: [10.0.0.1]}]
"""
WEB = {"name": "web", "port": 80}
ROUTE: dict[str, Any] = {"backendRefs": [WEB]}


def route(*rules: dict[str, Any], kind: str = "HTTPRoute") -> str:
    spec = {"parentRefs": [{"name": "gw"}], "rules": list(rules)}
    meta = {"name": "r", "namespace": "shop"}
    made = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": meta, "spec": spec}
    return "\n" + yaml.safe_dump(made)


def ask(made: HttpTable, target: str = "/", *headers: tuple[str, str], host: str = "a.example", **more: Any) -> Any:
    head = Head(more.get("method", "GET"), "http", host, target, list(headers))
    return plan(made, head, more.get("client", Client("192.0.2.7")), lambda: more.get("draw", 0.0), lambda: "id")


def one(
    rule: dict[str, Any], target: str = "/", *headers: tuple[str, str], kind: str = "HTTPRoute", **more: Any
) -> Any:
    loaded = load(WORLD, route(rule, kind=kind))
    assert not loaded.errors, said(loaded)
    found = loaded.table.listeners["", 80]
    assert isinstance(found, HttpListener)
    return ask(found.table, target, *headers, **more)


def filters(**given: Any) -> dict[str, Any]:
    """One filter of each kind, by its field's name."""
    kinds = {"urlRewrite": "URLRewrite", "cors": "CORS"}
    return {"filters": [{"type": kinds.get(key, key[0].upper() + key[1:]), key: value} for key, value in given.items()]}


def test_filters_of_rules_and_backends_come_together() -> None:
    change = {
        "set": [{"name": "X-Set", "value": "a%b"}],
        "add": [{"name": "X-Add", "value": "2"}],
        "remove": ["X-Gone"],
    }
    own = filters(
        requestHeaderModifier={"set": [{"name": "x-own", "value": "1"}]}, urlRewrite={"hostname": "b.example"}
    )
    rule = {
        **filters(requestHeaderModifier=change, responseHeaderModifier={"remove": ["server"]}),
        "backendRefs": [{**WEB, **own}],
    }
    made = one(rule, "/", ("x-gone", "1"), ("x-add", "1"))
    found = dict(made.head.headers)
    assert (found["x-set"], found["x-own"], "x-gone" in found, made.head.authority) == ("a%b", "1", False, "b.example")
    assert [value for name, value in made.head.headers if name == "x-add"] == ["1", "2"]
    assert made.respond(Reply(200, [("server", "x")]), 0).headers == []


def test_mirrors_have_a_percentage_or_a_fraction_and_missing_ones_get_nothing() -> None:
    some = [{"backendRef": WEB, "percent": 20}, {"backendRef": WEB, "fraction": {"numerator": 1, "denominator": 2}}]
    rule = {**ROUTE, "filters": [{"type": "RequestMirror", "requestMirror": each} for each in some]}
    assert [len(one(rule, draw=draw).mirrors) for draw in (0.1, 0.3, 0.6)] == [2, 1, 0]
    assert one(rule).mirrors[0][1].authority == "a.example"
    missing = {**ROUTE, **filters(requestMirror={"backendRef": {"name": "none", "port": 80}})}
    assert one(missing).mirrors == ()


def test_a_backend_that_is_not_there_is_500_and_one_without_endpoints_503() -> None:
    both = {"backendRefs": [{"name": "none", "port": 80}, WEB]}
    assert one(both, draw=0.4).reply.status == 500
    assert isinstance(one(both, draw=0.6), Forward)
    assert one({"backendRefs": [{"name": "idle", "port": 80}]}).reply.status == 503
    assert one({}).reply.status == 500


def test_a_filter_that_is_not_known_is_not_skipped() -> None:
    unknown = {"filters": [{"type": "ExtensionRef", "extensionRef": {"group": "x", "kind": "Y", "name": "z"}}]}
    made = one({**ROUTE, **unknown})
    assert (made.reply.status, made.why) == (500, "filter Y z is not known to this gateway")
    assert one({"backendRefs": [{**WEB, **unknown}]}).reply.status == 500
    cors = filters(cors={"allowOrigins": ["*"]})
    assert one({"backendRefs": [{**WEB, **cors}]}).reply.status == 500


def test_timeouts_and_retries_are_read_and_zero_is_none() -> None:
    rule = {**ROUTE, "timeouts": {"request": "1m", "backendRequest": "500ms"}, "retry": {"codes": [500], "attempts": 3}}
    made = one(rule)
    assert made.timeouts == Timeouts(60.0, 0.5)
    words = frozenset({"connect-failure", "refused-stream", "reset"})
    assert made.retry == Retry(3, words, frozenset({500}), 0.5, 0.025)
    none = one({**ROUTE, "timeouts": {"backendRequest": "0s"}})
    assert (none.timeouts, none.retry) == (Timeouts(), None)


def test_a_service_may_say_that_it_speaks_http2_and_a_grpc_route_always_does() -> None:
    assert one({"backendRefs": [{"name": "web", "port": 81}]}).backend.http2
    assert not one(ROUTE).backend.http2
    assert one(ROUTE, kind="GRPCRoute").backend.http2


@pytest.mark.parametrize(
    ("match", "path", "holds"),
    [
        ({"method": {"service": "a.B", "method": "C"}}, "/a.B/C", True),
        ({"method": {"service": "a.B"}}, "/a.B/D", True),
        ({"method": {"service": "a.B"}}, "/a.BC/D", False),
        ({"method": {"method": "C"}}, "/x.Y/C", True),
        ({"method": {"method": "C"}}, "/x.Y/CC", False),
        ({"method": {"type": "RegularExpression", "service": "a[.]B", "method": "[CD]"}}, "/a.B/D", True),
        ({"headers": [{"name": "V", "value": "[12]", "type": "RegularExpression"}]}, "/a.B/D", False),
    ],
)
def test_methods_of_grpc(match: dict[str, Any], path: str, holds: bool) -> None:
    made = one(
        {**ROUTE, "matches": [match]}, path, ("content-type", "application/grpc"), kind="GRPCRoute", method="POST"
    )
    assert isinstance(made, Forward) is holds
    if not holds:
        assert dict(made.reply.headers)["grpc-status"] == "12"


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"matches": [{"path": {"value": "x"}}]}, "value must be an absolute path and start with '/'"),
        ({"matches": [{"path": {"value": "/a//b"}}]}, "must not contain '//'"),
        ({"matches": [{"path": {"value": "/(", "type": "RegularExpression"}}]}, "is no RE2 expression"),
        ({"matches": [{"headers": [{"name": "a b", "value": "x"}]}]}, "expected a header name"),
        ({"matches": [{"methd": "GET"}]}, "unknown field; did you mean 'method'?"),
        (filters(requestRedirect={}, urlRewrite={}), "RequestRedirect and URLRewrite cannot stand in one rule"),
        (filters(requestRedirect={"statusCode": 300}), "expected one of 301, 302, 303, 307, 308"),
        (filters(urlRewrite={"path": {"type": "ReplaceFullPath"}}), "replaceFullPath must be specified"),
        (
            {
                **filters(urlRewrite={"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}),
                "matches": [{"path": {"value": "/a", "type": "Exact"}}],
            },
            "exactly one PathPrefix match must be specified",
        ),
        (filters(requestMirror={"backendRef": WEB, "percent": 1, "fraction": {"numerator": 1}}), "Only one of percent"),
        (filters(cors={"allowOrigins": ["*", "https://a.example"]}), "AllowOrigins cannot contain '*' alongside"),
        (filters(cors={"allowOrigins": ["a.example"]}), "expected an origin such as https://a.example"),
        ({"filters": [{"type": "CORS"}]}, "filter.cors must be specified for CORS filter.type"),
        ({"timeouts": {"request": "1s", "backendRequest": "2s"}}, "backendRequest timeout cannot be longer"),
        ({"timeout": {}}, "unknown field; did you mean 'timeouts'?"),
    ],
)
def test_what_the_schema_refuses_is_an_error_with_file_and_line(rule: dict[str, Any], why: str) -> None:
    loaded = load(WORLD, route({**ROUTE, **rule}))
    assert any(why in finding.text and "conf.yaml:" in finding.text for finding in loaded.errors), said(loaded)


# the conformance suite's manifests, and what its tests expect of a request


def conformance(gateway: str, *manifests: str) -> HttpTable:
    """The table of one of the base Gateways."""
    _, loaded = suite(*manifests)
    found = next(listener for (address, _), listener in loaded.table.listeners.items() if address == gateway)
    assert isinstance(found, HttpListener)
    return found.table


def outcome(found: Answer | Forward) -> str:
    """The backend's name or the status."""
    return (
        str(found.reply.status)
        if isinstance(found, Answer)
        else found.backend.name.removeprefix(f"{NS}/").partition(":")[0]
    )


V1, V2, V3 = "infra-backend-v1", "infra-backend-v2", "infra-backend-v3"
SAME = "same-namespace"
ON_8080 = "same-namespace-with-http-listener-on-8080"
INTERSECTION = "httproute-hostname-intersection"
MATCHING = "httproute-listener-hostname-matching"
ISOLATION = "gateway-http-listener-isolation"
GRPC = "gateway_api_conformance.echo_basic.grpcecho.GrpcEcho"


@pytest.mark.parametrize(
    ("gateway", "manifest", "host", "path", "headers", "expected"),
    [
        (SAME, "httproute-path-match-order", "", "/match/exact/one", {}, V3),
        (SAME, "httproute-path-match-order", "", "/match/exact", {}, V2),
        (SAME, "httproute-path-match-order", "", "/match", {}, V1),
        (SAME, "httproute-path-match-order", "", "/match/prefix/one/any", {}, V2),
        (SAME, "httproute-path-match-order", "", "/match/prefix/any", {}, V1),
        (SAME, "httproute-path-match-order", "", "/match/any", {}, V3),
        (SAME, "httproute-matching-across-routes", "example.com", "/", {}, V1),
        (SAME, "httproute-matching-across-routes", "example.com", "/example", {"version": "one"}, V1),
        (SAME, "httproute-matching-across-routes", "example.com", "/v2", {}, V2),
        (SAME, "httproute-matching-across-routes", "example.com", "/v2/example", {"version": "one"}, V2),
        (SAME, "httproute-matching-across-routes", "example.com", "/", {"version": "two"}, V2),
        (SAME, "httproute-matching-across-routes", "example.net", "/v2", {}, V1),
        (SAME, "httproute-matching-across-routes", "example.net", "/", {"version": "two"}, V1),
        (INTERSECTION, INTERSECTION, "very.specific.com", "/s1", {}, V1),
        (INTERSECTION, INTERSECTION, "very.specific.com:1234", "/s3", {}, V3),
        (INTERSECTION, INTERSECTION, "non.matching.com", "/s1", {}, "404"),
        (INTERSECTION, INTERSECTION, "foo.specific.com", "/s3", {}, "404"),
        (INTERSECTION, INTERSECTION, "foo.bar.wildcard.io", "/s2", {}, V2),
        (INTERSECTION, INTERSECTION, "wildcard.io", "/s2", {}, "404"),
        (INTERSECTION, INTERSECTION, "one.two.anotherwildcard.io", "/s4", {}, V1),
        (MATCHING, MATCHING, "bar.com", "/", {}, V1),
        (MATCHING, MATCHING, "foo.bar.com", "/", {}, V2),
        (MATCHING, MATCHING, "x.y.bar.com", "/", {}, V3),
        (MATCHING, MATCHING, "foo.com", "/", {}, "404"),
        ("http-listener-isolation", ISOLATION, "bar.com", "/empty-hostname", {}, V1),
        ("http-listener-isolation", ISOLATION, "bar.example.com", "/empty-hostname", {}, "404"),
        ("http-listener-isolation", ISOLATION, "abc.foo.example.com", "/wildcard-example-com", {}, "404"),
        ("http-listener-isolation", ISOLATION, "abc.foo.example.com", "/abc-foo-example-com", {}, V1),
        (SAME, "httproute-omitted-backendrefs", "", "/omitted-no-forward", {}, "500"),
        (SAME, "httproute-omitted-backendrefs", "", "/empty-no-forward", {}, "500"),
        (SAME, "grpcroute-exact-method-matching", "", f"/{GRPC}/EchoTwo", {}, "grpc-infra-backend-v2"),
    ],
)
def test_conformance_of_routing(
    gateway: str, manifest: str, host: str, path: str, headers: dict[str, str], expected: str
) -> None:
    assert outcome(ask(conformance(gateway, manifest), path, *headers.items(), host=host)) == expected


SHARED = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: shop}
spec:
  gatewayClassName: any
  listeners:
  - {name: any, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}
  - {name: second, port: 443, protocol: HTTPS, hostname: second-example.org, tls: {certificateRefs: [{name: cert}]}}
  - {name: wild, port: 443, protocol: HTTPS, hostname: "*.wildcard.org", tls: {certificateRefs: [{name: cert}]}}
  - name: fourth
    port: 443
    protocol: HTTPS
    hostname: fourth-example.wildcard.org
    tls: {certificateRefs: [{name: cert}]}
"""


CERT = "\n" + yaml.safe_dump(secret("cert", "shop", *self_signed("example.org")))


def attached(section: str, *hostnames: str) -> str:
    made = yaml.safe_load(route(ROUTE).replace("name: r\n", f"name: {section}\n"))
    made["spec"] |= {"parentRefs": [{"name": "gw", "sectionName": section}], "hostnames": list(hostnames)}
    return "\n" + yaml.safe_dump(made)


@pytest.mark.parametrize(
    ("sni", "host", "status"),
    [
        ("example.org", "example.org", 200),
        ("example.org", "second-example.org", 421),
        ("example.org", "unknown-example.org", 404),
        ("second-example.org", "second-example.org", 200),
        ("second-example.org", "example.org", 421),
        ("second-example.org", "unknown-example.org", 421),
        ("third-example.wildcard.org", "third-example.wildcard.org", 200),
        ("third-example.wildcard.org", "fith-example.wildcard.org", 200),
        ("third-example.wildcard.org", "fourth-example.wildcard.org", 421),
        ("third-example.wildcard.org", "second-example.org", 421),
        ("third-example.wildcard.org", "unknown-example.org", 421),
        ("fourth-example.wildcard.org", "fourth-example.wildcard.org", 200),
        ("fourth-example.wildcard.org", "fith-example.wildcard.org", 421),
        ("unknown-example.org", "example.org", 200),
        ("unknown-example.org", "unknown-example.org", 404),
    ],
)
def test_a_request_for_another_listener_is_misdirected_and_one_for_nobody_is_not_found(
    sni: str, host: str, status: int
) -> None:
    """HTTPRouteHTTPSListenerDetectMisdirectedRequests, all of its rows."""
    routes = attached("any", "example.org"), attached("second"), attached("wild"), attached("fourth")
    loaded = load(WORLD, SHARED, CERT, *routes)
    listener = loaded.table.listeners["", 443]
    assert isinstance(listener, TlsListener) and not loaded.errors, said(loaded)
    chain = by_sni(listener, sni)
    assert isinstance(chain, Terminate) and isinstance(chain.inside, HttpTable)
    found = ask(chain.inside, host=host)
    assert (found.reply.status if isinstance(found, Answer) else 200) == status


@pytest.mark.parametrize(
    ("gateway", "path", "to"),
    [
        (SAME, "/scheme-nil-and-port-nil", "http://example.org/scheme-nil-and-port-nil"),
        (SAME, "/scheme-nil-and-port-8080", "http://example.org:8080/scheme-nil-and-port-8080"),
        (SAME, "/scheme-https-and-port-nil", "https://example.org/scheme-https-and-port-nil"),
        (SAME, "/scheme-https-and-port-8443", "https://example.org:8443/scheme-https-and-port-8443"),
        (ON_8080, "/scheme-nil-and-port-nil", "http://example.org:8080/scheme-nil-and-port-nil"),
        (ON_8080, "/scheme-nil-and-port-80", "http://example.org/scheme-nil-and-port-80"),
        (ON_8080, "/scheme-https-and-port-nil", "https://example.org/scheme-https-and-port-nil"),
    ],
)
def test_conformance_of_redirects_with_port_and_scheme(gateway: str, path: str, to: str) -> None:
    client = Client("::1", "http", 8080 if "8080" in gateway else 80)
    made = ask(conformance(gateway, "httproute-redirect-port-and-scheme"), path, client=client)
    assert (made.reply.status, dict(made.reply.headers)["location"]) == (302, to)


@pytest.mark.parametrize(
    ("path", "origin", "allowed"),
    [
        (
            "/cors-1",
            "https://www.foo.com",
            {"methods": "GET,OPTIONS", "headers": "x-header-1,x-header-2", "credentials": "true"},
        ),
        ("/cors-1", "https://xpto.www.bar.com", {"expose-headers": "x-header-3,x-header-4", "max-age": "3600"}),
        ("/cors-1", "https://foobar.com", None),
        ("/cors-1", "https://bar.com", None),
        ("/cors-2", "https://www.foo.com", {"methods": "PUT"}),
        ("/cors-wildcard-origin", "https://foobar.com:12345", {"methods": "PUT"}),
        (
            "/cors-wildcard-methods-headers",
            "https://other.foo.com",
            {"methods": "PUT", "headers": "x-q, x-r", "credentials": "true"},
        ),
    ],
)
def test_conformance_of_preflights(path: str, origin: str, allowed: dict[str, str] | None) -> None:
    asked = [
        ("origin", origin),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-q, x-r"),
    ]
    made = ask(conformance(SAME, "httproute-cors"), path, *asked, method="OPTIONS")
    found = dict(made.reply.headers)
    assert made.reply.status == 200
    assert found.get("access-control-allow-origin") == (origin if allowed is not None else None)
    for key, value in (allowed or {}).items():
        assert found.get(f"access-control-{key}", found.get(f"access-control-allow-{key}")) == value
