"""A request begins: the plan is asked, and what it says is begun."""

from __future__ import annotations

import random
import time
from typing import assert_never

from tproxy.core.http.forwarded import Client as Caller
from tproxy.core.http.head import Head
from tproxy.core.http.local import Answer
from tproxy.core.http.onward import Forward
from tproxy.core.http.plan import plan
from tproxy.gateway.http.engine import Done, Engine, Place, new_id
from tproxy.gateway.http.exchange import Exchange
from tproxy.gateway.http.guarded import GuardedExchange
from tproxy.gateway.http.local import Local
from tproxy.gateway.http.stream import Sink, Stream
from tproxy.proxy.trace import Trace


def accept(engine: Engine, place: Place, caller: Caller, trace: Trace, stream: Stream, head: Head, end: bool) -> Sink:
    """Begin what the plan says."""
    done = Done(head, caller, engine.clock(), trace, place)
    match plan(place.table(), head, caller, random.random, new_id, time.time, place.policy):
        case Answer() as answer:
            return Local(engine, stream, answer, done)
        case Forward() as forward:
            kind = Exchange if forward.backend.care is None else GuardedExchange
            return kind(engine, stream, forward, done, end)
        case never:
            assert_never(never)
