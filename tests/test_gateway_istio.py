"""Istio's YAML to a table: what is served, what is skipped, and the sentence, file and line of what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import secret, self_signed
from tproxy.cli import main
from tproxy.core.hello import Hello
from tproxy.core.http.routes import Request
from tproxy.core.reason import Deny
from tproxy.core.routes import (
    Backend,
    HttpListener,
    Passthrough,
    ProxyProtocol,
    TcpListener,
    Terminate,
    TlsListener,
    by_hello,
    by_sni,
    choose,
)
from tproxy.gateway.compile import Loaded, compile_table
from tproxy.gateway.objects import Object, parse

GATEWAY = """
apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata:
  name: gw
  namespace: istio-system
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 443, name: tls, protocol: TLS}
    hosts: ["*.example.com", "shop/only.test", "wild.test"]
    tls: {mode: PASSTHROUGH}
  - port: {number: 443, name: https, protocol: https}
    hosts: [ended.example.com]
    tls: {mode: SIMPLE, credentialName: ended}
  - port: {number: 31400, name: tcp, protocol: TCP}
    hosts: ["*"]
"""
VIRTUAL = """
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: ["*.example.com", only.test]
  gateways: [istio-system/gw]
  tls:
  - match:
    - port: 443
      sniHosts: [a.example.com, only.test]
    route:
    - destination: {host: web, port: {number: 443}, subset: v1}
      weight: 75
    - destination: {host: web.shop.svc.cluster.local, port: {number: 443}}
      weight: 25
  tcp:
  - match:
    - port: 31400
    route:
    - destination: {host: echo.test}
---
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: ended, namespace: shop}
spec:
  hosts: [ended.example.com]
  gateways: [istio-system/gw]
  http:
  - route: [{destination: {host: web, port: {number: 443}}}]
