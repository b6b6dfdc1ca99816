"""Where a request goes, and as what: half of what ``plan`` answers.

PURE. Made for each request: its ``__init__`` is written out because that compiles, and what dataclass makes does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from tproxy.core.balance.affinity import Bond
from tproxy.core.http.filters import Retry, Timeouts
from tproxy.core.http.forwarded import Respond
from tproxy.core.http.head import Head
from tproxy.core.http.routes import Rule
from tproxy.core.routes import Backend


@dataclass(slots=True, init=False)
class Forward:
    """``timeouts`` and ``retry`` are the rule's, as this request has them."""

    rule: Rule
    backend: Backend
    head: Head
    respond: Respond
    timeouts: Timeouts
    retry: Retry | None
    mirrors: tuple[tuple[Backend, Head], ...]
    delay: float  # seconds before it is sent: a fault on purpose
    bond: Bond | None  # which endpoint, where that is not left to chance

    def __init__(
        self,
        rule: Rule,
        backend: Backend,
        head: Head,
        respond: Respond,
        timeouts: Timeouts,
        retry: Retry | None,
        mirrors: tuple[tuple[Backend, Head], ...] = (),
        delay: float = 0.0,
        bond: Bond | None = None,
    ) -> None:
        self.rule, self.backend, self.head, self.respond = rule, backend, head, respond
        self.timeouts, self.retry, self.mirrors = timeouts, retry, mirrors
        self.delay, self.bond = delay, bond
