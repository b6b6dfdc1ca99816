"""Join tokens: how a workload outside Kubernetes proves who it is. Only a token's SHA-256 is kept.

A token reads ``tproxy-join.<name>.<secret>``; the name is public and finds the line, the secret has 256 bits, so a
plain hash keeps it (there is nothing to guess).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from tproxy.control.refusal import Refused, Why
from tproxy.control.state import State
from tproxy.core.address import Address
from tproxy.core.identity import SpiffeId

PREFIX = "tproxy-join."


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What is known of a token; times are unix seconds."""

    name: str
    id: str
    expires: int
    address: str  # "" for anywhere
    uses: int | None  # left; None for any number
    revoked: bool

    def in_words(self, now: int) -> str:
        """Whether it still opens the door."""
        if self.revoked:
            return "revoked"
        if self.expires <= now:
            return "expired"
        if self.uses is not None and self.uses <= 0:
            return "used up"
        return "good" if self.uses is None else f"good for {self.uses} more"


def create(state: State, workload: SpiffeId, expires: int, address: str = "", uses: int | None = None) -> str:
    """The token itself, which nobody can show again."""
    name, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    row = (name, _digest(secret), str(workload), expires, address, uses)
    with state.writing() as db:
        db.execute("INSERT INTO tokens(name, digest, id, expires, address, uses) VALUES(?, ?, ?, ?, ?, ?)", row)
    return f"{PREFIX}{name}.{secret}"


def listed(state: State) -> list[JoinToken]:
    """All of them, the last to expire first."""
    rows = state.rows("SELECT name, id, expires, address, uses, revoked FROM tokens ORDER BY expires DESC, name")
    return [JoinToken(*row[:5], bool(row[5])) for row in rows]  # type: ignore[arg-type, call-arg]


def revoke(state: State, name: str) -> bool:
    """Whether there was such a token. Certificates that it fetched live on to their end."""
    with state.writing() as db:
        return db.execute("UPDATE tokens SET revoked = 1 WHERE name = ?", (name,)).rowcount == 1


def check(state: State, token: str, address: Address | None, now: int) -> JoinToken | Refused:
    """Who a token stands for; its use is taken only with the issuance (``State.record``)."""
    name, _, secret = token.removeprefix(PREFIX).partition(".")
    query = "SELECT name, id, expires, address, uses, revoked, digest FROM tokens WHERE name = ?"
    rows = state.rows(query, name[:64])
    digest = rows[0][6] if rows else b"\0" * 32
    if not isinstance(digest, bytes) or not hmac.compare_digest(digest, _digest(secret)) or not rows:
        return Refused(Why.JOIN_TOKEN, "the join token is not one of ours")
    found = JoinToken(*rows[0][:5], bool(rows[0][5]))  # type: ignore[arg-type, call-arg]
    words = found.in_words(now)
    if not words.startswith("good"):
        return Refused(Why.JOIN_TOKEN, f"the join token {name} is {words}", found.id)
    if found.address and found.address != str(address):
        why = f"the join token {name} is for {found.address}, and the caller is {address}"
        return Refused(Why.JOIN_ADDRESS, why, found.id)
    return found


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
