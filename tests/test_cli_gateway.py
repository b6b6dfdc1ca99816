"""``tproxy gateway check``, ``routes`` and ``explain`` as their users meet them: requests inside TLS that ends here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tproxy.cli import main

GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: istio-system}
spec:
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [shop.example.com, www.example.com]
    tls: {mode: SIMPLE, credentialName: shop-cert}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: shop}
spec:
  hosts: [shop.example.com]
  gateways: [istio-system/edge]
  http:
  - match: [{uri: {prefix: /cart}, method: {exact: GET}, headers: {x-user: {}}}]
    route: [{destination: {host: cart, port: {number: 80}}}]
  - route: [{destination: {host: web, port: {number: 80}}}]
"""
SERVICES = "".join(
    f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{ports: [{{name: http, port: 80}}], clusterIP: 10.0.0.{index}}}
---"""
    for index, name in enumerate(("web", "cart"), 1)
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(GATEWAY)
    (tmp_path / "b.yaml").write_text(SERVICES)
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main(["gateway", *map(str, words)])
    caught = capsys.readouterr()
    return code, caught.out + caught.err


def test_routes_lists_the_rules_behind_tls_once_with_what_they_ask_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = ask(capsys, "routes", folder)
    assert code == 0 and [line.split()[1:3] for line in out.splitlines()[1:]] == [
        ["terminate", "shop.example.com"],
        ["http", "shop.example.com"],
        ["http", "shop.example.com"],
        ["terminate", "www.example.com"],
    ]
    assert "path prefix '/cart', method exact 'GET', header x-user present" in out
    lines = json.loads(ask(capsys, "routes", folder, "--json")[1])
    assert [line["rule"] for line in lines[1:3]] == [
        "VirtualService shop/shop http[0]",
        "VirtualService shop/shop http[1]",
    ]


def test_explain_of_a_name_goes_on_to_the_request_in_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = ask(
        capsys, "explain", folder, "--sni", "shop.example.com", "--path", "/cart/1", "--header", "x-user: me"
    )
    assert code == 0 and "http shop.example.com by VirtualService shop/shop http[0]" in out and "GET /cart/1" in out


@pytest.mark.parametrize("asked", [("--host", "shop.example.com:443"), ("--sni", "SHOP.example.com")])
def test_explain_tells_what_came_over_tls_so(
    asked: tuple[str, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = ask(capsys, "explain", folder, *asked)
    assert code == 0 and "shop/shop http[1]" in out and "header x-forwarded-proto: https" in out


def test_explain_names_a_server_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = ask(capsys, "explain", folder, "--sni", "shop.example.com", "--port", "443")
    assert code == 0 and out.splitlines()[0].count("Gateway istio-system/edge https") == 1


def test_explain_of_a_port_that_is_not_there_says_which_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "explain", folder, "--port", "80") == (1, "nothing listens on port 80; ports are: 443\n")


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--host", "https://shop.example.com/", "--host: 'https://shop.example.com/': expected a name, without scheme"),
        ("--sni", "a b", "--sni: 'a b': expected a name"),
        ("--header", "x-user=me", "--header: 'x-user=me': expected name: value"),
    ],
)
def test_explain_refuses_what_no_client_could_send(
    option: str, value: str, why: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = ask(capsys, "explain", folder, option, value)
    assert code == 2 and why in out


def test_one_port_is_one_port(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "check", folder)[1].splitlines()[-1] == "1 port, 0 errors, 1 warning"
