"""What requests share, and what is known of one at its end."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from tproxy.core.address import Endpoint
from tproxy.core.http.forwarded import Client as Caller
from tproxy.core.http.head import Head
from tproxy.core.http.local import Answer
from tproxy.core.http.routes import HttpTable
from tproxy.core.policy.policy import Policy
from tproxy.core.routes import Backend
from tproxy.gateway.guards import Guards
from tproxy.gateway.http.limits import Limits
from tproxy.gateway.http.pool import Pool
from tproxy.gateway.http.wheel import Wheel
from tproxy.proxy.trace import Trace


class Place(Protocol):
    """Where requests come in: what is served there at this moment, and to whom."""

    @property
    def policy(self) -> Policy | None:
        """Who may ask; None: everybody."""

    def table(self) -> HttpTable:
        """What hosts and rules there are."""

    def fallen(self, head: Head, caller: Caller) -> Answer | None:
        """What is said to a request on its way that would not be let in now."""

    def cut(self, answer: Answer, head: Head) -> None:
        """It comes too late to be said: what was being answered breaks off."""


class Running(Protocol):
    """A request on its way."""

    def recheck(self) -> None:
        """Policies have changed: one that would not be let in now ends."""


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

    def __init__(self, head: Head, caller: Caller, began: float, trace: Trace, place: Place) -> None:
        self.head, self.caller, self.began, self.trace, self.place = head, caller, began, trace, place


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
    running: set[Running] = field(default_factory=set)

    def recheck(self) -> None:
        """Requests that would not be let in now end: a websocket may last for days."""
        for each in tuple(self.running):
            if each in self.running:  # one that ends may end others
                each.recheck()


def new_id() -> str:
    """A random UUID (version 4); it need not be a secret."""
    bits = random.getrandbits(122)
    text = "%030x" % (bits >> 2)
    return f"{text[:8]}-{text[8:12]}-4{text[12:15]}-{'89ab'[bits & 3]}{text[15:18]}-{text[18:]}"
