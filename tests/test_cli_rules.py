"""``tproxy rules``, ``init`` and ``cleanup`` as an operator runs them: all or nothing, again and again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scratch import NO_ADMIN, TPROXY, Netns, config, netns
from tproxy.core.config import Config
from tproxy.core.ruleset import TABLE, ruleset

RULES = ruleset(Config.parse({}, "defaults"))


@pytest.fixture
def namespace() -> Iterator[Netns]:
    with netns() as made:
        yield made


@pytest.fixture
def empty(namespace: Netns) -> str:
    """What the namespace looks like when nothing is installed."""
    return namespace.rules()


def test_rules_prints_what_nft_takes(namespace: Netns) -> None:
    shown = namespace.tproxy("rules").stdout
    assert shown.strip() == RULES.text().strip()
    namespace.run("nft", "-f", "-", text=shown)
    assert f"table inet {TABLE}" in namespace.rules()


def test_rules_needs_no_capability_and_touches_nothing(namespace: Netns, empty: str) -> None:
    assert namespace.tproxy("rules", prefix=("setpriv", "--bounding-set=-all", "--inh-caps=-all")).stdout
    assert namespace.rules() == empty


def test_rules_as_json_name_chains_and_commands(namespace: Netns) -> None:
    data = json.loads(namespace.tproxy("rules", "--json").stdout)
    assert [chain["name"] for chain in data["chains"]] == [chain.name for chain in RULES.chains]
    assert data["commands"] == list(RULES.commands())


def test_rules_follow_the_configuration(namespace: Netns, tmp_path: Path) -> None:
    path = config(tmp_path, capture={"excludeOutboundIPRanges": ["203.0.113.0/24"]})
    assert "ip daddr { 203.0.113.0/24 } return" in namespace.tproxy("rules", "--config", path).stdout


def test_init_says_in_one_line_what_holds_now(namespace: Netns) -> None:
    said = namespace.tproxy("init").stdout.splitlines()
    assert len(said) == 1
    assert RULES.digest in said[0]
    assert f"digest_{RULES.digest}" in namespace.rules()


def test_init_twice_is_as_init_once(namespace: Netns) -> None:
    namespace.tproxy("init")
    once = namespace.rules()
    namespace.tproxy("init")
    assert namespace.rules() == once


def test_init_many_times_at_once_is_as_init_once(namespace: Netns) -> None:
    running = [subprocess.Popen(namespace.argv(*TPROXY, "init"), stdout=subprocess.DEVNULL) for _ in range(6)]
    assert [process.wait(60) for process in running] == [0] * 6
    at_once = namespace.rules()
    namespace.tproxy("cleanup")
    namespace.tproxy("init")
    assert namespace.rules() == at_once


def test_init_with_another_configuration_replaces_the_rules(namespace: Netns, tmp_path: Path) -> None:
    namespace.tproxy("init")
    namespace.tproxy("init", "--config", config(tmp_path, capture={"excludeInboundPorts": [9090]}))
    assert "9090" in namespace.rules()
    assert f"digest_{RULES.digest}" not in namespace.rules()


def test_cleanup_removes_everything_and_may_be_said_twice(namespace: Netns, empty: str) -> None:
    namespace.tproxy("init")
    assert namespace.rules() != empty
    assert "removed" in namespace.tproxy("cleanup").stdout
    assert namespace.rules() == empty
    assert "nothing was installed" in namespace.tproxy("cleanup").stdout


def test_cleanup_leaves_the_tables_of_others_alone(namespace: Netns) -> None:
    namespace.run("nft", "add", "table", "inet", "somebody")
    namespace.tproxy("init")
    namespace.tproxy("cleanup")
    assert "table inet somebody" in namespace.rules()


def test_without_net_admin_init_exits_with_3_and_installs_nothing(namespace: Netns, empty: str) -> None:
    done = namespace.tproxy("init", prefix=NO_ADMIN, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "NET_ADMIN" in done.stderr
    assert namespace.rules() == empty


def test_without_net_admin_cleanup_exits_with_3_and_removes_nothing(namespace: Netns) -> None:
    namespace.tproxy("init")
    before = namespace.rules()
    assert namespace.tproxy("cleanup", prefix=NO_ADMIN, check=False).returncode == 3
    assert namespace.rules() == before


def test_a_bad_configuration_exits_with_2_and_installs_nothing(namespace: Netns, empty: str, tmp_path: Path) -> None:
    path = config(tmp_path, capture={"excludeInboundPort": [9090]})
    done = namespace.tproxy("init", "--config", path, check=False)
    assert done.returncode == 2
    assert "did you mean 'excludeInboundPorts'?" in done.stderr
    assert namespace.rules() == empty


def test_an_absent_configuration_exits_with_2_and_installs_nothing(namespace: Netns, empty: str) -> None:
    assert namespace.tproxy("init", "--config", "/nowhere.yaml", check=False).returncode == 2
    assert namespace.rules() == empty


def test_when_init_fails_the_rules_of_before_still_hold(namespace: Netns, tmp_path: Path) -> None:
    namespace.tproxy("init")
    before = namespace.rules()
    path = config(tmp_path, capture={"excludeInboundPorts": [9090]})
    assert namespace.tproxy("init", "--config", path, prefix=NO_ADMIN, check=False).returncode == 3
    assert namespace.rules() == before


@pytest.mark.parametrize("verb", ["rules", "init", "cleanup", "check"])
def test_help_has_an_example(namespace: Netns, verb: str) -> None:
    assert f"tproxy {verb}" in namespace.tproxy(verb, "--help").stdout.partition("example:")[2]


ROUTES = {
    "routers": {"r1": {"host": "10.9.9.9"}},
    "rules": [{"name": "web", "ports": [80, 443], "routers": ["r1"]}],
}


def test_rules_names_what_the_sidecar_sends_on_and_stays_what_nft_takes(tmp_path: Path, namespace: Netns) -> None:
    path = config(tmp_path, egressRoutes=ROUTES)
    shown = namespace.tproxy("rules", "--config", path).stdout
    said = "web: ports 80, 443 -> r1 (10.9.9.9, 80:8081 443:8080 *:8080, weight 1); otherwise refuse"
    assert shown.splitlines()[-1] == f"# the sidecar sends on, by rule {said}"
    namespace.run("nft", "-c", "-f", "-", text=shown)
    assert json.loads(namespace.tproxy("rules", "--json", "--config", path).stdout)["egress"] == [said]
    assert ruleset(Config.parse({"egressRoutes": ROUTES}, "routes")).digest == RULES.digest, "init need not run again"
