"""What requests share, and what is known of one at its end."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tproxy.core.address import Endpoint
from tproxy.core.http.forwarded import Client as Caller
from tproxy.core.http.head import Head
from tproxy.core.routes import Backend
from tproxy.gateway.guards import Guards
from tproxy.gateway.http.limits import Limits
from tproxy.gateway.http.pool import Pool
from tproxy.gateway.http.wheel import Wheel
from tproxy.proxy.trace import Trace


class Done:
    """What is known of a request at its end. A plain class: made for each request, and most of it stays as it is."""

    ended = 0.0
    status = 0
    flags = ""
    why = ""
    rule = ""
    backend: Backend | None = None
    endpoint: Endpoint | None = None
    received_bytes = 0
    sent_bytes = 0
    sent: Head | None = None  # as the backend got it
    upstream_local = ""  # our address towards it; only where it is logged
    details = ""  # where Envoy's flags do not say it
    service_time = -1  # milliseconds until the backend's first byte
    tries = 0

    def __init__(self, head: Head, caller: Caller, began: float, trace: Trace) -> None:
        self.head, self.caller, self.began, self.trace = head, caller, began, trace


@dataclass(slots=True)
class Engine:
    """What all requests of a gateway share."""

    wheel: Wheel
    limits: Limits
    pool: Callable[[Backend, Endpoint, str], Pool]  # the authority, too
    clock: Callable[[], float]
    done: Callable[[Done], None]
    logged: Callable[[], object]  # whether an access log is written
    guards: Guards  # of backends that are bounded or watched
    turns: dict[str, int] = field(default_factory=dict)  # of backends whose endpoints are asked in turn


def new_id() -> str:
    """A random UUID (version 4); it need not be a secret."""
    bits = random.getrandbits(122)
    text = "%030x" % (bits >> 2)
    return f"{text[:8]}-{text[8:12]}-4{text[12:15]}-{'89ab'[bits & 3]}{text[15:18]}-{text[18:]}"