"""
SERVICES = f"""
{json.dumps(secret("ended", "istio-system", *self_signed("ended.example.com")))}
---"""
SERVICES += """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  ports: [{name: tls, port: 443, targetPort: 8443}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: tls, port: 8443}]
endpoints:
- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: web-a}}
- {addresses: [10.0.0.2], targetRef: {kind: Pod, name: web-b}}
- {addresses: [10.0.0.3], conditions: {ready: false}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-a, namespace: shop, labels: {version: one}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  trafficPolicy: {proxyProtocol: {version: V2}}
  subsets: [{name: v1, labels: {version: one}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: echo, namespace: shop}
spec:
  hosts: [echo.test]
  ports: [{number: 2701, name: tcp, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: 10.0.0.9}]
"""


def load(*texts: str, labels: dict[str, str] | None = None) -> Loaded:
    found = list(parse("---".join(texts), "conf.yaml"))
    objects = [thing for thing in found if isinstance(thing, Object)]
    return compile_table(objects, [fault for fault in found if not isinstance(fault, Object)], labels or {})


def tls(loaded: Loaded, port: int = 443) -> TlsListener:
    listener = loaded.table.listeners["", port]
    assert isinstance(listener, TlsListener)
    return listener


def route_of(loaded: Loaded, name: str) -> str:
    """The rule's name, or why there is none."""
    match by_sni(tls(loaded), name):
        case Passthrough(_, route):
            return route.name
        case Deny(reason):
            return reason.value
        case Terminate():
            return "terminate"


def said(loaded: Loaded) -> str:
    return "\n".join(f"{finding.level}: {finding.text}" for finding in loaded.findings)


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha3"])
def test_every_version_means_the_same(version: str) -> None:
    text = (GATEWAY + "---" + VIRTUAL + "---" + SERVICES).replace("v1alpha3", version).replace("v1beta1", version)
    loaded = load(text)
    assert not loaded.findings
    assert route_of(loaded, "a.example.com") == "VirtualService shop/web tls[0]"


def test_subsets_weights_endpoints_and_policies_come_together() -> None:
    found = by_sni(tls(load(GATEWAY, VIRTUAL, SERVICES)), "a.example.com")
    assert isinstance(found, Passthrough) and found.route.where.startswith("conf.yaml:")
    one, both = found.route.backends
    assert [str(end) for end in one.endpoints] == ["10.0.0.1:8443"] and one.weight == 75
    assert [str(end) for end in both.endpoints] == ["10.0.0.1:8443", "10.0.0.2:8443"] and both.weight == 25
    assert one.proxy is both.proxy is ProxyProtocol.V2
    assert one.name == "outbound|443|v1|web.shop.svc.cluster.local"


def test_tcp_by_port_and_ended_names_stand_beside_passed_ones() -> None:
    loaded = load(GATEWAY, VIRTUAL, SERVICES)
    echo = loaded.table.listeners["", 31400]
    assert isinstance(echo, TcpListener) and echo.route is not None
    backend = choose(echo.route, 0.5)
    assert isinstance(backend, Backend) and str(backend.endpoints[0]) == "10.0.0.9:2701"
    assert route_of(loaded, "ended.example.com") == "terminate"


def test_a_route_gets_only_what_its_server_s_hosts_mean_too_and_only_from_its_namespace() -> None:
    loaded = load(GATEWAY, VIRTUAL, SERVICES)
    assert route_of(loaded, "only.test") == "VirtualService shop/web tls[0]"
    assert route_of(load(GATEWAY.replace("shop/only", "other/only"), VIRTUAL, SERVICES), "only.test") == "no_route"
    assert route_of(loaded, "b.example.com") == "no_route"
    narrow = load(GATEWAY.replace('"*.example.com"', "b.example.com"), VIRTUAL, SERVICES)
    assert route_of(narrow, "a.example.com") == "no_route"


def test_a_gateway_that_selects_other_pods_is_not_served() -> None:
    assert load(GATEWAY, VIRTUAL, SERVICES, labels={"istio": "ingressgateway", "x": "y"}).table.listeners
    assert not load(GATEWAY, VIRTUAL, SERVICES, labels={"istio": "egressgateway"}).table.listeners


def test_a_port_of_the_service_that_selects_this_pod_is_listened_to_at_its_target() -> None:
    own = """
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  ports: [{name: https, port: 443, targetPort: 8443}, {name: tcp, port: 31400, targetPort: tcp}]
"""
    loaded = load(GATEWAY, VIRTUAL, SERVICES, own, labels={"istio": "ingressgateway"})
    assert sorted(port for _, port in loaded.table.listeners) == [8443, 31400]
    assert tls(loaded, 8443).port == 443
    assert "spec.ports[1].targetPort: Service istio-system/istio-ingressgateway: is a name" in said(loaded)
    assert sorted(port for _, port in load(GATEWAY, own).table.listeners) == [443, 31400]
    taken = load(GATEWAY, own.replace("targetPort: tcp", "targetPort: 8443"), labels={"istio": "ingressgateway"})
    assert "port 31400 would be bound at 8443, where port 443 is; it is not served" in said(taken)
    assert [port for _, port in taken.table.listeners] == [8443]


def test_the_oldest_of_two_routes_for_a_name_gets_it_and_the_other_is_told() -> None:
    old = VIRTUAL.replace("name: web, name", 'name: zz, creationTimestamp: "2020-01-01T00:00:00Z", name')
    loaded = load(GATEWAY, VIRTUAL, old, SERVICES)
    assert route_of(loaded, "a.example.com") == "VirtualService shop/zz tls[0]"
    assert "a.example.com on port 443 is taken by VirtualService shop/zz tls[0]" in said(loaded)


def test_servers_that_cannot_share_a_port_are_skipped_whole_and_said_so() -> None:
    second = GATEWAY.replace("name: gw", "name: z").replace("number: 31400", "number: 443").replace("ended.", "other.")
    loaded = load(GATEWAY, second, VIRTUAL, SERVICES)
    assert "skipping server on gateway istio-system/z, duplicate host names: [*.example.com" in said(loaded)
    assert "skipping server on gateway istio-system/z: conflict: port 443 is TLS" in said(loaded)
    assert route_of(loaded, "other.example.com") == "terminate" and not loaded.errors


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ("number: 443, name: tls", "number: , name: tls", 10, "spec.servers[0].port.number: port is required"),
        ("protocol: TLS", "protocol: TLX", 10, "invalid protocol"),
        (
            "name: https, protocol",
            "name: tls, protocol",
            13,
            "port names in servers must be unique: duplicate name tls",
        ),
        ("    tls: {mode: PASSTHROUGH}\n", "", 10, "server must have TLS settings for HTTPS/TLS protocols"),
        ("{mode: SIMPLE, credentialName: ended}", "{mode: SIMPLE}", 15, "SIMPLE TLS requires a server certificate"),
        ("SIMPLE, cred", "ISTIO_MUTUAL, cred", 15, "ISTIO_MUTUAL TLS cannot have associated credentialName"),
        ("mode: SIMPLE", "mode: SIMPEL", 15, "did you mean 'SIMPLE'?"),
        ("mode: PASS", "mod: PASS", 12, "spec.servers[0].tls.mod: unknown field; did you mean 'mode'?"),
        ("[ended.example.com]", "[]", 14, "server config must contain at least one host"),
        ("[ended.example.com]", '["e.*.com"]', 14, "a wildcard is the whole first label"),
        (
            "sniHosts: [a.",
            "sniHosts: [a.c.test, a.",
            0,
            "is not a compatible subset of any of the virtual service hosts",
        ),
        (
            "    - port: 443\n      sniHosts",
            "    - destinationSubnets: [10.0.0.0/8]\n      sniHosts",
            0,
            "is not supported",
        ),
        ("weight: 75", "weight: -1", 0, "expected a number from 0"),
        ("      weight: 75\n", "", 0, ""),
        (
            "  gateways: [istio-system/gw]\n  tls",
            '  gateways: [mesh, gw]\n  hosts: ["*"]\n  tls',
            0,
            "stands here twice",
        ),
        ("resolution: STATIC", "resolution: DNS", 0, "only STATIC is supported"),
        ("address: 10.0.0.9", "address: ten", 0, "spec.endpoints[0].address"),
    ],
)
def test_what_is_wrong_is_said_with_file_line_and_field(old: str, new: str, line: int, why: str) -> None:
    text = "---".join((GATEWAY, VIRTUAL, SERVICES))
    assert old in text
    found = said(load(text.replace(old, new, 1)))
    assert why in found
    if line:
        assert f"conf.yaml:{line}: " in found


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "kind: Gateway",
        "- 1",
        "{kind: Gateway, kind: X}",
        "a: &x [*x]",
        "[" * 100_000,
        "- " * 100_000,
        "x: !!python/object:os.x {}",
    ],
)
def test_what_is_no_object_is_an_error_and_never_a_crash(text: str) -> None:
    loaded = load(text)
    assert loaded.errors and "error: conf.yaml:" in said(loaded)


