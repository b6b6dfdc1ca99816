"""``tproxy sidecar``'s command line: tproxy-pod's flags, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tproxy.cli import main, parser
from tproxy.cli.sidecar import effective
from tproxy.core.config import Files
from tproxy.core.fields import ConfigError
from tproxy.core.settings import WorkloadApi


def test_the_flags_of_tproxy_pod_work() -> None:
    words = [
        "sidecar",
        "-cert",
        "c.pem",
        "-key",
        "k.pem",
        "-ca-cert",
        "a.pem",
        "-tcp-port",
        "1",
        "-tls-port",
        "2",
        "-v",
        "4",
    ]
    config = effective(parser().parse_args(words))
    assert config.identity == Files("c.pem", "k.pem", "a.pem")
    assert (config.ports.egress, config.ports.ingress) == (1, 2)


def test_flags_are_laid_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sidecar.yaml"
    path.write_text("identity: {cert: c, key: k, ca: a}\negress: passthrough\n")
    config = effective(parser().parse_args(["sidecar", "--config", str(path), "--key", "other"]))
    assert config.identity == Files("c", "other", "a")
    assert config.egress == "passthrough"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("egress: pass", "egress: 'pass': expected one of passthrough, deny; did you mean 'passthrough'?"),
        ("inbound: {ports: {80: Strict}}", "inbound.ports.80: 'Strict'"),
        ("mesh: [{cidr: 10.0.0.1/8}]", "mesh[0].cidr: '10.0.0.1/8'"),
        ("mesh: [{cidr: 10.0.0.0/8, ids: [shop]}, {cidr: x}]", "mesh[1].cidr: 'x'"),
        ("trustDomain: Cluster.Local", "trustDomain: 'Cluster.Local'"),
        ("ports: {egress: 99999}", "ports.egress: 99999"),
        ("identity: {cert: c}", "identity.key"),
        ("a: [", "line 1: "),
        ("inbound: {mode: strict}\ninbound: {mode: disable}", "line 2: inbound stands here twice"),
        ("inbound: {rules: [{ids: []}]}", "inbound.rules[0].ids: is empty; leave it out to mean anyone"),
        ("inbound: {rules: [{sources: ''}]}", "inbound.rules[0].sources: is empty"),
        ("mesh: [{cidr: 10.0.0.0/8, ids: []}]", "mesh[0].ids: is empty"),
    ],
)
def test_bad_configuration_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "sidecar.yaml"
    path.write_text(text)
    assert main(["sidecar", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"tproxy sidecar: {path}: ")
    assert message in said
    assert said.count("\n") == 1


def test_missing_certificates_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sidecar", "-cert", "/none/cert.pem", "-key", "k", "-ca-cert", "a"]) == 2
    assert "/none/cert.pem: identity.cert: cannot be read" in capsys.readouterr().err


def test_a_port_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="-tcp-port: 'x': expected a port"):
        effective(parser().parse_args(["sidecar", "-cert", "c", "-key", "k", "-ca-cert", "a", "-tcp-port", "x"]))


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_the_verbs(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "sidecar" in capsys.readouterr().out


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("sidecar", "init", "cleanup", "rules", "check", "ca", "demo", "bench", "completion"):
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0
    assert "example" in capsys.readouterr().out


def test_an_agents_socket_is_taken_from_the_environment_where_the_configuration_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("identity: {workloadApi: {hint: internal}}\n")
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", "unix:///run/agent.sock")
    assert effective(parser().parse_args(["sidecar", "--config", str(file)])).identity == WorkloadApi(
        "unix:///run/agent.sock", hint="internal"
    )
    monkeypatch.delenv("SPIFFE_ENDPOINT_SOCKET")
    with pytest.raises(ConfigError, match="environment: SPIFFE_ENDPOINT_SOCKET: expected unix:///path"):
        effective(parser().parse_args(["sidecar", "--config", str(file)]))
