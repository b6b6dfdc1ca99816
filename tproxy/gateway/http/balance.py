"""Which of a backend's endpoints gets a request: the less busy of two (Istio's LEAST_REQUEST), in turn, or any."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import assert_never

from tproxy.core.address import Endpoint
from tproxy.core.http.onward import Forward
from tproxy.core.routes import Backend, Balance
from tproxy.gateway.http.engine import Engine


def choose(engine: Engine, forward: Forward, tried: Sequence[Endpoint]) -> Endpoint:
    """One that was not tried yet, if there is one: the one that the request is tied to, else by the balancer."""
    backend = forward.backend
    every: Sequence[Endpoint] = backend.endpoints
    if backend.care is not None:
        every = engine.guards.of(backend).left(every)
    left = [endpoint for endpoint in every if endpoint not in tried] if tried else every
    left = left or every
    if forward.bond is not None and (tied := forward.bond.choose(left, left is backend.endpoints)) is not None:
        return tied
    return _pick(engine, backend, left, forward.head.authority)


def _pick(engine: Engine, backend: Backend, endpoints: Sequence[Endpoint], authority: str) -> Endpoint:
    match backend.balance:
        case Balance.RANDOM:
            return random.choice(endpoints)
        case Balance.ROUND_ROBIN:
            turn = engine.turns.get(backend.name, random.getrandbits(16))
            engine.turns[backend.name] = turn + 1
            return endpoints[turn % len(endpoints)]
        case Balance.LEAST_REQUEST:
            if len(endpoints) == 1:
                return endpoints[0]
            one, other = random.sample(endpoints, 2)
            busy = engine.pool(backend, one, authority).busy
            return one if busy <= engine.pool(backend, other, authority).busy else other
        case never:
            assert_never(never)
