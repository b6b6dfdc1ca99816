"""Requests to backends that a DestinationRule bounds or watches; all others have nothing to do with this."""

from __future__ import annotations

from dataclasses import replace

from tproxy.core.balance.outlier import status_of
from tproxy.core.http import retry as retries
from tproxy.core.http.head import Reply
from tproxy.core.http.onward import Forward
from tproxy.gateway.guards import Guard
from tproxy.gateway.http import failures
from tproxy.gateway.http.attempt import Attempt
from tproxy.gateway.http.engine import Done, Engine
from tproxy.gateway.http.exchange import Exchange
from tproxy.gateway.http.limits import Limits
from tproxy.gateway.http.pool import Dial, Pool
from tproxy.gateway.http.stream import Broken, Reset, Stream
from tproxy.gateway.http.wheel import Wheel

_OURS = (Broken.OVERLOAD, Broken.UNPROCESSED)  # say nothing of the endpoint
_FOREVER = 1e9  # seconds


class GuardedExchange(Exchange):
    """Tells its backend's guard what becomes of each try, and asks it before one."""

    __slots__ = ("_counted", "_guard", "_retrying")

    def __init__(self, engine: Engine, stream: Stream, forward: Forward, done: Done, end: bool) -> None:
        self._guard = engine.guards.of(forward.backend)
        self._counted = self._retrying = False
        super().__init__(engine, stream, forward, done, end)

    def _try(self, fresh: bool = False) -> None:
        guard, backend = self._guard, self._plan.backend
        if not self._counted:
            if over := guard.no_request():
                self._fail(*failures.FAILURES[Broken.OVERLOAD], over)
                return
            self._counted = True
            guard.requests += 1
        if not guard.left(backend.endpoints):
            self._fail(503, "no healthy upstream", "UH", f"all endpoints of {backend.name} are left out for failing")
            return
        super()._try(fresh)

    def failed(self, attempt: Attempt, reset: Reset) -> None:
        endpoint, retry = self._done.endpoint, self._plan.retry
        if endpoint is not None and reset.kind not in _OURS:
            self._guard.failed(endpoint, reset.kind is Broken.TIMEOUT)
        if retry is not None and not self._replied and failures.wanted(retry, reset.kind):
            self._ask_to_retry()
        super().failed(attempt, reset)

    def replied(self, attempt: Attempt, reply: Reply, end: bool) -> bool:
        endpoint, retry = self._done.endpoint, self._plan.retry
        if endpoint is not None and (reply.status >= 200 or reply.status == 101):
            self._guard.answered(endpoint, status_of(reply.status, reply.headers, end))
            if retry is not None and retries.after_reply(retry, reply, end):
                self._ask_to_retry()
                if self._done.flags == "UO":
                    self._done.details = "via_upstream"
        return super().replied(attempt, reply, end)

    def late_try(self, attempt: Attempt) -> None:
        endpoint, retry = self._done.endpoint, self._plan.retry
        awaited = self._attempt is attempt and not self._replied
        if awaited and retry is not None and retries.after_timeout(retry):
            self._ask_to_retry()
        super().late_try(attempt)
        if awaited and endpoint is not None and not self._replied:  # else it has been told of as the last one
            self._guard.failed(endpoint, True)

    def timed_out(self) -> None:
        if self._attempt is not None and self._done.endpoint is not None:
            self._guard.failed(self._done.endpoint, True)
        super().timed_out()

    def _ask_to_retry(self) -> None:
        """Envoy's retry circuit breaker: without leave the failure is the answer, and says so."""
        if self._retrying or self._left <= 0 or self._kept is None:
            return
        if over := self._guard.no_retry():
            self._left = 0
            self._done.flags, self._done.why = "UO", over
        else:
            self._retrying = True
            self._guard.retries += 1

    def _over(self) -> None:
        if not self._done.ended:
            self._guard.requests -= self._counted
            self._guard.retries -= self._retrying
            self._counted = self._retrying = False
        super()._over()


class GuardedPool(Pool):
    """Its connections and those of the backend's other endpoints have one limit, and who waits for them has one."""

    def __init__(self, name: str, dial: Dial, wheel: Wheel, limits: Limits, each: int, guard: Guard) -> None:
        super().__init__(name, dial, wheel, limits, each)
        self._guard = guard
        guard.pools.append(self)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiting)

    def _full(self) -> str:
        return self._guard.no_wait() or super()._full()

    def _may_open(self) -> bool:
        return super()._may_open() and (not self.open or self._guard.may_open)


def bounded(limits: Limits, guard: Guard) -> Limits:
    """Of a pool of this backend."""
    caps = guard.caps
    idle = limits.upstream_idle if caps.idle is None else caps.idle or _FOREVER
    return replace(limits, connect=caps.connect or limits.connect, upstream_idle=idle)
