"""``tproxy gateway check`` on YAML that is almost right, as people bring it: where it is wrong, what was meant."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway import self_signed
from tproxy.cli import main
from tproxy.gateway.compile import compile_table
from tproxy.gateway.objects import from_document

ISTIO = """apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: istio-system}
spec:
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [shop.example.com]
    tls: {mode: SIMPLE, credentialName: shop-cert}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: shop}
spec:
  hosts: [shop.example.com]
  gateways: [istio-system/edge]
  http:
  - route: [{destination: {host: cart, port: {number: 8080}}}]
"""
API = """apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: infra}
spec:
  gatewayClassName: tproxy
  listeners:
  - name: https
    port: 443
    protocol: HTTPS
    tls: {certificateRefs: [{name: shop-cert}]}
    allowedRoutes: {namespaces: {from: All}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop, namespace: shop}
spec:
  parentRefs: [{name: edge, namespace: infra, sectionName: https}]
  hostnames: [shop.example.com]
  rules:
  - backendRefs: [{name: cart, port: 8080}]
"""
SERVICE = """apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 8080}]}
"""
CERT, KEY = (base64.b64encode(each).decode() for each in self_signed("shop.example.com"))
SECRET = """apiVersion: v1
kind: Secret
metadata: {{name: shop-cert, namespace: {0}}}
data: {{tls.crt: {1}, tls.key: {2}}}
"""


class Folder:
    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self._capsys = path, capsys

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def check(self, *options: str) -> tuple[int, list[str]]:
        code = main(["gateway", "check", str(self.path), *options])
        return code, self._capsys.readouterr().out.replace(f"{self.path}/", "").splitlines()


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Folder]:
    made = Folder(tmp_path, capsys)
    made.write("service.yaml", SERVICE)
    made.write("secret.yaml", SECRET.format("istio-system", CERT, KEY))
    yield made


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "host: cart",
            "host: catr",
            "warning: a.yaml:17: spec.http[0].route[0].destination.host: VirtualService shop/shop: "
            "catr.shop.svc.cluster.local: there is no such Service or ServiceEntry; "
            "did you mean 'cart'? connections to it are refused",
        ),
        ("number: 8080", "number: 80", "has no port 80; it has 8080; connections to it are refused"),
        ("name: shop, namespace: shop", "name: shop", "did you mean 'cart.shop.svc.cluster.local'?"),
        (
            "shop-cert",
            "shop-crt",
            "warning: a.yaml:8: spec.servers[0].tls.credentialName: Gateway istio-system/edge: Secret shop-crt "
            "does not exist in namespace istio-system (IST0101); did you mean 'shop-cert'? TLS handshakes for it are "
            "refused",
        ),
        (
            "[istio-system/edge]",
            "[edge]",
            "warning: a.yaml:15: spec.gateways: VirtualService shop/shop: there is no Gateway shop/edge (IST0101); "
            "did you mean 'istio-system/edge'?",
        ),
        ("[istio-system/edge]", "[istio-system/egde]", "did you mean 'istio-system/edge'?"),
        (
            "credentialName",
            "credentailName",
            "error: a.yaml:8: spec.servers[0].tls.credentailName: unknown field; did you mean 'credentialName'?",
        ),
        (
            "kind: VirtualService",
            "kind: VirtualServices",
            "warning: a.yaml:11: kind: VirtualServices shop/shop: is not read by this gateway; Gateway, "
            "VirtualService, DestinationRule, ServiceEntry are; did you mean 'VirtualService'?",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: Gateway",
            "apiVersion: networking.istio.io.v1\nkind: Gateway",
            "warning: a.yaml:1: apiVersion: Gateway istio-system/edge: is not read from the group core, but from "
            "gateway.networking.k8s.io and networking.istio.io; did you mean 'networking.istio.io'?",
        ),
        (
            "protocol: HTTPS",
            "protocol: TLS",
            "warning: a.yaml:6: spec.servers[0]: Gateway istio-system/edge: no VirtualService tcp route is bound to "
            "port 443 and its hosts; tls routes are for PASSTHROUGH",
        ),
        ("    hosts: ", "\thosts: ", "error: a.yaml:7: is not YAML: found character that cannot start any token"),
        (
            "hosts: [shop.example.com]\n    tls",
            "hosts: {{ .Values.hosts }}\n    tls",
            "error: a.yaml:7: spec.servers[0].hosts: expected plain keys; a template has to be rendered first",
        ),
    ],
)
def test_istios_yaml_that_is_almost_right_is_told_what_was_meant(folder: Folder, old: str, new: str, line: str) -> None:
    folder.write("a.yaml", ISTIO)
    assert folder.check() == (0, ["1 port, 0 errors, 0 warnings"])
    folder.write("a.yaml", ISTIO.replace(old, new))
    code, lines = folder.check()
    assert code == ("error: " in line) and any(line in each for each in lines), "\n".join(lines)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "{name: edge, namespace: infra, s",
            "{name: edge, s",
            "warning: a.yaml:17: spec.parentRefs: HTTPRoute shop/shop: no parent is a Gateway that is served here: "
            "Gateway shop/edge; did you mean 'Gateway infra/edge'?",
        ),
        ("sectionName: https", "sectionName: tls", "no listener has that sectionName and port; there are https (443)"),
        (
            "{name: cart, port",
            "{name: catr, port",
            "warning: a.yaml:20: spec.rules[0].backendRefs[0]: HTTPRoute shop/shop: ResolvedRefs is False: "
            "BackendNotFound: Service shop/catr does not exist; did you mean 'cart'?",
        ),
        (
            "port: 8080",
            "port: 80",
            "warning: a.yaml:20: spec.rules[0].backendRefs[0]: HTTPRoute shop/shop: cart.shop.svc.cluster.local: "
            "has no port 80; it has 8080; requests for it are refused",
        ),
        (
            "{name: cart, port",
            "{name: cart, namespace: pay, port",
            "no ReferenceGrant permits Service pay/cart: none in pay is from HTTPRoute of shop to Service",
        ),
        ("shop-cert", "shop-crt", "Secret infra/shop-crt does not exist; did you mean 'shop-cert'?"),
        (
            "{name: shop-cert}",
            "{name: shop-cert, namespace: shop}",
            "no ReferenceGrant permits Secret shop/shop-cert: none in shop is from Gateway of infra to Secret",
        ),
        (
            "  - backendRefs: [{name: cart, port: 8080}]",
            "  - filters: [{type: RequestRedirct}]",
            "warning: a.yaml:20: spec.rules[0]: HTTPRoute shop/shop: filter 'RequestRedirct' is not known to this "
            "gateway; did you mean 'RequestRedirect'? its requests are answered 500",
        ),
        (
            "  hostnames: [shop",
            "  hostname: [shop",
            "error: a.yaml:18: spec.hostname: unknown field; did you mean 'hostnames'?",
        ),
        ("sectionName", "sectionNam", "spec.parentRefs[0].sectionNam: unknown field; did you mean 'sectionName'?"),
        (
            "{name: shop-cert}",
            "{name: shop-cert, namespce: a}",
            "certificateRefs[0].namespce: unknown field; did you mean",
        ),
        ("  listeners:", "  listener: []\n  listeners:", "error: a.yaml:6: spec.listener: unknown field; did you mean"),
        (
            "gateway.networking.k8s.io/v1\nkind: HTTPRoute",
            "networking.k8s.io/v1\nkind: HTTPRoute",
            "did you mean 'gateway.networking.k8s.io'?",
        ),
    ],
)
def test_gateway_apis_yaml_that_is_almost_right_is_told_what_was_meant(
    folder: Folder, old: str, new: str, line: str
) -> None:
    folder.write("secret.yaml", SECRET.format("infra", CERT, KEY))
    folder.write("a.yaml", API)
    assert folder.check() == (0, ["1 port, 0 errors, 0 warnings"])
    folder.write("a.yaml", API.replace(old, new))
    code, lines = folder.check()
    assert code == ("unknown field" in line) and any(line in each for each in lines), "\n".join(lines)


def test_a_grant_with_a_misspelt_name_grants_nothing(folder: Folder) -> None:
    """Without a name it would be for every Service."""
    folder.write("secret.yaml", SECRET.format("infra", CERT, KEY))
    folder.write("service.yaml", SERVICE.replace("namespace: shop", "namespace: pay"))
    folder.write("a.yaml", API.replace("{name: cart, port", "{name: cart, namespace: pay, port"))
    source = "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}"
    grant = (
        "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: pay}\n"
        f'spec: {{from: [{source}], to: [{{group: "", kind: Service, name: cart}}]}}\n'
    )
    folder.write("g.yaml", grant)
    assert folder.check() == (0, ["1 port, 0 errors, 0 warnings"])
    folder.write("g.yaml", grant.replace("name: cart", "nam: cart"))
    code, lines = folder.check()
    assert code == 1 and "error: g.yaml:4: spec.to[0].nam: unknown field; did you mean 'name'?" in lines
    assert any("RefNotPermitted" in line for line in lines)


def test_an_error_of_a_route_is_told_once(folder: Folder) -> None:
    folder.write("secret.yaml", SECRET.format("infra", CERT, KEY))
    folder.write(
        "a.yaml", API.replace("  - backendRefs", "  - matches: [{path: {type: Prefix, value: /}}]\n    backendRefs")
    )
    code, lines = folder.check()
    assert code == 1 and len([line for line in lines if "'Prefix'" in line]) == 1


def test_a_secret_that_lies_beside_its_gateway_is_pointed_at(folder: Folder) -> None:
    folder.write(
        "a.yaml", ISTIO.replace("namespace: istio-system", "namespace: infra").replace("istio-system/", "infra/")
    )
    folder.write("secret.yaml", SECRET.format("infra", CERT, KEY))
    assert "there is one in infra, where --secrets-beside looks, too; TLS handshakes" in folder.check()[1][0]


def test_a_key_in_the_place_of_the_certificate_is_told_so(folder: Folder) -> None:
    folder.write("a.yaml", ISTIO)
    folder.write("secret.yaml", SECRET.format("istio-system", KEY, CERT))
    assert "tls.crt holds a key, and tls.key a certificate" in folder.check()[1][0]


def test_an_object_that_stands_twice_says_which_counts(folder: Folder) -> None:
    folder.write("a.yaml", ISTIO)
    folder.write("b.yaml", ISTIO.partition("---")[0])
    line = "warning: a.yaml:3: metadata.name: Gateway istio-system/edge: stands in b.yaml:3, too, which counts"
    assert folder.check()[1][0] == line


def test_what_istio_would_enforce_at_the_gateway_and_we_do_not_is_told(folder: Folder) -> None:
    head = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: jwt, namespace: %s}\n"
    folder.write("a.yaml", ISTIO)
    folder.write("p.yaml", head % "shop")
    assert folder.check()[1] == ["1 port, 0 errors, 0 warnings"], "is for other pods"
    folder.write("p.yaml", head % "istio-system")
    for options in ((), ("--pod-namespace", "edge")):  # the root namespace is everybody's
        assert any("is not read by this gateway: nothing of it" in line for line in folder.check(*options)[1])


def test_an_ingress_is_not_passed_over_in_silence(folder: Folder) -> None:
    folder.write("a.yaml", "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: web}\nspec: {}\n")
    assert folder.check()[1] == [
        "warning: a.yaml:2: kind: Ingress default/web: is not read by this gateway; write it as a Gateway with routes",
        f"nothing is served: no Gateway in {folder.path} opens a port; its folders are not read",
        "0 ports, 0 errors, 1 warning",
    ]


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda path: path.write_bytes(b"# \xe9\n"), "cannot be read: byte 3 is not UTF-8"),
        (lambda path: path.symlink_to("/none"), "cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), "is no file; folders inside the directory are not looked at"),
        (os.mkfifo, "is no file; folders inside the directory are not looked at"),
    ],
    ids=["latin-1", "dangling", "folder", "fifo"],
)
def test_a_file_that_cannot_be_read_is_told_in_words(folder: Folder, made: object, why: str) -> None:
    assert callable(made)
    made(folder.path / "x.yaml")
    code, lines = folder.check()
    assert code == 1 and lines[0] == f"error: x.yaml: {why}"


def test_findings_stand_in_the_order_of_files_and_lines_errors_first(folder: Folder) -> None:
    folder.write("a.yaml", ISTIO.replace("host: cart", "host: x").replace("shop-cert", "other"))
    folder.write("z.yaml", "kind: Gateway")
    lines = folder.check()[1]
    assert [line.split(": ")[:2] for line in lines[:3]] == [
        ["error", "z.yaml:1"],
        ["warning", "a.yaml:8"],
        ["warning", "a.yaml:17"],
    ]


def test_many_that_are_missing_among_many_cost_no_minutes() -> None:
    """A cluster whose rules were applied before its Services: each change is read anew."""
    services = [
        {"kind": "Service", "apiVersion": "v1", "metadata": {"name": f"svc-{number}", "namespace": "shop"}, "spec": {}}
        for number in range(400)
    ]
    rules = [
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": f"v{number}", "namespace": "shop"},
            "spec": {"hosts": [f"h{number}.test"], "gateways": ["gw"], "http": [{"route": [{"destination": to}]}]},
        }
        for number in range(400)
        for to in ({"host": f"svx-{number}"},)
    ]
    objects = [from_document(one, "all.yaml") for one in (*services, *rules)]
    began = time.process_time()
    loaded = compile_table(objects, (), {})
    assert "did you mean 'svc-" in loaded.findings[0].text and "did you mean" not in loaded.findings[-1].text
    assert time.process_time() - began < 2


def test_a_server_whose_requests_are_all_404_is_warned_of(folder: Folder) -> None:
    folder.write("a.yaml", ISTIO.replace("gateways: [istio-system/edge]", "gateways: [istio-system/edge2]"))
    said = "spec.servers[0]: Gateway istio-system/edge: no VirtualService http route is bound to shop.example.com"
    assert any(said in line and line.endswith("every request is answered 404") for line in folder.check()[1])
    redirects = "  - port: {number: 80, name: http, protocol: HTTP}\n    hosts: ['*']\n    tls: {httpsRedirect: true}\n"
    folder.write("a.yaml", ISTIO.replace("  servers:\n", f"  servers:\n{redirects}"))
    assert folder.check()[1] == ["2 ports, 0 errors, 0 warnings"]


def test_a_class_that_is_not_among_those_of_the_files_is_warned_of(folder: Folder) -> None:
    named = "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: tproxi}\n"
    folder.write("a.yaml", API)
    folder.write("c.yaml", f"{named}spec: {{controllerName: tproxy.dev/gateway}}\n")
    assert any("there is no GatewayClass tproxy; did you mean 'tproxi'?" in line for line in folder.check()[1])