def test_a_destination_that_is_not_there_is_a_warning_and_refuses_its_share() -> None:
    loaded = load(GATEWAY, VIRTUAL)
    assert not loaded.errors
    assert "web.shop.svc.cluster.local: there is no such Service or ServiceEntry" in said(loaded)
    found = by_sni(tls(loaded), "a.example.com")
    assert isinstance(found, Passthrough) and isinstance(choose(found.route, 0.1), Deny)


def test_a_list_as_kubectl_prints_it_is_its_items() -> None:
    item = json.dumps(next(iter(parse(GATEWAY, "x"))).body)  # type: ignore[union-attr]
    loaded = load(json.dumps({"apiVersion": "v1", "kind": "List", "items": [json.loads(item)]}))
    assert ("", 443) in loaded.table.listeners


def test_a_thousand_routes_are_read_in_a_few_seconds_and_found_at_once() -> None:
    import time

    many = "---".join(
        VIRTUAL.replace("web, name", f"v{n}, name").replace("a.example.com, only.test", f"n{n}.example.com")
        for n in range(1000)
    )
    began = time.process_time()
    loaded = load(GATEWAY, SERVICES, many)
    assert time.process_time() - began < 5
    assert route_of(loaded, "n999.example.com") == "VirtualService shop/v999 tls[0]"


