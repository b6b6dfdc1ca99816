"""What becomes of a request whose try failed: another try, or an answer in Envoy's words."""

from __future__ import annotations

from typing import Final

from tproxy.core.address import Endpoint
from tproxy.core.http import retry as retries
from tproxy.core.http.filters import Flavour, Retry, Timeouts
from tproxy.core.http.head import Head
from tproxy.core.http.local import Answer, local
from tproxy.core.http.onward import Forward
from tproxy.gateway.http.stream import Broken

_BEFORE: Final = "upstream connect error or disconnect/reset before headers. reset reason: "
FAILURES: Final = {  # status, body, Envoy's response flag
    Broken.CONNECT: (503, f"{_BEFORE}remote connection failure", "UF"),
    Broken.UNPROCESSED: (503, f"{_BEFORE}connection termination", "UC"),
    Broken.CLOSED: (503, f"{_BEFORE}connection termination", "UC"),
    Broken.RESET: (503, f"{_BEFORE}remote reset", "UR"),
    Broken.MALFORMED: (502, f"{_BEFORE}protocol error", "UPE"),
    Broken.TIMEOUT: (503, f"{_BEFORE}connection timeout", "UF"),
    Broken.OVERLOAD: (503, f"{_BEFORE}overflow", "UO"),
}
TRIES: Final = 3  # endpoints of a backend, while none could be connected to
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})  # RFC 9110, 9.2.2


def answer(head: Head, flavour: Flavour, status: int, text: str, rule: str, flags: str, why: str) -> Answer:
    """In Envoy's words, and with what Envoy adds where a limit was reached."""
    more = [("x-envoy-overloaded", "true")] if flags == "UO" and flavour is Flavour.ISTIO else []
    return local(head, flavour, status, body=text.encode(), headers=more, rule=rule, flags=flags, why=why)


def wanted(retry: Retry, kind: Broken) -> bool:
    """Whether a rule tries again after this."""
    match kind:
        case Broken.CONNECT:
            return retries.after_connect(retry)
        case Broken.UNPROCESSED:
            return retries.after_refused(retry)
        case Broken.TIMEOUT:  # of connecting
            return retries.after_timeout(retry) or retries.after_connect(retry)
        case Broken.OVERLOAD:
            return False
        case _:
            return retries.after_reset(retry)


def again(kind: Broken, plan: Forward, tried: list[Endpoint], tries: int, one: bool) -> bool:
    """Whether it is tried again although no rule says so: nothing can have happened yet. ``one``: by HTTP/1.1."""
    if kind is Broken.CONNECT:
        return len(tried) < TRIES and bool(set(plan.backend.endpoints) - set(tried))
    safe = not one or plan.head.method in IDEMPOTENT
    return kind is Broken.UNPROCESSED and safe and tries < TRIES


def per_try(timeouts: Timeouts, retry: Retry | None) -> float | None:
    """Seconds until one try is over; the shorter of two."""
    if retry is None:
        return timeouts.backend or None
    both = (timeouts.backend, retry.per_try)
    return min((seconds for seconds in both if seconds), default=None)
