"""One line for each certificate, each refusal and each review; counters are read from the same values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

from tproxy.control.admission import Reply
from tproxy.control.refusal import Refused
from tproxy.control.state import Entry

Line: TypeAlias = "Issued | Turned | Reviewed"
MOST = 400  # characters of what a stranger wrote


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that is in the log."""

    time: float  # unix
    entry: Entry

    def pairs(self) -> dict[str, str]:
        """Name and value, in the order of the line."""
        entry = self.entry
        line = {
            "time": _stamp(self.time),
            "event": "issued",
            "serial": entry.serial,
            "id": entry.id,
            "caller": entry.caller,
            "pod": entry.pod,
            "not_after": _stamp(entry.not_after),
            "how": entry.how,
            "token": entry.token,  # its name, which is no secret
            "generation": str(entry.generation),
        }
        return {key: value for key, value in line.items() if value}


@dataclass(frozen=True, slots=True)
class Turned:
    """A caller that was turned away."""

    time: float  # unix
    caller: str
    refused: Refused

    def pairs(self) -> dict[str, str]:
        """Name and value, in the order of the line."""
        refused = self.refused
        line = {
            "time": _stamp(self.time),
            "event": "refused",
            "caller": self.caller,
            "who": refused.who,
            "reason": refused.reason.value,
            "why": refused.why,
            "advice": refused.advice,
        }
        return {key: value for key, value in line.items() if value}


@dataclass(frozen=True, slots=True)
class Reviewed:
    """An answer of the webhook."""

    time: float  # unix
    caller: str
    reply: Reply
    seconds: float

    def pairs(self) -> dict[str, str]:
        """Name and value, in the order of the line. The uid is cut: whole, it is the key that the pod's hooks show."""
        reply = self.reply
        line = {
            "time": _stamp(self.time),
            "event": "review",
            "outcome": reply.did,
            "pod": reply.pod,
            "uid": reply.uid[:8],
            "why": reply.body.decode(errors="replace").strip() if reply.did == "unreadable" else reply.why,
            "caller": self.caller,
            "status": str(reply.status),
            "ms": f"{self.seconds * 1000:.1f}",
        }
        return {key: value[:MOST] for key, value in line.items() if value}


def text(line: Line) -> str:
    """key=value; values with spaces are quoted, control characters are escaped."""
    return " ".join(f"{key}={_quoted(value)}" for key, value in line.pairs().items())


def as_json(line: Line) -> str:
    """One line of JSON in printable ASCII."""
    return json.dumps(line.pairs()).replace("\x7f", "\\u007f")


def _quoted(value: str) -> str:
    plain = value.isascii() and value.isprintable() and not set(value) & set(' "=')
    return value if plain else json.dumps(value).replace("\x7f", "\\u007f")


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