def test_an_annotation_names_the_solver_of_challenges_in_the_gateway_s_own_namespace() -> None:
    here = GATEWAY.replace("namespace: istio-system", "namespace: shop").replace(
        "  name: gw\n", '  name: gw\n  annotations: {tproxy.dev/acme-tls-backend: "web:443"}\n'
    )
    hello = Hello("ended.example.com", ("acme-tls/1",), (0x304,), ())
    found = by_hello(tls(load(here, SERVICES)), hello)
    assert isinstance(found, Passthrough) and len(found.route.backends[0].endpoints) == 2
    wrong = said(load(here.replace("web:443", "web"), SERVICES))
    assert "metadata.annotations.tproxy.dev/acme-tls-backend: 'web': expected a port" in wrong


HTTP = """
apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: {name: coolstore-gateway, namespace: shop}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: [webapp.istioinaction.io]
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: webapp, namespace: shop}
spec:
  hosts: [webapp.istioinaction.io]
  gateways: [coolstore-gateway]
  http:
  - match:
    - uri: {prefix: /api}
      headers: {X-User: {}}
      method: {exact: GET}
    route: [{destination: {host: web, port: {number: 443}}}]
  - route: [{destination: {host: web, port: {number: 443}}}]
"""


def test_http_rules_are_known_by_host_path_and_header_and_catch_alls_come_last() -> None:
    """001-01: a Gateway's name without a namespace is the rule's own."""
    loaded = load(HTTP, SERVICES)
    found = loaded.table.listeners["", 80]
    assert isinstance(found, HttpListener) and not loaded.errors
    assert not loaded.findings
    asked = Request("webapp.istioinaction.io", "/apis", headers={"x-user": "me"})
    names = [
        routed.entry.rule.name[-7:]
        for request in (asked, replace(asked, path="/x"))
        if (routed := found.table.find(request))
    ]
    assert names == ["http[0]", "http[1]"]
    assert found.table.find(Request("other.test")) is None


def test_what_takes_everything_ends_its_object_and_stands_behind_those_of_others() -> None:
    everything = "  - route: [{destination: {host: web, port: {number: 443}}}]\n"
    first = HTTP.replace("  http:\n", f"  http:\n{everything}")
    second = HTTP.partition("---")[2].replace("name: webapp,", "name: younger,")
    loaded = load(first, second, SERVICES)
    assert "spec.http[1]: VirtualService shop/webapp: is never reached: http[0] takes everything (IST0130)" in said(
        loaded
    )
    found = loaded.table.listeners["", 80]
    assert isinstance(found, HttpListener)
    (_, entries) = next(found.table.hosts.items())
    names = [entry.rule.name.removeprefix("VirtualService shop/") for entry in entries]
    assert names == ["younger http[0]", "webapp http[0]", "younger http[1]"]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("uri: {prefix: /api}", 'uri: {prefix: ""}', '"uri": prefix string match should not be empty'),
        ("X-User", '":path"', 'header cannot have ":" prefix'),
        ("    route: [{", "    redirect: {uri: /}\n    route: [{", "HTTP route cannot contain both route and redirect"),
        ("    route: [{destination", "    rout: [{destination", "HTTP route, redirect or direct_response is required"),
    ],
)
def test_a_bad_http_rule_is_said_as_istio_says_it(old: str, new: str, why: str) -> None:
    assert why in said(load(HTTP.replace(old, new, 1), SERVICES))


# the command line


def tproxy(*argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["gateway", *argv])
    caught = capsys.readouterr()
    return code, caught.out + caught.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text("---".join((GATEWAY, VIRTUAL)))
    (tmp_path / "b.yml").write_text(SERVICES)
    (tmp_path / "README.md").write_text("not YAML: [")
    return tmp_path


def test_check_is_content_or_names_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tproxy("check", str(folder), capsys=capsys) == (0, "2 ports, 0 errors, 0 warnings\n")
    (folder / "c.yaml").write_text(GATEWAY.replace("name: gw", "name: other").replace("TCP", "UDP"))
    code, out = tproxy("check", str(folder), capsys=capsys)
    assert code == 1 and f"error: {folder}/c.yaml:16: spec.servers[2].port.protocol: 'UDP': invalid protocol" in out
    code, out = tproxy("check", str(folder), "--json", capsys=capsys)
    assert code == 1 and json.loads(out)[0]["level"] == "error"
    assert tproxy("check", str(folder / "none"), capsys=capsys)[0] == 2


