"""One request on its way: from a client's stream to a backend's and back, with tries, deadlines and mirrors.

What to do is ``core.http_plan``'s decision; this does it. Both directions flow at once, and whoever is slow brakes the
other side: at most one read and ``limits.congested`` bytes wait, and a body kept for another try has a bound, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import assert_never

from tproxy.core import http_retry as retries
from tproxy.core.address import Endpoint
from tproxy.core.http import Head, Headers, Reply
from tproxy.core.http_forwarded import Client as Caller
from tproxy.core.http_local import Answer, local
from tproxy.core.http_plan import Forward, plan
from tproxy.core.http_routes import HttpTable
from tproxy.core.routes import Backend
from tproxy.gateway.http.h1_client import H1Client
from tproxy.gateway.http.limits import Limits
from tproxy.gateway.http.mirror import Shadow
from tproxy.gateway.http.pool import Pool
from tproxy.gateway.http.stream import Broken, Client, Reset, Sink, Stream
from tproxy.gateway.http.wheel import Timer, Wheel

TRIES = 3  # endpoints of a backend, while none could be connected to
_BEFORE = "upstream connect error or disconnect/reset before headers. reset reason: "
_FAILURES = {  # status, Envoy's reset reason, its response flag
    Broken.CONNECT: (503, "remote connection failure", "UF"),
    Broken.UNPROCESSED: (503, "connection termination", "UC"),
    Broken.CLOSED: (503, "connection termination", "UC"),
    Broken.RESET: (503, "remote reset", "UR"),
    Broken.MALFORMED: (502, "protocol error", "UPE"),
    Broken.TIMEOUT: (503, "connection timeout", "UF"),
    Broken.OVERLOAD: (503, "overflow", "UO"),
}
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})  # RFC 9110, 9.2.2


@dataclass(slots=True)
class Done:
    """What is known of a request at its end."""

    head: Head
    caller: Caller
    began: float
    ended: float
    status: int = 0
    flags: str = ""
    why: str = ""
    rule: str = ""
    backend: Backend | None = None
    endpoint: Endpoint | None = None
    sent: Head | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    service_time: int = -1  # milliseconds until the backend's first byte
    tries: int = 0


@dataclass(slots=True)
class Engine:
    """What all requests of a gateway share."""

    wheel: Wheel
    limits: Limits
    pool: Callable[[Backend, Endpoint], Pool]
    clock: Callable[[], float]
    done: Callable[[Done], None]


def new_id() -> str:
    """A random UUID (version 4); it need not be a secret."""
    bits = f"{random.getrandbits(128):032x}"
    return f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-{'89ab'[int(bits[16], 16) & 3]}{bits[17:20]}-{bits[20:]}"


def accept(engine: Engine, table: HttpTable, caller: Caller, stream: Stream, head: Head, end: bool) -> Sink:
    """Begin what the plan says."""
    done = Done(head, caller, engine.clock(), 0.0)
    match plan(table, head, caller, random.random, new_id):
        case Answer() as answer:
            return Local(engine, stream, answer, done)
        case Forward() as forward:
            return Exchange(engine, stream, forward, done, end)
        case never:
            assert_never(never)


class Local:
    """An answer of our own; what the client still sends is nobody's."""

    __slots__ = ("_answer", "_done", "_engine", "_stream", "_timer")

    def __init__(self, engine: Engine, stream: Stream, answer: Answer, done: Done) -> None:
        self._engine, self._stream, self._answer, self._done = engine, stream, answer, done
        self._timer: Timer | None = None
        if answer.delay:
            self._timer = Timer(self._tell)
            engine.wheel.arm(self._timer, answer.delay)
        else:
            self._tell()

    def _tell(self) -> None:
        answer, done = self._answer, self._done
        done.rule, done.flags, done.why = answer.rule, answer.flags, answer.why
        done.status, done.sent_bytes, done.ended = answer.reply.status, len(answer.body), self._engine.clock()
        respond(self._stream, answer)
        self._engine.done(done)

    def head(self, reply: Reply, end: bool) -> None:
        """Never."""

    def data(self, data: bytes) -> None:
        """Thrown away."""

    def end(self, trailers: Headers) -> None:
        """Of no interest."""

    def reset(self, reset: Reset) -> None:
        """The client does not want it any more."""
        if self._timer is not None:
            self._engine.wheel.stop(self._timer)

    def congested(self, on: bool) -> None:
        """It is one write."""


