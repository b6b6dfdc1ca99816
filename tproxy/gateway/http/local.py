"""An answer that no backend gave."""

from __future__ import annotations

from email.utils import formatdate

from tproxy.core.http.head import Headers, Reply
from tproxy.core.http.local import Answer
from tproxy.gateway.http.engine import Done, Engine
from tproxy.gateway.http.stream import Reset, Stream
from tproxy.gateway.http.wheel import Timer


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
        done.rule, done.flags, done.why, done.details = answer.rule, answer.flags, answer.why, answer.details
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
