"""What requests share, and what is known of one at its end."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tproxy.core.address import Endpoint
from tproxy.core.http import Head
from tproxy.core.http_forwarded import Client as Caller
from tproxy.core.routes import Backend
from tproxy.gateway.http.limits import Limits
from tproxy.gateway.http.pool import Pool
from tproxy.gateway.http.wheel import Wheel


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