def respond(stream: Stream, answer: Answer) -> None:
    """All of it at once, with the date that a backend would have put there."""
    answer.reply.headers.append(("date", formatdate(usegmt=True)))
    stream.head(answer.reply, not answer.body)
    if answer.body:
        stream.data(answer.body)
        stream.end()


class Exchange:
    """The client's side: what it sends goes to the try of the moment, and is kept while another may be needed."""

    __slots__ = (
        "_answered",
        "_attempt",
        "_body",
        "_done",
        "_down",
        "_ended",
        "_kept",
        "_left",
        "_mirrors",
        "_plan",
        "_replied",
        "_timer",
        "_trailers",
        "_tried",
        "_waiting",
        "engine",
    )

    def __init__(self, engine: Engine, stream: Stream, forward: Forward, done: Done, end: bool) -> None:
        self.engine, self._down, self._plan, self._done = engine, stream, forward, done
        self._ended = end  # the client has sent all
        self._trailers: Headers = []
        self._kept: list[bytes] | None = []  # of the body, for a try that begins later; None: too much for that
        self._body = 0
        self._replied = self._answered = False  # an answer's head went out; all of it did
        self._waiting = False  # for a connection; the client is held as long
        self._tried: list[Endpoint] = []
        self._left = forward.retry.attempts if forward.retry is not None else 0
        self._attempt: Attempt | None = None
        self._timer: Timer | None = None
        self._mirrors = [
            Shadow(head, end, engine.pool(backend, random.choice(backend.endpoints)), engine.limits.buffer)
            for backend, head in forward.mirrors
            if backend.endpoints
        ]
        done.rule, done.backend = forward.rule.name, forward.backend
        if (seconds := forward.timeouts.request) is not None:
            self._timer = Timer(self._late)
            engine.wheel.arm(self._timer, seconds)
        if forward.delay:
            self._waiting = True
            stream.hold(True)
            self._timer = Timer(self._delayed)
            engine.wheel.arm(self._timer, forward.delay)
        else:
            self._try()

    # -- what the client sends ----------------------------------------------------------------------------------------

    def head(self, reply: Reply, end: bool) -> None:
        """Never."""

    def data(self, data: bytes) -> None:
        """To the try of the moment, to the mirrors, and kept while that may be of use."""
        self._body += len(data)
        if self._kept is not None:
            if self._body <= self.engine.limits.buffer or self._waiting:
                self._kept.append(data)
            else:
                self._kept = None
        if self._attempt is not None:
            self._attempt.pass_on(data)
        for mirror in self._mirrors:
            mirror.pass_on(data)

    def end(self, trailers: Headers) -> None:
        """The request is complete."""
        self._ended, self._trailers = True, trailers
        if self._attempt is not None:
            self._attempt.finish(trailers)
        for mirror in self._mirrors:
            mirror.finish(trailers)
        if self._answered:
            self._over()

    def reset(self, reset: Reset) -> None:
        """The client has left."""
        self._done.flags, self._done.why = "DC", reset.why
        self._stop(reset)

    def congested(self, on: bool) -> None:
        """The client reads slowly."""
        if self._attempt is not None and self._attempt.stream is not None:
            self._attempt.stream.hold(on)

    # -- tries ------------------------------------------------------------------------------------------------------

    def _delayed(self) -> None:
        self._timer = None
        self._try()

    def _try(self, fresh: bool = False) -> None:
        """Ask for a connection to an endpoint that was not tried yet, if there is one."""
        engine, backend = self.engine, self._plan.backend
        endpoints = backend.endpoints
        endpoint = endpoints[0] if len(endpoints) == 1 else self._next(endpoints)
        self._tried.append(endpoint)
        self._done.endpoint = endpoint
        self._done.tries += 1
        self._attempt = attempt = Attempt(self, engine.pool(backend, endpoint))
        if (seconds := self._per_try()) is not None:
            attempt.timer = Timer(attempt.late)
            engine.wheel.arm(attempt.timer, seconds)
        client = attempt.pool.take(attempt, fresh)
        if client is not None:
            attempt.connected(client)
        elif self._attempt is attempt and not self._ended:
            self._waiting = True
            self._down.hold(True)

    def _next(self, endpoints: tuple[Endpoint, ...]) -> Endpoint:
        fresh = [endpoint for endpoint in endpoints if endpoint not in self._tried] if self._tried else endpoints
        return random.choice(fresh or endpoints)

    def _per_try(self) -> float | None:
        times = [self._plan.timeouts.backend, self._plan.retry.per_try if self._plan.retry is not None else None]
        return min((seconds for seconds in times if seconds), default=None)

    def request(self, attempt: Attempt, stream: Stream) -> None:
        """A connection is there: say what was said so far."""
        kept, ended = self._kept or (), self._ended
        if self._waiting:
            self._waiting = False
            if self._body > self.engine.limits.buffer:
                self._kept = None
            self._down.hold(False)
        stream.head(self._plan.head, ended and not kept and not self._trailers)
        for data in kept:
            stream.data(data)
        if ended and (kept or self._trailers):
            stream.end(self._trailers)

    def failed(self, attempt: Attempt, reset: Reset) -> None:
        """A try ended before its answer began, or within it."""
        if self._replied:
            self._done.flags, self._done.why = "UC", reset.why
            self._down.reset(reset)
            self._over()
        elif self._again(attempt, reset):
            self._attempt = None
            self._try(fresh=reset.kind is Broken.UNPROCESSED)
        else:
            status, words, flags = _FAILURES[reset.kind]
            self._fail(status, f"{_BEFORE}{words}", flags, reset.why)

    def _again(self, attempt: Attempt, reset: Reset) -> bool:
        """Whether it is tried once more: where the rule says so, and where nothing can have happened yet."""
        retry, kind = self._plan.retry, reset.kind
        if self._kept is None:
            return False
        if retry is not None and self._left > 0:
            match kind:
                case Broken.CONNECT:
                    wanted = retries.after_connect(retry)
                case Broken.UNPROCESSED:
                    wanted = retries.after_refused(retry)
                case Broken.TIMEOUT:
                    wanted = retries.after_timeout(retry) or retries.after_connect(retry)
                case _:
                    wanted = retries.after_reset(retry)
            if wanted:
                self._left -= 1
                return True
        if kind is Broken.CONNECT:
            untried = any(endpoint not in self._tried for endpoint in self._plan.backend.endpoints)
            return untried and len(self._tried) < TRIES
        if kind is Broken.UNPROCESSED:
            safe = not isinstance(attempt.client, H1Client) or self._plan.head.method in _IDEMPOTENT
            return safe and self._done.tries < TRIES
        return False

    # -- what the backend sends ---------------------------------------------------------------------------------------

    def replied(self, attempt: Attempt, reply: Reply, end: bool) -> bool:
        """Its head goes to the client; False when another try takes its place."""
        done, final = self._done, reply.status >= 200 or reply.status == 101
        if not final:
            self._down.head(reply, False)
            return True
        retry = self._plan.retry
        if retry is not None and self._left > 0 and self._kept is not None and retries.after_reply(retry, reply):
            self._left -= 1
            attempt.give_up(Reset(Broken.RESET, f"the answer was {reply.status}"))
            self._attempt = None
            self._try()
            return False
        self._replied, self._kept = True, None
        done.service_time = int((self.engine.clock() - done.began) * 1000)
        done.status = reply.status
        self._down.head(self._plan.respond(reply, done.service_time), end)
        if self._plan.head.upgrade and reply.status != 101:
            self._ended = True
        if end:
            self._answered = True
            self._over() if self._ended else self._stop(Reset(Broken.RESET, "answered early"))
        return True

    def received(self, data: bytes) -> None:
        """Bytes of the answer."""
        self._done.sent_bytes += len(data)
        self._down.data(data)

    def completed(self, trailers: Headers) -> None:
        """The answer is complete; the request need not be, and goes on only where both are raw bytes."""
        self._answered = True
        self._down.end(trailers)
        if self._ended:
            self._over()
        elif self._done.status != 101:
            self._stop(Reset(Broken.RESET, "answered early"))

    def slow(self, on: bool) -> None:
        """The backend reads slowly."""
        self._down.hold(on)

    # -- ends -------------------------------------------------------------------------------------------------------

    def _late(self) -> None:
        self._timer = None
        if self._replied:
            self._done.flags, self._done.why = "UT", "the answer was not complete in time"
            self._down.reset(Reset(Broken.TIMEOUT, self._done.why))
            self._stop(Reset(Broken.TIMEOUT))
        else:
            self.timed_out()

    def timed_out(self) -> None:
        """No answer began in time."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.give_up(Reset(Broken.TIMEOUT, "no answer in time"))
        self._fail(504, "upstream request timeout", "UT", "no answer in time")

    def late_try(self, attempt: Attempt) -> None:
        """One try took too long."""
        attempt.give_up(Reset(Broken.TIMEOUT, "no answer to this try in time"))
        retry = self._plan.retry
        if self._replied or self._attempt is not attempt:
            return
        if retry is not None and self._left > 0 and self._kept is not None and retries.after_timeout(retry):
            self._left -= 1
            self._attempt = None
            self._try()
        else:
            self.timed_out()

    def _fail(self, status: int, text: str, flags: str, why: str) -> None:
        answer = local(
            self._done.head,
            self._plan.respond.flavour,
            status,
            body=text.encode(),
            rule=self._plan.rule.name,
            flags=flags,
            why=why,
        )
        done = self._done
        done.status, done.flags, done.why, done.sent_bytes = answer.reply.status, flags, why, len(answer.body)
        self._attempt, self._replied, self._kept = None, True, None
        respond(self._down, answer)
        self._over()

    def _stop(self, reset: Reset) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.give_up(reset)
        for mirror in self._mirrors:
            mirror.give_up(reset)
        self._over()

    def _over(self) -> None:
        """One record."""
        done = self._done
        if done.ended:
            return
        if self._timer is not None:
            self.engine.wheel.stop(self._timer)
        if self._attempt is not None:
            self._attempt.unwatch()
        done.ended, done.received_bytes = self.engine.clock(), self._body
        self.engine.done(done)


class Attempt:
    """One try at a backend: waits for a connection, then is the sink of its answer."""

    __slots__ = ("_exchange", "_over", "client", "pool", "stream", "timer")

    def __init__(self, exchange: Exchange, pool: Pool) -> None:
        self._exchange, self.pool = exchange, pool
        self.client: Client | None = None
        self.stream: Stream | None = None
        self.timer: Timer | None = None
        self._over = False

    def connected(self, client: Client) -> None:
        """Send what there is."""
        self.client = client
        self.stream = client.open(self)
        self._exchange.request(self, self.stream)

    def failed(self, reset: Reset) -> None:
        """No connection."""
        self.reset(reset)

    def pass_on(self, data: bytes) -> None:
        """More of the request."""
        if self.stream is not None and not self._over:
            self.stream.data(data)

    def finish(self, trailers: Headers) -> None:
        """All of the request."""
        if self.stream is not None and not self._over:
            self.stream.end(trailers)

    def head(self, reply: Reply, end: bool) -> None:
        if not self._over and self._exchange.replied(self, reply, end) and (reply.status >= 200 or reply.status == 101):
            self.unwatch()

    def data(self, data: bytes) -> None:
        if not self._over:
            self._exchange.received(data)

    def end(self, trailers: Headers) -> None:
        if not self._over:
            self._exchange.completed(trailers)

    def reset(self, reset: Reset) -> None:
        if not self._over:
            self._over = True
            self.unwatch()
            self._exchange.failed(self, reset)

    def congested(self, on: bool) -> None:
        if not self._over:
            self._exchange.slow(on)

    def late(self) -> None:
        """Its own deadline."""
        self.timer = None
        if not self._over:
            self._exchange.late_try(self)

    def unwatch(self) -> None:
        """An answer began, or none is awaited."""
        if self.timer is not None:
            self._exchange.engine.wheel.stop(self.timer)
            self.timer = None

    def give_up(self, reset: Reset) -> None:
        """Another one takes its place, or nobody waits any more."""
        self._over = True
        self.unwatch()
        if self.stream is not None:
            self.stream.reset(reset)
        else:
            self.pool.leave(self)
