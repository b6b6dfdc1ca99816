"""What the authority must not forget: rotation, issuance log and join tokens, in one SQLite file, ``state.db``.

Why SQLite: it is in the standard library; a commit is whole or not there after kill -9 or a power cut; the commands
and the server may work on it at once; and "which certificates still live" is a query, where files would need an index
of our own. WAL, so that readers never wait for the writer. synchronous=FULL, because a response that went out says that
its line is on the disk; a commit took 1.9 ms here (ext4; NORMAL: 13 us), and ``control.ledger`` shares one among all
who wait.

>>> state = State.open(Path("ca"))                                                              # doctest: +SKIP
>>> state.record([entry], now)                                                                  # doctest: +SKIP
[<Outcome.DONE: 'done'>]
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from enum import StrEnum
from pathlib import Path

from tproxy.core.fields import ConfigError

NAME = "state.db"
SCHEMA = 1  # PRAGMA user_version
WAIT = 5.0  # seconds for another writer's transaction
TABLES = """
CREATE TABLE meta(version INTEGER NOT NULL);
INSERT INTO meta VALUES(1);
CREATE TABLE generations(
  number INTEGER PRIMARY KEY, state TEXT NOT NULL, since INTEGER NOT NULL, version INTEGER NOT NULL,
  bundle TEXT NOT NULL);
CREATE TABLE issued(
  serial TEXT PRIMARY KEY, id TEXT NOT NULL, holder TEXT NOT NULL, caller TEXT NOT NULL, pod TEXT NOT NULL,
  how TEXT NOT NULL, not_before INTEGER NOT NULL, not_after INTEGER NOT NULL, generation INTEGER NOT NULL,
  version INTEGER NOT NULL, token TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX issued_until ON issued(not_after);
CREATE TABLE tokens(
  name TEXT PRIMARY KEY, digest BLOB NOT NULL, id TEXT NOT NULL, expires INTEGER NOT NULL, address TEXT NOT NULL,
  uses INTEGER, revoked INTEGER NOT NULL DEFAULT 0);
"""


class Outcome(StrEnum):
    """What became of one entry."""

    DONE = "done"
    STALE = "stale"  # a rotation step came between signing and writing: sign again
    TAKEN = "taken"  # the serial number is in the log already: sign again
    TOKEN = "token"  # the join token was revoked, used up or expired meanwhile


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the issuance log; times are unix seconds."""

    serial: str  # hexadecimal
    id: str
    holder: str  # who comes back to renew: a pod's uid, a token and its address, a folder
    caller: str  # address of the connection, "" for the command line
    pod: str  # namespace/name
    how: str  # the proof: kubernetes, join token, command line, self
    not_before: int
    not_after: int
    generation: int  # the root that it was signed under
    version: int  # of the state when it was signed: which roots its holder was given
    token: str = ""  # the join token's name, of which one use is taken


@dataclass(frozen=True, slots=True)
class Generation:
    """One root, with the intermediates under it: next (trusted), signing, old (trusted), dropped."""

    number: int
    state: str
    since: int  # unix seconds of the last change of state
    version: int  # of the state as it was then
    bundle: str  # PEM


class State:
    """One connection to the file; for one thread at a time. ConfigError says what is wrong with the file."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path, self._db = path, db

    @classmethod
    def open(cls, folder: Path) -> State:
        """Opens the folder's state and makes it where there is none; needs bundle.pem then."""
        path = folder / NAME
        with _ours(path):
            if not path.exists():
                _bundle(folder)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # -wal and -shm take over the mode
            db = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            state = cls(path, db)
            for pragma in ("journal_mode=WAL", "synchronous=FULL"):
                db.execute(f"PRAGMA {pragma}")
            if state._schema() == 0:
                state._create(folder)
            if state._schema() != SCHEMA:
                raise ConfigError(str(path), "", f"has schema {state._schema()}; this version knows only {SCHEMA}")
        return state

    def _schema(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _create(self, folder: Path) -> None:
        with self.writing() as db:
            if self._schema() == 0:  # somebody else may have been quicker
                for statement in filter(str.strip, TABLES.split(";")):
                    db.execute(statement)
                db.execute("INSERT INTO generations VALUES(1, 'signing', 0, 1, ?)", (_bundle(folder),))
                db.execute(f"PRAGMA user_version={SCHEMA}")

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on the disk when it ends, or never was."""
        with _ours(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """What a SELECT answers."""
        with _ours(self.path):
            return self._db.execute(query, values).fetchall()

    def version(self) -> int:
        """Goes up by one with each step of a rotation."""
        return int(str(self.rows("SELECT version FROM meta")[0][0]))

    def generations(self) -> tuple[int, list[Generation]]:
        """The version and every generation, oldest first, as they belong together."""
        columns = ", ".join(f"generations.{field.name}" for field in fields(Generation))
        rows = self.rows(f"SELECT meta.version, {columns} FROM meta, generations ORDER BY number")
        return int(str(rows[0][0])), [Generation(*row[1:]) for row in rows]  # type: ignore[arg-type]

    def record(self, entries: Sequence[Entry], now: int) -> list[Outcome]:
        """All entries in one transaction; what is not DONE left no trace."""
        with self.writing() as db:
            version = db.execute("SELECT version FROM meta").fetchone()[0]
            return [_record(db, entry, version, now) for entry in entries]

    def prune(self, before: int, most: int = 1000) -> int:
        """Forget tokens and up to so many certificates that had expired by then; how many certificates."""
        with self.writing() as db:
            db.execute("DELETE FROM tokens WHERE expires < ?", (before,))
            victims = "SELECT serial FROM issued WHERE not_after < ? LIMIT ?"
            return db.execute(f"DELETE FROM issued WHERE serial IN ({victims})", (before, most)).rowcount


def _record(db: sqlite3.Connection, entry: Entry, version: int, now: int) -> Outcome:
    if entry.version != version:
        return Outcome.STALE
    if db.execute("SELECT 1 FROM issued WHERE serial = ?", (entry.serial,)).fetchone():
        return Outcome.TAKEN
    if entry.token and not _use(db, entry.token, now):
        return Outcome.TOKEN
    db.execute(f"INSERT INTO issued VALUES({', '.join('?' * len(fields(Entry)))})", astuple(entry))
    return Outcome.DONE


def _use(db: sqlite3.Connection, token: str, now: int) -> bool:
    good = "name = ? AND revoked = 0 AND expires > ? AND (uses IS NULL OR uses > 0)"
    return db.execute(f"UPDATE tokens SET uses = uses - 1 WHERE {good}", (token, now)).rowcount == 1


def _bundle(folder: Path) -> str:
    try:
        return (folder / "bundle.pem").read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        why = f"{getattr(error, 'strerror', None) or error}; make an authority with tproxy ca init --dir {folder}"
        raise ConfigError(str(folder / "bundle.pem"), "--dir", why) from error


@contextmanager
def _ours(path: Path) -> Iterator[None]:
    """What SQLite and the system say becomes ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise ConfigError(str(path), "", f"{error}; is the disk full, or the file damaged or read-only?") from error
    except OSError as error:
        raise ConfigError(str(path), "", f"{error.strerror}; the authority's folder must be writable") from error