def test_explain_names_the_rule_and_why_not_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = tproxy("explain", str(folder), "--sni", "a.example.com", capsys=capsys)
    assert code == 0 and f"passthrough a.example.com by VirtualService shop/web tls[0] ({folder}/a.yaml:" in out
    assert "not only.test (VirtualService shop/web tls[0]): a.example.com is another name" in out
    code, out = tproxy("explain", str(folder), "--sni", "a.exmple.com", capsys=capsys)
    assert code == 1 and "did you mean a.example.com?" in out
    code, out = tproxy("explain", str(folder), "--sni", "a.example.com", "--json", capsys=capsys)
    told: list[dict[str, Any]] = json.loads(out)
    assert told[0]["taken"]["backends"][0]["endpoints"] == ["10.0.0.1:8443"]


def test_explain_goes_on_from_the_port_to_the_request(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "http.yaml").write_text(HTTP)
    code, out = tproxy(
        "explain", str(folder), "--host", "webapp.istioinaction.io", "--path", "/api", "--port", "80", capsys=capsys
    )
    assert code == 0 and "http webapp.istioinaction.io by VirtualService shop/webapp http[1]" in out
    assert "http[0]): header x-user is None, not present" in out
    code, out = tproxy("explain", str(folder), "--host", "other.test", "--port", "80", capsys=capsys)
    assert code == 1 and "404: no HTTP rule holds for GET other.test/" in out


def test_explain_says_what_would_be_done_with_the_request(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite = "    rewrite: {uri: /v2}\n    timeout: 3s\n    route: [{destination"
    (folder / "http.yaml").write_text(HTTP.replace("    route: [{destination", rewrite))
    asked = ["--host", "webapp.istioinaction.io", "--port", "80", "--path", "/api/./x?q"]
    code, out = tproxy("explain", str(folder), *asked, "--header", "X-User: me", capsys=capsys)
    assert code == 0 and "shop/webapp http[0]" in out
    assert "sent to outbound|443||web.shop.svc.cluster.local as GET /v2/x?q of webapp.istioinaction.io" in out
    assert "header x-envoy-original-path: /api/x?q" in out and "within 3 s" in out
    (folder / "http.yaml").write_text(HTTP.replace("hosts: [webapp.istioinaction.io]\n---", "hosts: ['*']\n---"))
    code, out = tproxy("explain", str(folder), "--host", "other.test", "--port", "80", "--json", capsys=capsys)
    assert code == 1 and json.loads(out)[0]["done"][0] == "answered 404 (NR): no route is for host 'other.test'"


def test_listeners_are_listed_as_istioctl_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "http.yaml").write_text(HTTP)
    code, out = tproxy("listeners", str(folder), capsys=capsys)
    assert code == 0 and [line.split("  ")[0:1] + line.split()[1:4] for line in out.splitlines()[:3]] == [
        ["ADDRESS", "PORT", "MATCH", "DESTINATION"],
        ["0.0.0.0", "80", "ALL", "Route:"],
        ["0.0.0.0", "443", "SNI:", "a.example.com"],
    ]
    assert "Cluster: outbound|443|v1|web.shop.svc.cluster.local" in out


def test_routes_lists_every_rule_of_every_port(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = tproxy("routes", "--config", str(folder), capsys=capsys)
    assert code == 0 and [line.split()[:3] for line in out.splitlines()[1:]] == [
        ["443", "passthrough", "a.example.com"],
        ["443", "terminate", "ended.example.com"],
        ["443", "http", "ended.example.com"],
        ["443", "passthrough", "only.test"],
        ["31400", "tcp", "*"],
    ]


def test_001_12_a_port_without_a_number_is_named_with_file_and_line() -> None:
    """As the document's flattened YAML has it: ``number:`` and nothing behind it."""
    text = """
apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: {name: coolstore-gateway, namespace: shop}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port:
      number:
      name: http
      protocol: HTTP
    hosts: [webapp.istioinaction.io]
"""
    found = said(load(text))
    assert "spec.servers[0].port" in found and "number" in found, found
