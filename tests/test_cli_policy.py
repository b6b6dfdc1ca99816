"""``tproxy policy explain`` and the reading of objects: which rule decides, which came close, and what is no object."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.istio import auth, peer
from tproxy.cli import main
from tproxy.cli.source import read
from tproxy.core.fields import ConfigError

WEB, DB = "spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/data/sa/db"
DATA = "rules: [{from: [{source: {namespaces: [data]}}], to: [{operation: {ports: ['80']}}]}]"


def write(tmp_path: Path, *objects: dict[str, Any], **config: Any) -> str:
    """A configuration and a folder of one file; its path."""
    folder = tmp_path / "policies"
    folder.mkdir(exist_ok=True)
    (folder / "all.yaml").write_text(yaml.safe_dump_all(objects))
    path = tmp_path / "sidecar.yaml"
    path.write_text(yaml.safe_dump({"policies": [str(folder)], "workload": {"namespace": "shop"}, **config}))
    return str(path)


def explained(capsys: pytest.CaptureFixture[str], path: str, *options: str) -> tuple[int, str]:
    code = main(["policy", "explain", "--config", path, *options])
    caught = capsys.readouterr()
    return code, caught.out + caught.err


def test_allowed_is_0_and_names_the_rule_and_denied_is_1_and_names_what_came_close(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, auth(DATA, "shop/data-may"), auth("{}", "shop/nothing"), auth("{}", "else/where"))
    code, said = explained(capsys, path, "--from", DB, "--port", "80")
    assert code == 0
    assert said.splitlines()[0] == "allow    shop/data-may[0]"
    code, said = explained(capsys, path, "--from", WEB, "--port", "80")
    assert code == 1
    lines = said.splitlines()
    assert lines[0] == "deny     shop/data-may, shop/nothing"
    assert f"{WEB} at whatever address is not allowed" in lines[1]
    assert "shop/data-may[0]  ALLOW  misses: rules[0].from[0].source.namespaces wants data, found shop" in said
    assert "shop/nothing      ALLOW  misses: has no rules, so it matches nobody" in said
    assert "not for this workload: AuthorizationPolicy else/where is for namespace else" in said


def test_what_misses_least_stands_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = "rules: [{from: [{source: {namespaces: [x], ipBlocks: [10.9.0.0/16]}}], to: [{operation: {ports: ['1']}}]}]"
    path = write(tmp_path, auth(far, "shop/far"), auth(DATA, "shop/near"))
    code, said = explained(capsys, path, "--from", WEB, "--from", "10.0.0.7", "--port", "80", "--json")
    found = json.loads(said)
    assert code == 1 and not found["allowed"]
    assert [(line["rule"], len(line["misses"])) for line in found["lines"]] == [("shop/near[0]", 1), ("shop/far[0]", 3)]


def test_an_address_alone_is_a_caller_in_plaintext(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, peer("mtls: {mode: STRICT}"))
    code, said = explained(capsys, path, "--from", "10.0.0.7", "--port", "80")
    assert code == 1 and said.startswith("deny     mode strict of PeerAuthentication shop/default\n")
    path = write(tmp_path, peer("mtls: {mode: PERMISSIVE}"))
    code, said = explained(capsys, path, "--from", "10.0.0.7", "--port", "80")
    assert code == 0 and "a caller without identity at 10.0.0.7 is allowed" in said


def test_on_a_port_without_tls_an_id_proves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, peer("mtls: {mode: DISABLE}"), auth(DATA, "shop/data-may"))
    code, said = explained(capsys, path, "--from", DB, "--port", "80")
    assert code == 1 and "found none" in said


def test_a_port_of_the_sidecar_itself_is_nobody_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = explained(capsys, write(tmp_path), "--from", WEB, "--port", "15001")
    assert code == 1 and "the sidecar's own port 15001" in said


def test_dry_run_and_audit_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tried = auth("action: DENY\nrules: [{}]", "shop/try", dry_run="true")
    path = write(tmp_path, tried, auth("action: AUDIT\nrules: [{}]", "shop/look"))
    code, said = explained(capsys, path, "--from", DB, "--port", "80")
    assert code == 0
    assert "\ndry-run  deny: shop/try[0]\naudit    shop/look[0]\n" in said
    assert "DENY (dry-run)  matches" in said


def test_our_own_rules_are_explained_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = [{"name": "mine", "ports": [81], "ids": ["ns/shop/sa/web"], "sources": ["10.0.0.0/8"]}]
    path = write(tmp_path, inbound={"rules": rules})
    code, said = explained(capsys, path, "--from", DB, "--from", "10.0.0.7", "--port", "80")
    assert code == 0 and "mine  inbound.rules  misses: ports has no 80; ids does not hold" in said
    code, said = explained(capsys, path, "--from", DB, "--from", "10.0.0.7", "--port", "81")
    assert code == 1 and said.startswith("deny     mine\n")


IP = "rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]"
TO = "rules: [{when: [{key: destination.ip, values: [10.0.0.9]}]}]"


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        (IP, ["--from", WEB], "command line: --from: is missing: a policy here asks for source.ip"),
        (TO, ["--from", WEB], "command line: --to: is missing: a policy here asks for destination.ip"),
        ("{}", ["--from", WEB, "--to", "here"], "command line: --to: 'here'"),
        ("{}", ["--from", "web"], "command line: --from: 'web': 'web' does not appear to be an IPv4 or IPv6 address"),
        ("{}", ["--from", "spiffe://x"], "command line: --from: 'spiffe://x'"),
        ("{}", ["--from", WEB, "--from", DB], "one id and one address at most"),
        ("{}", ["--from", WEB, "--port", "http"], "command line: --port: 'http': expected a port, 1 to 65535"),
    ],
)
def test_what_an_answer_would_be_a_guess_without_must_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: str, options: list[str], said: str
) -> None:
    code, heard = explained(capsys, write(tmp_path, auth(spec)), *["--port", "80", *options])
    assert code == 2 and said in heard


def test_given_they_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, auth(IP, "shop/near"), auth(TO, "shop/to"))
    base = ["--from", WEB, "--port", "80"]
    assert explained(capsys, path, *base, "--from", "10.1.1.1", "--to", "10.0.0.8")[1].startswith(
        "allow    shop/near[0]"
    )
    assert explained(capsys, path, *base, "--from", "192.0.2.1", "--to", "10.0.0.9")[1].startswith(
        "allow    shop/to[0]"
    )
    assert explained(capsys, path, *base, "--from", "192.0.2.1", "--to", "10.0.0.8")[0] == 1


def test_the_namespace_is_asked_for_where_the_configuration_does_not_say_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, auth(DATA, "shop/data-may"), workload={})
    base = ["--from", WEB, "--port", "80"]
    assert explained(capsys, path, *base) == (
        2,
        "tproxy policy: command line: --namespace: is missing: the configuration does not say it\n",
    )
    assert explained(capsys, path, *base, "--namespace", "shop")[0] == 1
    assert explained(capsys, path, *base, "--namespace", "data")[0] == 0


# reading


def test_a_file_may_hold_many_documents_and_empty_ones_and_json(tmp_path: Path) -> None:
    path = write(tmp_path, auth("{}", "shop/a"), auth("{}", "shop/b"))
    folder = tmp_path / "policies"
    (folder / "c.json").write_text(json.dumps(auth("{}", "shop/c")))
    (folder / "d.yml").write_text("---\n# nothing\n---\n")
    (folder / ".hidden").write_text("not yaml: [")
    assert [manifest.name for manifest in read(path).manifests] == ["a", "b", "c"]


def test_a_time_that_yaml_has_read_already_is_a_time(tmp_path: Path) -> None:
    path = write(tmp_path)
    text = yaml.safe_dump(peer("mtls: {mode: DISABLE}")).replace("creationTimestamp: null", "creationTimestamp: {}")
    for name, time in (("a", "2026-01-02T00:00:00Z"), ("b", "2026-01-01T00:00:00Z")):
        (tmp_path / "policies" / f"{name}.yaml").write_text(text.format(time).replace("default", name))
    assert [manifest.name for manifest in read(path).manifests] == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.yaml", "a: [", "x.yaml: line 1"),
        ("x.yaml", "kind: AuthorizationPolicy\nkind: PeerAuthentication", "x.yaml: line 2: kind stands here twice"),
        ("x.yaml", "kind: Deployment", "x.yaml: kind: 'Deployment': expected one of AuthorizationPolicy"),
        ("x.yaml", "- a", "x.yaml: ['a']: expected a mapping"),
        ("x.yaml", "---\n---\nkind: Pod", "x.yaml document 2: kind: 'Pod'"),
        ("x.txt", "", "x.txt: policies: is not .yaml, .yml, .json; it would be ignored"),
        ("x", "", "x: policies: is not .yaml"),
    ],
)
def test_what_is_no_object_of_ours_is_refused_and_never_skipped(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    path = write(tmp_path)
    (tmp_path / "policies" / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert said in str(caught.value)


def test_what_is_no_file_is_refused_and_does_not_block(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "policies" / "deeper").mkdir()
    with pytest.raises(ConfigError, match="deeper: policies: is not a file"):
        read(path)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match=r"pipe\.yaml: policies: is not a file"):
        read(write(tmp_path, policies=str(tmp_path / "pipe.yaml")))


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        ("/nowhere/at/all", "/nowhere/at/all: No such file or directory"),
        (["/nowhere.yaml"], "/nowhere.yaml: No such file or directory"),
        ([1], "sidecar.yaml: policies[0]: 1: expected a file or a folder"),
        ([""], "policies[0]: '': expected a file or a folder"),
        ({"dir": "a"}, "policies.dir: unknown field"),
    ],
)
def test_a_place_that_cannot_be_read_is_an_error(tmp_path: Path, policies: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(write(tmp_path, policies=policies))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("workload", "said"),
    [
        ({"namespace": "a/b"}, "workload.namespace: 'a/b': is no name in Kubernetes"),
        ({"rootNamespace": "a b"}, "workload.rootNamespace: 'a b'"),
        ({"labels": {"app": 1}}, "workload.labels.app: 1: expected one line of text"),
        ({"label": {}}, "workload.label: unknown field; did you mean 'labels'?"),
    ],
)
def test_the_workload_s_facts_are_checked(tmp_path: Path, workload: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(write(tmp_path, workload=workload))
    assert said in str(caught.value)
