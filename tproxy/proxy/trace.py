"""What becomes known of one connection while it lives; its end turns it into the one Record."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from tproxy.core.address import Endpoint
from tproxy.core.directory import Absent, Found
from tproxy.core.plaintext import Talk
from tproxy.core.reason import Deny, Reason
from tproxy.core.record import Direction, Outcome, Record, TlsFacts
from tproxy.identity.openssl import TlsError
from tproxy.proxy.pump import Moved
from tproxy.proxy.tls import Session, denial

STOPPING = Deny(Reason.CUT_BY_DRAIN, "the sidecar is stopping")
_FAILED = frozenset(
    (Reason.CONNECT_REFUSED, Reason.CONNECT_TIMEOUT, Reason.CONNECT_FAILED, Reason.NO_ROUTER, Reason.INTERNAL)
)


@dataclass(slots=True, eq=False)
class Trace:
    """Facts in the order in which they are found."""

    direction: Direction
    source: Endpoint
    target: Endpoint
    began: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.monotonic)
    rule: str = ""
    dry_run: str = ""
    audit: str = ""
    peer: str = ""
    own: str = ""
    peer_serial: str = ""
    own_serial: str = ""
    tls: TlsFacts | None = None
    found: Found = Absent.UNLISTED  # what the directory said of the target
    sni: str = ""
    backend: Endpoint | None = None
    via: str = ""  # the router's name in the configuration
    router: str = ""  # and in records
    local: bool = False  # the target is this pod's own address
    carrying: bool = False  # admitted, and not ended yet
    proven: Session | None = None  # None: plaintext
    carrier: Endpoint | None = None  # who sent the packets, where a PROXY header names the source
    uris: tuple[str, ...] = ()  # of a gateway's client's verified certificate
    ends: float = math.inf  # monotonic
    verdict: Deny | None = None  # why we cut it, if we do

    @property
    def bare(self) -> bool:
        """Without our mTLS, and no rule sends it through a router: such a one leaves the mesh on purpose."""
        return self.proven is None and not self.local and not self.via

    @property
    def talk(self) -> Talk:
        """Who talks to whom, as far as plaintext is told about."""
        peer = self.source if self.direction is Direction.INGRESS else self.target
        return Talk(self.direction, peer.ip, self.target.port)

    def session(self, session: Session) -> None:
        """Who the peer proved to be."""
        self.proven = session
        self.peer, self.peer_serial, self.tls = str(session.peer), f"{session.peer_serial:x}", session.facts

    def refused(self, deny: Deny) -> Record:
        """Nothing was carried."""
        self.rule = deny.rule or self.rule
        outcome = Outcome.FAILED if deny.reason in _FAILED else Outcome.REFUSED
        return self._record(outcome, Moved(0, 0, outcome, "sidecar"), deny.reason, deny.why)

    def moved(self, moved: Moved) -> Record:
        """Something was carried, to whatever end."""
        if moved.outcome is Outcome.CUT:
            verdict = self.verdict or STOPPING
            self.rule = verdict.rule or self.rule
            return self._record(Outcome.CUT, moved, verdict.reason, verdict.why)
        error, reason, why = moved.error, None, str(moved.error or "")
        if isinstance(error, TlsError):  # an alert, or damage, in the middle of the stream
            deny = denial(error, self.direction is Direction.INGRESS)
            reason, why = deny.reason, deny.why
        elif self._turned_away(moved):
            reason, why = Reason.REFUSED_BY_PEER, "the peer reset the connection before it sent a byte"
        return self._record(moved.outcome, moved, reason, why)

    def _turned_away(self, moved: Moved) -> bool:
        """A mesh peer that refuses us by policy proves its identity first, and then resets."""
        reset = moved.outcome is Outcome.RESET and moved.ended_by == "target"
        return reset and self.direction is Direction.EGRESS and self.tls is not None and not moved.received

    def cut(self) -> Record:
        """Ended by us before anything was carried."""
        return self.moved(Moved(0, 0, Outcome.CUT, "sidecar"))

    def _record(self, outcome: Outcome, moved: Moved, reason: Reason | None, why: str) -> Record:
        return Record(
            time=self.began,
            direction=self.direction,
            source=self.source,
            target=self.target,
            outcome=outcome,
            seconds=time.monotonic() - self.clock,
            reason=reason,
            why=why,
            rule=self.rule,
            dry_run=self.dry_run,
            audit=self.audit,
            peer=self.peer,
            own=self.own,
            peer_serial=self.peer_serial,
            own_serial=self.own_serial,
            tls=self.tls,
            sni=self.sni,
            router=self.router,
            backend=self.backend,
            sent=moved.sent,
            received=moved.received,
            ended_by=moved.ended_by,
        )
