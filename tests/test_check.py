"""``tproxy check`` tells what is wrong and what to do; its exit code tells a person's fault from the kernel's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scratch import NO_ADMIN, Netns, config, netns
from tproxy.cli.check import exit_code, table
from tproxy.core.ruleset import TABLE
from tproxy.kernel.diag import Finding, Level

GOOD, ODD = Finding("a", Level.OK, "fine"), Finding("b", Level.WARN, "odd", "look")
WRONG, LACKING = Finding("c", Level.BAD, "wrong", "mend"), Finding("d", Level.BAD, "lacking", "grant", missing=True)


@pytest.fixture
def namespace() -> Iterator[Netns]:
    with netns() as made:
        yield made


def check(namespace: Netns, *args: str, prefix: tuple[str, ...] = ()) -> tuple[int, dict[str, dict[str, Any]]]:
    done = namespace.tproxy("check", "--json", *args, prefix=prefix, check=False)
    return done.returncode, {finding["name"]: finding for finding in json.loads(done.stdout)}


def test_before_init_the_rules_are_missing_and_the_advice_is_init(namespace: Netns) -> None:
    code, found = check(namespace)
    assert code == 1
    assert found["rules accepted"]["level"] == "ok"
    for name in ("rules installed", "routes installed"):
        assert found[name]["level"] == "bad"
        assert "tproxy init" in found[name]["advice"]


def test_after_init_nothing_is_bad(namespace: Netns) -> None:
    namespace.tproxy("init")
    code, found = check(namespace)
    assert code == 0
    assert {finding["level"] for finding in found.values()} == {"ok", "warn"}


def test_rules_of_another_configuration_are_told(namespace: Netns, tmp_path: Path) -> None:
    namespace.tproxy("init")
    code, found = check(namespace, "--config", config(tmp_path, capture={"excludeInboundPorts": [9090]}))
    assert code == 1
    assert "another configuration" in found["rules installed"]["found"]


@pytest.mark.parametrize("command", ["insert", "add"])
def test_a_rule_that_somebody_added_is_told(namespace: Netns, command: str) -> None:
    namespace.tproxy("init")
    namespace.run("nft", command, "rule", "inet", TABLE, "in_capture", "accept")
    code, found = check(namespace)
    assert code == 1
    assert "chain in_capture" in found["rules installed"]["found"]


def test_a_rule_that_somebody_replaced_is_told_and_what_rules_count_is_not(namespace: Netns) -> None:
    namespace.tproxy("init")
    namespace.echo(7)
    namespace.run("curl", "-s", "-m", "1", "telnet://127.0.0.1:7", check=False)  # counted
    assert check(namespace)[0] == 0
    listed = json.loads(namespace.run("nft", "-j", "list", "chain", "inet", TABLE, "in_capture").stdout)
    rule = [one["rule"] for one in listed["nftables"] if "rule" in one][-1]
    namespace.run("nft", "replace", "rule", "inet", TABLE, "in_capture", "handle", str(rule["handle"]), "accept")
    code, found = check(namespace)
    assert code == 1
    assert found["rules installed"]["found"] == "a rule was edited in place since tproxy init"
    namespace.tproxy("init")
    assert check(namespace)[0] == 0


def test_rules_of_an_init_that_left_no_seal_are_compared_by_number(namespace: Netns) -> None:
    namespace.tproxy("init")
    seals = re.findall(r"chain (listed_\w+)", namespace.rules())
    assert len(seals) == 1
    namespace.run("nft", "delete", "chain", "inet", TABLE, *seals)
    assert check(namespace)[0] == 0


def test_rules_that_somebody_removed_are_told(namespace: Netns) -> None:
    namespace.tproxy("init")
    namespace.run("nft", "flush", "chain", "inet", TABLE, "out_capture")
    code, found = check(namespace)
    assert code == 1
    assert "chain out_capture has 0 rules" in found["rules installed"]["found"]


@pytest.mark.parametrize("family", ["4", "6"])
def test_a_removed_ip_rule_is_told(namespace: Netns, family: str) -> None:
    namespace.tproxy("init")
    namespace.run("ip", f"-{family}", "rule", "del", "pref", "100")
    code, found = check(namespace)
    assert code == 1
    assert f"missing: ip -{family} rule pref 100" in found["routes installed"]["found"]


def test_listeners_are_found_by_their_port(namespace: Netns) -> None:
    namespace.tproxy("init")
    assert "nothing listens on 15001" in check(namespace)[1]["egress listener"]["found"]
    namespace.echo(15001)
    found = check(namespace)[1]
    assert found["egress listener"]["level"] == "ok"
    assert found["ingress listener"]["level"] == "warn"


def test_without_net_admin_it_exits_with_3_and_names_the_capability(namespace: Netns) -> None:
    namespace.tproxy("init")
    code, found = check(namespace, prefix=NO_ADMIN)
    assert code == 3
    assert "not NET_ADMIN" in found["capabilities"]["found"]
    assert "NET_ADMIN is missing" in found["rules installed"]["advice"]


def test_without_any_capability_no_socket_can_be_transparent_or_marked(namespace: Netns) -> None:
    code, found = check(namespace, prefix=("setpriv", "--bounding-set=-all", "--inh-caps=-all"))
    assert code == 3
    for name in ("transparent socket", "marked socket"):
        assert (found[name]["level"], found[name]["missing"]) == ("bad", True)


def test_a_bad_configuration_exits_with_2(namespace: Netns, tmp_path: Path) -> None:
    assert namespace.tproxy("check", "--config", config(tmp_path, mode="x"), check=False).returncode == 2


def test_certificates_are_missing_unreadable_wrong_or_fine(namespace: Netns, tmp_path: Path) -> None:
    namespace.tproxy("init")
    tmp_path.chmod(0o755)
    files = {name: str(tmp_path / f"{name}.pem") for name in ("cert", "key", "ca")}
    Path(files["cert"]).write_text("-----BEGIN CERTIFICATE-----\n")
    Path(files["key"]).write_text("-----BEGIN PRIVATE KEY-----\n")
    Path(files["key"]).chmod(0o600)
    code, found = check(namespace, "--config", config(tmp_path, identity=files))
    assert code == 1
    assert found["identity.cert"]["level"] == "ok"
    assert "uid 1337 may not read it" in found["identity.key"]["found"]
    assert "No such file" in found["identity.ca"]["found"]
    Path(files["ca"]).write_text("not PEM")
    assert (
        "holds no certificate in PEM"
        in check(namespace, "--config", config(tmp_path, identity=files))[1]["identity.ca"]["found"]
    )
    Path(files["key"]).chmod(0o644)
    assert (
        "everybody may read the key"
        in check(namespace, "--config", config(tmp_path, identity=files))[1]["identity.key"]["found"]
    )


def test_it_changes_nothing(namespace: Netns) -> None:
    before = namespace.rules()
    check(namespace)
    assert namespace.rules() == before


def test_exit_codes() -> None:
    assert exit_code([GOOD, ODD]) == 0
    assert exit_code([GOOD, WRONG]) == 1
    assert exit_code([WRONG, LACKING, GOOD]) == 3


def test_colour_is_for_terminals() -> None:
    assert "\033" not in table([GOOD, WRONG], colour=False)
    assert "\033[31mbad " in table([GOOD, WRONG], colour=True)
    assert "-> mend" in table([WRONG], colour=False)
