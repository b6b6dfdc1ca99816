"""Which of a backend's endpoints gets a request: the less busy of two (Istio's LEAST_REQUEST), in turn, or any."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import assert_never

from tproxy.core.address import Endpoint
from tproxy.core.routes import Backend, Balance
from tproxy.gateway.http.engine import Engine


def pick(engine: Engine, backend: Backend, endpoints: Sequence[Endpoint], authority: str) -> Endpoint:
    """One of them; there is at least one."""
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
