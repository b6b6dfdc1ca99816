"""``tproxy ca`` as a person meets it: what it prints, what it refuses, and with which exit code."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tproxy.cli import ca as verb
from tproxy.control.explain import in_words, validity
from tproxy.core.fields import ConfigError
from tproxy.core.identity_config import parse_seconds

DOMAIN = "test.local"
WEB = f"spiffe://{DOMAIN}/ns/shop/sa/web"
WHO = ("--namespace", "shop", "--service-account", "web")


def call(*argv: str | Path) -> int:
    """The verb alone, so that a fault of another verb is not ours; main() prints ConfigError and exits with 2."""
    top = argparse.ArgumentParser()
    verb.register(top.add_subparsers())
    args = top.parse_args(["ca", *map(str, argv)])
    code: int = args.run(args)
    return code


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    call("init", "--dir", tmp_path / "ca", "--trust-domain", DOMAIN)
    return tmp_path / "ca"


def test_main_answers_bad_input_with_two_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tproxy.cli import main

    assert main(["ca", "show", str(tmp_path / "none.pem")]) == 2
    assert capsys.readouterr().err == f"tproxy ca: {tmp_path}/none.pem: cannot be read: No such file or directory\n"


def test_init_says_what_it_made_and_what_to_keep_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    call("init", "--dir", made, "--trust-domain", DOMAIN)
    out = capsys.readouterr().out
    assert f"authority of {DOMAIN} made in {made}" in out and f"keep {made}/root.key offline" in out


def test_issue_by_namespace_and_by_id_name_the_same_workload(
    ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("issue", "--dir", ca, *WHO, "--out", tmp_path / "a")
    call("issue", "--dir", ca, "--id", WEB, "--out", tmp_path / "b")
    assert capsys.readouterr().out.count(f"{WEB}: serial ") == 2


def test_show_explains_leaf_and_intermediate(ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("issue", "--dir", ca, *WHO, "--out", tmp_path / "web", "--ttl", "3h")
    capsys.readouterr()
    assert call("show", tmp_path / "web" / "cert.pem") == 0
    leaf, above = capsys.readouterr().out.split("\n\n")
    assert f"svid     yes, {WEB}" in leaf and "uses     client, server" in leaf and "ECDSA" in leaf
    assert "expires in " in leaf and "a signing certificate, not a workload's" in above


def test_show_as_json_is_one_object_for_each_certificate(
    ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("issue", "--dir", ca, *WHO, "--out", tmp_path / "web")
    capsys.readouterr()
    call("show", "--json", tmp_path / "web" / "cert.pem", ca / "bundle.pem")
    shown = json.loads(capsys.readouterr().out)
    assert [one["who"] for one in shown] == [WEB, f"spiffe://{DOMAIN}", f"spiffe://{DOMAIN}"]


def test_nothing_ever_prints_a_key(ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("issue", "--dir", ca, *WHO, "--out", tmp_path / "web")
    both = tmp_path / "both.pem"
    both.write_bytes((tmp_path / "web/key.pem").read_bytes() + (tmp_path / "web/cert.pem").read_bytes())
    call("show", both)
    call("show", "--json", both)
    with pytest.raises(ConfigError) as caught:
        call("show", ca / "intermediate.key")
    said = "".join(capsys.readouterr()) + str(caught.value)
    for path in (tmp_path / "web/key.pem", ca / "intermediate.key", ca / "root.key"):
        assert "PRIVATE" not in said and path.read_text().splitlines()[1] not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--id", WEB, *WHO), "command line: --id: give either --id, or --namespace and --service-account"),
        (("--namespace", "shop"), "command line: --id: give either --id, or --namespace and --service-account"),
        ((), "command line: --id: give either --id, or --namespace and --service-account"),
        (
            (*WHO, "--ttl", "5w"),
            "command line: --ttl: '5w': expected a time such as 90s, 15m, 24h or 7d",
        ),
        ((*WHO, "--owner", "root"), "command line: --owner: 'root': expected UID or UID:GID, in numbers"),
        (
            ("--id", "spiffe://other/ns/a/sa/b"),
            "command line: --id: 'spiffe://other/ns/a/sa/b': this authority signs for test.local only; did you mean 'spiffe://test.local/ns/a/sa/b'?",
        ),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    ca: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        call("issue", "--dir", ca, *options, "--out", tmp_path / "web")
    assert str(caught.value) == message and not (tmp_path / "web").exists()


def test_a_trust_domain_is_lower_case(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--trust-domain: 'Cluster\.Local': .*lower case"):
        call("init", "--dir", tmp_path / "ca", "--trust-domain", "Cluster.Local")


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("24h", 86400), ("7d", 604800)])
def test_durations_have_one_unit(text: str, seconds: int) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-1h", "1", "h", "1.5h", "1 h", "9999999d", "1h30m"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="expected a time"):
        parse_seconds(text)


def test_time_is_told_in_two_units() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    hours = timedelta(hours=3, minutes=12)
    assert in_words(hours) == "3 h 12 min"
    assert validity(now - hours, now + hours, now).endswith("expires in 3 h 12 min")
    assert validity(now - 2 * hours, now - hours, now).endswith("expired 3 h 12 min ago")
    assert validity(now + hours, now + 2 * hours, now).endswith("begins in 3 h 12 min")


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("--help")
    assert "tproxy ca issue --dir ca --namespace shop" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [("shop/sa/admin", "web"), ("shop", "web/x")])
def test_a_namespace_or_service_account_is_one_segment(ca: Path, tmp_path: Path, bad: tuple[str, str]) -> None:
    with pytest.raises(ConfigError):
        call("issue", "--dir", ca, "--namespace", bad[0], "--service-account", bad[1], "--out", tmp_path / "x")


def test_show_says_that_a_key_is_in_the_same_file(ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("issue", "--dir", ca, *WHO, "--out", tmp_path / "web")
    both = tmp_path / "both.pem"
    both.write_bytes((tmp_path / "web/key.pem").read_bytes() + (tmp_path / "web/cert.pem").read_bytes())
    capsys.readouterr()
    call("show", both)
    assert "private key" in capsys.readouterr().out
