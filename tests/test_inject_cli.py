"""``tproxy inject`` as a person and a pipeline use it; tests/golden/inject holds what goes in, out, and to stderr.

After a change that is meant: ``TPROXY_GOLDEN=write pytest tests/test_inject_cli.py``, and read the difference.
"""

from __future__ import annotations

import io
import json
import os
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tproxy.cli import main

GOLDEN = Path(__file__).parent / "golden" / "inject"
CASES = sorted(path.stem for path in GOLDEN.glob("*.yaml") if not path.stem.endswith(".out"))
POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: web, image: nginx}]\n"
NATIVE = "1.29"  # the first with native sidecars
VERSIONS = ("1.25", NATIVE, "1.37")  # and an old one and a new one


class Tool:
    """The verb, run in a folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *words: str, stdin: str = "") -> tuple[int, str, str]:
        self.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        code = main(["inject", *words])
        out, err = self.capsys.readouterr()
        return code, out, err


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    monkeypatch.chdir(GOLDEN)
    return Tool(monkeypatch, capsys)


def options(text: str) -> list[str]:
    first = text.partition("\n")[0]
    return shlex.split(first.removeprefix("# options:")) if first.startswith("# options:") else []


def compare(path: Path, text: str) -> None:
    """Or write it anew, but never in CI, where nobody reads the difference."""
    if os.environ.get("TPROXY_GOLDEN") == "write":
        assert not os.environ.get("CI"), "CI does not write what it is to compare with"
        path.unlink(missing_ok=True)
        if text:
            path.write_text(text)
    assert (path.read_text() if path.exists() else "") == text


def each(text: str) -> list[Any]:
    """Documents, with the items of lists."""
    whole = [document for document in yaml.safe_load_all(text) if document]
    return [item for document in whole for item in (document["items"] if document["kind"] == "List" else [document])]


def test_there_are_thirty_varied_pods() -> None:
    assert len(CASES) >= 30


def test_ci_does_not_write_what_it_compares_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TPROXY_GOLDEN", "write")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(AssertionError, match="CI does not write"):
        compare(tmp_path / "golden", "new")
    assert not (tmp_path / "golden").exists()


@pytest.mark.parametrize("case", CASES)
def test_what_goes_in_comes_out_as_it_was_read_and_approved(case: str, tool: Tool) -> None:
    text = (GOLDEN / f"{case}.yaml").read_text()
    code, out, err = tool("-f", f"{case}.yaml", *options(text))
    compare(GOLDEN / f"{case}.out.yaml", out)
    compare(GOLDEN / f"{case}.err", err + (f"exit code {code}\n" if code else ""))
    assert code == (1 if case.startswith("refused") else 0)
    assert bool(out) == (code == 0)


VALID = [
    (case, version)
    for case in CASES
    for version in VERSIONS
    if not case.startswith("refused") and (case.startswith("fallback") or float(version) >= float(NATIVE))
]


@pytest.mark.parametrize(("case", "version"), VALID)
def test_kubernetes_schema_accepts_what_comes_out(case: str, version: str) -> None:
    for document in each((GOLDEN / f"{case}.out.yaml").read_text()):
        if document["apiVersion"] != "example.com/v1" and document["metadata"].get("name") not in ("empty", "empties"):
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("refused")])
def test_injecting_twice_is_injecting_once(case: str, tool: Tool) -> None:
    text = (GOLDEN / f"{case}.yaml").read_text()
    once = (GOLDEN / f"{case}.out.yaml").read_text()
    assert tool("-f", f"{case}.out.yaml", *options(text))[:2] == (0, once)


@pytest.mark.parametrize("case", ["pod-bare", "secret", "settings-spire", "statefulset-fsgroup"])
def test_init_reads_the_configuration_that_the_injector_wrote(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = each((GOLDEN / f"{case}.out.yaml").read_text())[0]
    spec = found["spec"] if found["kind"] == "Pod" else found["spec"]["template"]["spec"]
    monkeypatch.setenv("TPROXY_CONFIG", spec["initContainers"][0]["env"][0]["value"])
    assert main(["rules"]) == 0
    assert "tproxy ip to :15001" in capsys.readouterr().out


def test_a_wrong_configuration_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TPROXY_CONFIG", "egress: dny")
    assert main(["rules"]) == 2
    assert "TPROXY_CONFIG: egress: 'dny': expected one of passthrough, deny" in capsys.readouterr().err
    monkeypatch.setenv("TPROXY_CONFIG", "a: [")
    assert main(["rules"]) == 2
    assert "TPROXY_CONFIG: line 1" in capsys.readouterr().err


def test_comments_and_order_stay(tool: Tool) -> None:
    before = (GOLDEN / "deployment-comments.yaml").read_text()
    after = tool("-f", "deployment-comments.yaml")[1]
    gone = [line for line in before.splitlines() if line not in after.splitlines()]
    assert gone == ["          httpGet: {path: /ready, port: http}"]


def test_a_document_without_a_pod_is_printed_byte_by_byte(tool: Tool) -> None:
    odd = "apiVersion: v1\nkind:   ConfigMap\ndata: {a:   'b',\n  c: d}   # odd\n"
    assert tool("-f", "-", stdin=f"{odd}---\n{POD}---\n{odd}")[1].count(odd) == 2


def test_text_that_kubectl_would_take_for_something_else_is_quoted(tool: Tool) -> None:
    text = POD.replace("name: web, image", "name: 'no', image")
    assert "default-container: 'no'" in tool("-f", "-", "--no-native", stdin=text)[1]


@pytest.mark.parametrize("text", [f"%YAML 1.2\n---\n{POD}", f"# a\n--- # b\n{POD}...\n", POD.replace("\n", "\r\n")])
def test_directives_markers_and_line_ends_are_understood(text: str, tool: Tool) -> None:
    code, out, _ = tool("-f", "-", stdin=text)
    assert code == 0
    assert out.startswith(text[:5])
    assert [document["kind"] for document in yaml.safe_load_all(out) if document] == ["Pod"]


def test_several_files_become_several_documents(tool: Tool) -> None:
    code, out, _ = tool("-f", "pod-bare.yaml", "-f", "-", stdin=POD)
    assert code == 0
    assert [document["kind"] for document in yaml.safe_load_all(out)] == ["Pod", "Pod"]


def test_json_stays_json(tool: Tool) -> None:
    document = {"apiVersion": "v1", "kind": "List", "items": [yaml.safe_load(POD)]}
    code, out, _ = tool("-f", "-", stdin=json.dumps(document))
    assert code == 0
    names = [item["name"] for item in json.loads(out)["items"][0]["spec"]["initContainers"]]
    assert names == ["tproxy-init", "tproxy-sidecar"]


def test_a_flow_mapping_is_yaml_though_it_begins_like_json(tool: Tool) -> None:
    flow = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a}]}}\n"
    assert len(yaml.safe_load(tool("-f", "-", stdin=flow)[1])["spec"]["initContainers"]) == 2


def test_items_of_a_typed_list_need_not_say_what_they_are(tool: Tool) -> None:
    item = {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a"}]}}
    document = {"apiVersion": "v1", "kind": "PodList", "items": [item]}
    out = json.loads(tool("-f", "-", stdin=json.dumps(document))[1])
    assert len(out["items"][0]["spec"]["initContainers"]) == 2
    assert "kind" not in out["items"][0]


def test_one_refused_pod_prints_nothing_so_that_nothing_is_half_applied(tool: Tool) -> None:
    code, out, err = tool("-f", "pod-bare.yaml", "-f", "refused-uid.yaml")
    assert (code, out) == (1, "")
    assert "refused-uid.yaml: Pod disguised: spec.containers[0].securityContext.runAsUser: 1337" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: [", "stdin: line "),
        ("a: 1\na: 2\n", "stdin: line 2"),
        ("{", "stdin: line "),
        ("[" * 500, "stdin: line 1"),
        ('{"a":' * 100_000, "stdin: is nested too deeply"),
        ("\x00", "stdin: "),
    ],
)
def test_what_is_no_yaml_is_bad_input_with_the_place(text: str, message: str, tool: Tool) -> None:
    code, out, err = tool("-f", "-", stdin=text)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imgae: a", "imgae: unknown field; did you mean 'image'?"),
        ("config: {egress: dny}", "egress: 'dny': expected one of passthrough, deny; did you mean 'deny'?"),
        ("resources: {cpu: much}", "resources.cpu: 'much': expected a quantity"),
        ("token: {seconds: 60}", "token.seconds: 60: expected a number from 600"),
        ("imagePullPolicy: always", "did you mean 'Always'?"),
        ("- 1", "expected a mapping"),
    ],
)
def test_wrong_settings_are_bad_input_with_the_nearest_valid(
    text: str, message: str, tool: Tool, tmp_path: Path
) -> None:
    path = tmp_path / "inject.yaml"
    path.write_text(text)
    code, out, err = tool("-f", "pod-bare.yaml", "--settings", str(path))
    assert (code, out) == (2, "")
    assert f"{path}: " in err
    assert message in err


def test_a_file_that_is_not_there_is_named(tool: Tool) -> None:
    assert tool("-f", "absent.yaml") == (2, "", "tproxy inject: absent.yaml: No such file or directory\n")


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["inject", "--help"])
    assert exited.value.code == 0
    assert "tproxy inject -f app.yaml | kubectl apply -f -" in capsys.readouterr().out
