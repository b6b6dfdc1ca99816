"""Replacing the root in three steps, none of which can be skipped: add, switch, drop.

    steady --add--> added --switch--> switched --drop--> steady

``add`` makes a new root, and every response from then on carries both. ``switch`` signs with the new one, once every
holder of a living certificate was given both. ``drop`` forgets the old one, once nothing that it signed can be alive.
Each step is one transaction; what the issuance log says decides, not a guess at time.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tproxy.control import store
from tproxy.control.signer import home, roots
from tproxy.control.state import Generation, State
from tproxy.core.fields import ConfigError

SKEW = 60  # seconds that a peer's clock may be behind: an expired certificate lives so much longer there


class Step(StrEnum):
    """Where a rotation stands; the step that comes next."""

    STEADY = "steady"
    ADDED = "added"
    SWITCHED = "switched"

    @property
    def following(self) -> str:
        """The command that may come next."""
        return {"steady": "add", "added": "switch", "switched": "drop"}[self.value]


@dataclass(frozen=True, slots=True)
class Holder:
    """Whoever keeps a step from being safe."""

    id: str
    holder: str
    until: int  # unix seconds: when its certificate ends


@dataclass(frozen=True, slots=True)
class Standing:
    """A rotation's state; ``waiting`` keeps the following step from being safe."""

    step: Step
    generations: list[Generation]
    waiting: list[Holder]


@dataclass(frozen=True, slots=True)
class NotYet:
    """A step that was refused: why, and what can be done."""

    why: str


def standing(state: State, now: int) -> Standing:
    """Where it stands."""
    _, generations = state.generations()
    kinds = {one.state: one for one in generations}
    if "next" in kinds:
        return Standing(Step.ADDED, generations, _without(state, kinds["next"], now))
    if "old" in kinds:
        return Standing(Step.SWITCHED, generations, _under(state, kinds["old"], now))
    return Standing(Step.STEADY, generations, [])


def _without(state: State, new: Generation, now: int) -> list[Holder]:
    """Holders of living certificates whose newest came before the new root was in the bundle."""
    alive = "FROM issued WHERE not_after > ? AND how != 'self' GROUP BY id, holder"
    query = f"SELECT id, holder, max(not_after) {alive} HAVING max(version) < ?"
    rows = state.rows(query, now - SKEW, new.version)
    return [Holder(*row) for row in rows]  # type: ignore[arg-type]


def _under(state: State, old: Generation, now: int) -> list[Holder]:
    """Holders of certificates that the old root's intermediates signed and that may still live."""
    alive = "FROM issued WHERE not_after > ? AND how != 'self' AND generation <= ? GROUP BY id, holder"
    query = f"SELECT id, holder, max(not_after) {alive}"
    return [Holder(*row) for row in state.rows(query, now - SKEW, old.number)]  # type: ignore[arg-type]


def add(folder: Path, state: State, trust_domain: str, kind: str, now: int) -> Generation | NotYet:
    """A new root beside the old one, in a folder of its own."""
    if found := _misplaced(state, "add", now):
        return found
    known = [one.number for one in state.generations()[1]]
    number = 1 + max([*known, *(int(path.name[11:]) for path in folder.glob("generation-[0-9]*"))])
    place = home(folder, number)  # a folder without a row, from a crash just here, is left alone
    root = store.create(place, trust_domain, kind)
    bundle = root.certificate_pem().decode()
    with state.writing() as db:
        if found := _misplaced(state, "add", now):
            return found
        db.execute("UPDATE meta SET version = version + 1")
        db.execute("INSERT INTO generations SELECT ?, 'next', ?, version, ? FROM meta", (number, now, bundle))
    publish(folder, state)
    return state.generations()[1][-1]


def switch(folder: Path, state: State, now: int, force: bool = False) -> list[Holder] | NotYet:
    """Sign with the new root. The holders who were left behind by ``force``."""
    return _move(folder, state, "switch", now, force, (("signing", "old"), ("next", "signing")))


def drop(folder: Path, state: State, now: int, force: bool = False) -> list[Holder] | NotYet:
    """Trust the old root no more. The holders who were left behind by ``force``."""
    return _move(folder, state, "drop", now, force, (("old", "dropped"),))


def _move(
    folder: Path, state: State, command: str, now: int, force: bool, changes: tuple[tuple[str, str], ...]
) -> list[Holder] | NotYet:
    with state.writing() as db:  # nothing is issued between the look and the change
        if found := _misplaced(state, command, now):
            return found
        waiting = standing(state, now).waiting
        if waiting and not force:
            return NotYet(_risk(command, waiting, now))
        db.execute("UPDATE meta SET version = version + 1")
        for before, after in changes:
            db.execute(
                "UPDATE generations SET state = ?, since = ?, version = (SELECT version FROM meta) WHERE state = ?",
                (after, now, before),
            )
    publish(folder, state)
    return waiting


def _misplaced(state: State, command: str, now: int) -> NotYet | None:
    step = standing(state, now).step
    if step.following == command:
        return None
    return NotYet(f"the rotation is {step}: the next step is tproxy ca rotate {step.following}, not {command}")


def _risk(command: str, waiting: list[Holder], now: int) -> str:
    names = ", ".join(sorted({one.id for one in waiting})[:5]) + (" and more" if len(waiting) > 5 else "")
    last = max(one.until for one in waiting) + SKEW - now
    if command == "switch":
        risk = "they do not know the new root yet and would refuse everyone who renews"
    else:
        risk = "everyone else would refuse them"
    return f"{len(waiting)} certificates of {names} live for up to {last} s more; with --force {risk}"


def publish(folder: Path, state: State) -> None:
    """Make ``bundle.pem`` what the state says, for those who read the file; again after a crash in between."""
    trusted, path = roots(state.generations()[1]).encode(), folder / "bundle.pem"
    part = folder / f".bundle.pem.{secrets.token_hex(4)}"
    try:
        if path.exists() and path.read_bytes() == trusted:
            return
        with part.open("xb") as file:
            file.write(trusted)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.rename(path)
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be written: {error.strerror}") from error
