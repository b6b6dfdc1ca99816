"""One request on its way: from a client's stream to a backend's and back, with tries, deadlines and mirrors.

What to do is ``core.http.plan``'s decision; this does it. Both directions flow at once, and whoever is slow brakes the
other side: at most one read and ``limits.congested`` bytes wait, and a body kept for another try has a bound, too.
"""

from __future__ import annotations

import random

from tproxy.core.address import Endpoint
from tproxy.core.http import retry as retries
from tproxy.core.http.head import Headers, Reply
from tproxy.core.http.local import Answer
from tproxy.core.http.onward import Forward
from tproxy.gateway.http import failures
from tproxy.gateway.http.attempt import Attempt
from tproxy.gateway.http.balance import choose
from tproxy.gateway.http.engine import Done, Engine
from tproxy.gateway.http.h1_client import H1Client
from tproxy.gateway.http.local import respond
from tproxy.gateway.http.mirror import shadows
from tproxy.gateway.http.stream import Broken, Reset, Stream
from tproxy.gateway.http.wheel import Timer


class Exchange:
    """The client's side: what it sends goes to the try of the moment, and is kept while another may be needed."""

    # fmt: off
    __slots__ = (
        "_answered", "_attempt", "_body", "_done", "_down", "_ended", "_kept", "_left", "_mirrors", "_pause", "_plan",
        "_replied", "_timer", "_trailers", "_tried", "_waiting", "engine",
    )
    # fmt: on

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
        self._mirrors = shadows(engine, forward.mirrors, end) if forward.mirrors else ()
        done.rule, done.backend, done.sent = forward.rule.name, forward.backend, forward.head
        engine.running.add(self)
        if (seconds := forward.timeouts.request) is not None:
            self._timer = Timer(self._late)
            engine.wheel.arm(self._timer, seconds)
        self._pause: Timer | None = None  # before a try
        if forward.delay:
            self._after(forward.delay)
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

    def _after(self, seconds: float) -> None:
        """A try, later; the client waits."""
        self._attempt = None
        self._waiting = True
        self._down.hold(True)
        self._pause = Timer(self._try)
        self.engine.wheel.arm(self._pause, seconds)

    def _later(self) -> None:
        """Another try by the rule, after a random time that doubles (Envoy's fully jittered back-off)."""
        base = self._plan.retry.backoff if self._plan.retry is not None else 0.0
        self._after(random.random() * base * min(2**self._done.tries - 1, 10))

    def _try(self, fresh: bool = False) -> None:
        """Ask for a connection to an endpoint that was not tried yet, if there is one."""
        engine, backend = self.engine, self._plan.backend
        endpoints = backend.endpoints
        endpoint = endpoints[0] if len(endpoints) == 1 else choose(engine, self._plan, self._tried)
        self._tried.append(endpoint)
        self._done.endpoint = endpoint
        self._done.tries += 1
        self._attempt = attempt = Attempt(self, engine.pool(backend, endpoint, self._plan.head.authority))
        if (seconds := failures.per_try(self._plan.timeouts, self._plan.retry)) is not None:
            attempt.timer = Timer(attempt.late)
            engine.wheel.arm(attempt.timer, seconds)
        client = attempt.pool.take(attempt, fresh)
        if client is not None:
            attempt.connected(client)
        elif not attempt.over and not self._ended:
            self._waiting = True
            self._down.hold(True)

    def request(self, attempt: Attempt, stream: Stream) -> None:
        """A connection is there: say what was said so far."""
        kept, ended = self._kept or (), self._ended
        if self.engine.logged():
            self._done.upstream_local = attempt.local()
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
            self._stop(reset)
        elif self._by_rule(reset.kind):
            self._later()
        elif self._again(attempt, reset.kind):
            self._attempt = None
            self._try(fresh=reset.kind is Broken.UNPROCESSED)
        else:
            self._fail(*failures.FAILURES[reset.kind], reset.why)

    def _by_rule(self, kind: Broken) -> bool:
        retry = self._plan.retry
        if retry is None or self._left <= 0 or self._kept is None or not failures.wanted(retry, kind):
            return False
        self._left -= 1
        return True

    def _again(self, attempt: Attempt, kind: Broken) -> bool:
        one = isinstance(attempt.client, H1Client)
        return self._kept is not None and failures.again(kind, self._plan, self._tried, self._done.tries, one)

    # -- what the backend sends ---------------------------------------------------------------------------------------

    def replied(self, attempt: Attempt, reply: Reply, end: bool) -> bool:
        """Its head goes to the client; False when another try takes its place."""
        done, final = self._done, reply.status >= 200 or reply.status == 101
        if not final:
            self._down.head(reply, False)
            return True
        retry = self._plan.retry
        if retry is not None and self._left > 0 and self._kept is not None and retries.after_reply(retry, reply, end):
            attempt.give_up(Reset(Broken.RESET, f"the answer was {reply.status}"))
            self._left -= 1
            self._later()
            return False
        self._replied, self._kept = True, None
        done.service_time = int((self.engine.clock() - done.began) * 1000)
        done.status = reply.status
        if self._plan.bond is not None and done.endpoint is not None:
            reply.headers.extend(self._plan.bond.told(done.endpoint))
        self._down.head(self._plan.respond(reply, done.service_time, done.endpoint), end)
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
            self._later()
        else:
            self.timed_out()

    def _fail(self, status: int, text: str, flags: str, why: str) -> None:
        head, flavour, rule = self._done.head, self._plan.respond.flavour, self._plan.rule.name
        self._attempt = None
        self._say(failures.answer(head, flavour, status, text, rule, flags, why))
        self._over()

    def _say(self, answer: Answer) -> None:
        done = self._done
        done.status, done.flags, done.why, done.sent_bytes = (
            answer.reply.status,
            answer.flags,
            answer.why,
            len(answer.body),
        )
        self._replied, self._kept = True, None
        respond(self._down, answer)

    def recheck(self) -> None:
        """Policies have changed: if it would not be let in now, it ends here."""
        done = self._done
        if (answer := done.place.fallen(done.head, done.caller)) is None:
            return
        reset = Reset(Broken.RESET, answer.why)
        if self._replied:
            done.place.cut(answer, done.head)
            self._down.reset(reset)
        else:
            self._say(answer)
        done.why, done.details = answer.why, answer.details
        self._stop(reset)

    def _stop(self, reset: Reset) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.give_up(reset)
        self._over()

    def _over(self) -> None:
        """One record."""
        done = self._done
        if done.ended:
            return
        self.engine.running.discard(self)
        for timer in filter(None, (self._timer, self._pause)):
            self.engine.wheel.stop(timer)
        if not self._ended:
            for mirror in self._mirrors:
                mirror.give_up(Reset(Broken.RESET, "the request is over"))
        if self._attempt is not None:
            self._attempt.unwatch()
            self._attempt = None
        done.ended, done.received_bytes = self.engine.clock(), self._body
        self.engine.done(done)
