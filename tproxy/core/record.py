"""One record per connection, whatever its end: log line, JSON and counters are read from this one value."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from tproxy.core.address import Endpoint
from tproxy.core.reason import ADVICE, Reason


class Direction(StrEnum):
    """Seen from the pod; a gateway's connections come from outside the cluster."""

    EGRESS = "egress"
    INGRESS = "ingress"
    GATEWAY = "gateway"


class Outcome(StrEnum):
    """How a connection ended: carried, broken by one side, cut by us, refused by a rule, or failed at its start."""

    CLOSED = "closed"
    RESET = "reset"
    TRUNCATED = "truncated"  # TCP ended without TLS close_notify: passed on as a reset, never as a clean end
    CUT = "cut"
    REFUSED = "refused"
    FAILED = "failed"


_BARE = re.compile(r"[!#-<>-~]*").fullmatch  # printable ASCII without blank, quote and equals sign
_NEVER_BEGAN = (Outcome.REFUSED, Outcome.FAILED)


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """What the handshake agreed on."""

    version: str
    cipher: str
    group: str


@dataclass(frozen=True, slots=True)
class Record:
    """All that is known of one connection. Times in seconds; bytes are the application's, not TLS's."""

    time: float  # unix, at accept
    direction: Direction
    source: Endpoint
    target: Endpoint
    outcome: Outcome
    seconds: float
    reason: Reason | None = None
    why: str = ""
    rule: str = ""
    peer: str = ""
    own: str = ""
    peer_serial: str = ""  # hexadecimal
    own_serial: str = ""
    tls: TlsFacts | None = None
    sni: str = ""  # what the client asked for, where it was not we who ended TLS
    backend: Endpoint | None = None  # where a gateway, or a rule of egress, sent it
    router: str = ""  # by whom it left, where a rule of egress says so
    sent: int = 0  # from the one who called to the one who was called
    received: int = 0
    ended_by: str = ""  # source, target or sidecar
    dry_run: str = ""  # what policies on trial would have decided, and by which rule
    audit: str = ""  # rules of AUDIT policies that matched

    def pairs(self) -> dict[str, str | int | float]:
        """Name and value of everything worth writing, in the order of the line."""
        tls, reason = self.tls, self.reason
        stamp = datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds")
        line: dict[str, str | int | float] = {
            "time": f"{stamp[:-6]}Z",
            "direction": self.direction.value,
            "source": str(self.source),
            "destination": str(self.target),
            "outcome": self.outcome.value,
        }
        for key, value in (
            ("reason", "" if reason is None else reason.value),
            ("rule", self.rule),
            ("dry_run", self.dry_run),
            ("audit", self.audit),
            ("peer", self.peer),
            ("self", self.own),
            ("peer_serial", self.peer_serial),
            ("self_serial", self.own_serial),
            ("sni", self.sni),
            ("router", self.router),
            ("backend", "" if self.backend is None else str(self.backend)),
            ("tls", self._without_tls() if tls is None else tls.version),
            ("cipher", "" if tls is None else tls.cipher),
            ("group", "" if tls is None else tls.group),
        ):
            if value:
                line[key] = value
        line["sent"], line["received"], line["duration"] = self.sent, self.received, round(self.seconds, 6)
        for key, value in (
            ("ended_by", self.ended_by),
            ("why", self.why),
            ("advice", "" if reason is None else ADVICE[reason]),
        ):
            if value:
                line[key] = value
        return line

    def _without_tls(self) -> str:
        if self.outcome in _NEVER_BEGAN:
            return ""
        return "passthrough" if self.sni else "" if self.direction is Direction.GATEWAY else "plaintext"

    def text(self) -> str:
        """One line of key=value; values with spaces are quoted, control characters are escaped."""
        return " ".join([f"{key}={_quoted(value)}" for key, value in self.pairs().items()])

    def json(self) -> str:
        """One line of JSON."""
        return _escaped(self.pairs())


def _quoted(value: str | float) -> str:
    if not isinstance(value, str):
        return str(value)
    return value if _BARE(value) else _escaped(value)


def _escaped(value: object) -> str:
    """JSON in printable ASCII only; DEL is the one control character that json leaves as it is."""
    return json.dumps(value).replace("\x7f", "\\u007f")
