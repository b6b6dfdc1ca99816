"""``tproxy policy egress``: where a connection would go, by which rule, and what kept the others away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tproxy.cli import main

ROUTES = {
    "names": "istio",
    "routers": {"r1": {"host": "r1.egress.svc"}, "r2": {"host": "10.9.9.2", "ports": {443: 1443}}},
    "rules": [
        {"name": "even", "ports": [443], "sourceOctet": "even", "routers": {"r1": 9, "r2": 1}},
        {"name": "shop", "sni": ["*.shop.example"], "routers": ["r1"], "otherwise": "direct"},
    ],
}
MESH = [{"cidr": "10.0.0.0/8", "ids": ["ns/shop/sa/web"]}, {"cidr": "10.1.0.0/16", "mtls": False}]


def asked(capsys: pytest.CaptureFixture[str], folder: Path, *options: str, **config: Any) -> tuple[int, str]:
    path = folder / "sidecar.yaml"
    path.write_text(yaml.safe_dump({"egressRoutes": ROUTES, "mesh": MESH, **config}))
    code = main(["policy", "egress", "--config", str(path), *options])
    caught = capsys.readouterr()
    return code, caught.out + caught.err


def test_a_routed_connection_shows_its_routers_ports_and_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = asked(capsys, tmp_path, "--to", "198.51.100.1:443", "--from", "10.0.0.2")
    assert code == 0
    assert said.splitlines() == [
        "routed   even",
        "why      198.51.100.1:443 is outside the mesh",
        "router   r1 at r1.egress.svc:8080, weight 9, as outbound|8080||r1.egress.svc",
        "router   r2 at 10.9.9.2:1443, weight 1, as outbound|1443||10.9.9.2",
        "none up  refuse",
        "  even  matches",
        "  shop  misses: sni is asked for, and the client names nobody",
    ]


def test_a_name_is_asked_for_and_its_case_does_not_matter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--to", "198.51.100.1:80", "--from", "10.0.0.2", "--sni", "A.Shop.example", "--json"
    code, said = asked(capsys, tmp_path, *options)
    found = json.loads(said)
    assert (code, found["answer"], found["rule"], found["otherwise"]) == (0, "routed", "shop", "direct")
    assert found["why"].endswith("the client asks for a.shop.example")
    assert found["lines"][0] == {"rule": "even", "misses": ["ports has no 80"]}


@pytest.mark.parametrize(
    ("target", "code", "first"),
    [
        ("10.0.0.9:443", 0, "mtls     mesh 10.0.0.0/8"),
        ("10.1.0.9:443", 0, "plain    mesh 10.1.0.0/16: mtls: false"),
        ("198.51.100.1:80", 1, "deny     egress: deny"),
    ],
)
def test_what_no_rule_takes_is_explained_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, code: int, first: str
) -> None:
    found = asked(capsys, tmp_path, "--to", target, "--from", "10.0.0.3")
    assert (found[0], found[1].splitlines()[0]) == (code, first)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--to", "198.51.100.1:443"), "--from: is missing: a rule here asks for sourceOctet"),
        (("--to", "198.51.100.1", "--from", "10.0.0.2"), "--to: '198.51.100.1': '198.51.100.1' is not address:port"),
        (("--to", "198.51.100.1:443", "--from", "here"), "--from: 'here'"),
        (("--to", "198.51.100.1:443", "--from", "10.0.0.2", "--sni", "a b"), "--sni: 'a b': expected a host name"),
    ],
)
def test_a_wrong_option_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    code, text = asked(capsys, tmp_path, *options)
    assert code == 2 and said in text


def test_rules_in_a_file_are_read_and_their_faults_name_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    routes = tmp_path / "egress.yaml"
    options, section = ("--to", "198.51.100.1:443", "--from", "10.0.0.2"), {"file": str(routes)}
    code, said = asked(capsys, tmp_path, *options, egressRoutes=section)
    assert code == 2 and f"{routes}: No such file" in said
    routes.write_text(yaml.safe_dump(ROUTES))
    assert asked(capsys, tmp_path, *options, egressRoutes=section)[0] == 0
    routes.write_text(yaml.safe_dump({**ROUTES, "rules": [{"routers": ["r3"]}]}))
    code, said = asked(capsys, tmp_path, *options, egressRoutes=section)
    assert code == 2 and f"{routes}: rules[0].routers.r3: is no router; these are: r1, r2" in said
    routes.write_text(yaml.safe_dump(section))
    assert "names a file in turn" in asked(capsys, tmp_path, *options, egressRoutes=section)[1]
