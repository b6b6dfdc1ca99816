"""Rotating the root: three steps, none skipped, and what the issuance log says decides when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control import DOMAIN, WEB
from tproxy.cli import main
from tproxy.control import authority, rotation, signer, store
from tproxy.control.explain import certificates
from tproxy.control.rotation import NotYet
from tproxy.control.state import Entry, Outcome, State
from tproxy.core.fields import ConfigError

NOW = 1_800_000_000
MINUTE = 60


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    store.create(tmp_path / "ca", DOMAIN, "ecdsa")
    return tmp_path / "ca"


@pytest.fixture
def state(ca: Path) -> Iterator[State]:
    made = State.open(ca)
    yield made
    made.close()


def issue(state: State, serial: str, until: int, holder: str = "pod", how: str = "kubernetes") -> Outcome:
    """A line in the log, as the signer of this moment makes it."""
    version, generations = state.generations()
    number = signer.signing(generations).number
    entry = Entry(serial, str(WEB), holder, "10.0.0.1", "shop/web", how, NOW, until, number, version)
    return state.record([entry], NOW)[0]


def add(ca: Path, state: State) -> None:
    assert not isinstance(rotation.add(ca, state, DOMAIN, "ecdsa", NOW), NotYet)


def roots(ca: Path) -> int:
    return len(certificates((ca / "bundle.pem").read_bytes()))


def test_three_steps_replace_the_root_and_everybody_can_follow(ca: Path, state: State) -> None:
    old = (ca / "bundle.pem").read_bytes()
    add(ca, state)
    assert roots(ca) == 2 and signer.load(ca, state).generation == 1
    assert rotation.switch(ca, state, NOW) == []
    assert roots(ca) == 2 and signer.load(ca, state).generation == 2
    assert rotation.drop(ca, state, NOW) == []
    assert roots(ca) == 1 and (ca / "bundle.pem").read_bytes() != old
    assert (ca / "bundle.pem").read_bytes() == (ca / "generation-2" / "bundle.pem").read_bytes()


@pytest.mark.parametrize(
    ("taken", "right"),
    [((), "add"), (("add",), "switch"), (("add", "switch"), "drop"), (("add", "switch", "drop"), "add")],
)
def test_no_step_can_be_skipped_or_taken_twice_not_even_by_force(
    ca: Path, state: State, taken: tuple[str, ...], right: str
) -> None:
    steps = {
        "add": lambda: rotation.add(ca, state, DOMAIN, "ecdsa", NOW),
        "switch": lambda: rotation.switch(ca, state, NOW, force=True),
        "drop": lambda: rotation.drop(ca, state, NOW, force=True),
    }
    for step in taken:
        assert not isinstance(steps[step](), NotYet)
    before = state.generations()
    for wrong in steps.keys() - {right}:
        refused = steps[wrong]()
        assert isinstance(refused, NotYet) and f"the next step is tproxy ca rotate {right}, not {wrong}" in refused.why
    assert state.generations() == before


def test_switch_waits_until_every_holder_has_come_back_for_both_roots_or_its_certificate_ended(
    ca: Path, state: State
) -> None:
    issue(state, "1", NOW + 3600, "early")
    issue(state, "2", NOW + 600, "dies")
    add(ca, state)
    assert [one.holder for one in rotation.standing(state, NOW).waiting] == ["dies", "early"]
    refused = rotation.switch(ca, state, NOW)
    assert isinstance(refused, NotYet) and "2 certificates" in refused.why and "--force" in refused.why
    issue(state, "3", NOW + 3600, "early")
    assert isinstance(rotation.switch(ca, state, NOW + 600), NotYet)  # a clock may be a minute behind
    assert rotation.switch(ca, state, NOW + 600 + MINUTE) == []


def test_drop_waits_until_nothing_that_the_old_root_signed_can_be_alive(ca: Path, state: State) -> None:
    issue(state, "1", NOW + 600)
    add(ca, state)
    issue(state, "2", NOW + 3600)
    assert rotation.switch(ca, state, NOW) == []
    issue(state, "3", NOW + 9999)  # of the new one
    assert isinstance(rotation.drop(ca, state, NOW + 3600), NotYet)
    assert rotation.drop(ca, state, NOW + 3600 + MINUTE) == []


def test_force_takes_the_step_and_names_who_is_left_behind(ca: Path, state: State) -> None:
    issue(state, "1", NOW + 3600, "left")
    add(ca, state)
    left = rotation.switch(ca, state, NOW, force=True)
    assert isinstance(left, list) and [(one.holder, one.until) for one in left] == [("left", NOW + 3600)]


def test_the_servers_own_certificate_keeps_nobody_waiting(ca: Path, state: State) -> None:
    issue(state, "1", NOW + 3600, "self", how="self")
    add(ca, state)
    assert rotation.switch(ca, state, NOW) == [] and rotation.drop(ca, state, NOW) == []


def test_what_was_signed_before_a_step_and_comes_after_it_is_not_written(ca: Path, state: State) -> None:
    late = Entry("1", str(WEB), "pod", "", "", "kubernetes", NOW, NOW + 60, 1, state.version())
    add(ca, state)
    assert state.record([late], NOW) == [Outcome.STALE]
    assert state.rows("SELECT * FROM issued") == []


def test_a_serial_number_is_written_once(ca: Path, state: State) -> None:
    assert [issue(state, "1", NOW + 60), issue(state, "1", NOW + 60)] == [Outcome.DONE, Outcome.TAKEN]


def test_what_expired_long_ago_is_forgotten_and_nothing_else(ca: Path, state: State) -> None:
    for serial, until in (("1", NOW - 100), ("2", NOW - 10), ("3", NOW + 10)):
        issue(state, serial, until)
    assert (state.prune(NOW - 50), state.prune(NOW - 50)) == (1, 0)
    assert state.rows("SELECT serial FROM issued ORDER BY serial") == [("2",), ("3",)]


def test_a_folder_left_by_a_crash_between_files_and_state_is_passed_over(ca: Path, state: State) -> None:
    store.create(ca / "generation-2", DOMAIN, "ecdsa")
    add(ca, state)
    assert [one.number for one in state.generations()[1]] == [1, 3]


def test_a_bundle_left_by_a_crash_between_state_and_files_is_mended(ca: Path, state: State) -> None:
    old = (ca / "bundle.pem").read_bytes()
    add(ca, state)
    both = (ca / "bundle.pem").read_bytes()
    (ca / "bundle.pem").write_bytes(old)
    rotation.publish(ca, state)
    assert (ca / "bundle.pem").read_bytes() == both


def test_certificates_of_the_command_line_follow_the_rotation_and_hold_it_up(
    ca: Path, state: State, tmp_path: Path
) -> None:
    web, now = tmp_path / "web", int(authority.utc_now().timestamp())
    assert main(["ca", "issue", "--dir", str(ca), "--id", str(WEB), "--out", str(web), "--ttl", "1h"]) == 0
    assert main(["ca", "rotate", "--dir", str(ca), "add"]) == 0
    assert main(["ca", "rotate", "--dir", str(ca), "switch"]) == 1
    assert main(["ca", "issue", "--dir", str(ca), "--id", str(WEB), "--out", str(web), "--ttl", "1h", "--renew"]) == 0
    assert (web / "ca.pem").read_bytes() == (ca / "bundle.pem").read_bytes()
    assert main(["ca", "rotate", "--dir", str(ca), "switch"]) == 0
    assert main(["ca", "issue", "--dir", str(ca), "--id", str(WEB), "--out", str(web), "--ttl", "1h", "--renew"]) == 0
    above = certificates((web / "cert.pem").read_bytes())[1]
    assert above == certificates((ca / "generation-2" / "intermediate.crt").read_bytes())[0]
    assert [one.id for one in rotation.standing(state, now).waiting] == [str(WEB)]


def test_status_and_show_tell_the_state_in_words(ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["ca", "rotate", "--dir", str(ca), "add"])
    capsys.readouterr()
    assert main(["ca", "rotate", "--dir", str(ca), "status"]) == main(["ca", "show", "--dir", str(ca)]) == 0
    out = capsys.readouterr().out
    assert out.count("generation 1: trusted, signs; its root ends ") == 2
    assert out.count("generation 2: trusted, does not sign yet since ") == 2
    assert out.count("next step: tproxy ca rotate switch, at any time") == 2


def test_a_token_is_shown_once_and_listed_without_its_secret(ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--dir", str(ca)]
    assert main(["ca", "token", *folder, "--id", str(WEB), "--ttl", "1h", "--address", "10.0.0.7", "--uses", "3"]) == 0
    token = capsys.readouterr().out.strip()
    _, name, secret = token.split(".")
    assert main(["ca", "tokens", *folder]) == 0
    listed = capsys.readouterr().out
    assert name in listed and "good for 3 more" in listed and "only from 10.0.0.7" in listed and secret not in listed
    assert main(["ca", "token", *folder, "--revoke", name]) == 0
    main(["ca", "tokens", *folder, "--json"])
    assert '"state": "revoked"' in capsys.readouterr().out
    assert main(["ca", "token", *folder, "--revoke", name[:-1]]) == 2
    assert f"did you mean '{name}'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (("--id", "x"), "--id"),
        (("--id", "spiffe://other/a"), "--id"),
        (("--id", str(WEB), "--ttl", "1y"), "--ttl"),
        (("--id", str(WEB), "--address", "host"), "--address"),
        (("--id", str(WEB), "--uses", "0"), "--uses"),
    ],
)
def test_a_token_that_makes_no_sense_is_not_made(
    ca: Path, options: tuple[str, ...], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ca", "token", "--dir", str(ca), *options]) == 2
    said = capsys.readouterr()
    assert f"command line: {field}: " in said.err and not said.out


def test_a_damaged_state_is_named_and_never_replaced(ca: Path) -> None:
    (ca / "state.db").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match=r"state\.db: file is not a database"):
        State.open(ca)
    assert (ca / "state.db").read_bytes().startswith(b"not a database")
