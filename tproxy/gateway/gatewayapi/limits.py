"""Timeouts and retries of a Gateway API rule."""

from __future__ import annotations

from tproxy.core.fields import Fields
from tproxy.core.http.filters import Retry, Timeouts
from tproxy.gateway.http_words import seconds

_RETRIED = frozenset({"connect-failure", "refused-stream", "reset"})  # HTTPRouteRetry: connection errors always are
_ATTEMPTS = 2


def timeouts(rule: Fields) -> Timeouts:
    """0s is for ever, as no timeout is."""
    given = rule.inner("timeouts")
    times = [given.parsed(key, seconds, "0s") or None for key in ("request", "backendRequest")]
    given.finish()
    if times[0] and times[1] and times[1] > times[0]:
        raise given.error("backendRequest", "backendRequest timeout cannot be longer than request timeout")
    return Timeouts(times[0], times[1])


def retry(rule: Fields, limits: Timeouts) -> Retry | None:
    """HTTPRouteRetry: these codes, and connections that fail."""
    if rule.raw("retry") is None:
        return None
    given = rule.inner("retry")
    codes = frozenset(given.items("codes", _code))
    attempts = given.integer("attempts", _ATTEMPTS, 0, 100)
    backoff = given.parsed("backoff", seconds, "25ms")
    given.finish()
    return Retry(attempts, _RETRIED, codes, limits.backend, backoff)


def _code(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 400 <= value <= 599:
        raise ValueError("expected a status code from 400 to 599")
    return value
