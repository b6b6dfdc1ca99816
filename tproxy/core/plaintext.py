"""Who still speaks plaintext: what a migration waits for. Counted when a connection is admitted, not when it ends.

>>> from tproxy.core.address import parse_address
>>> book = Plaintext()
>>> book.add(Talk(Direction.INGRESS, parse_address("10.0.0.7"), 8080), "shop/old-1", now=1.0)
>>> book.add(Talk(Direction.INGRESS, parse_address("10.0.0.7"), 8080), "shop/old-1", now=5.0)
>>> [(str(talk.peer), seen.connections, seen.last) for talk, seen in book.rows()]
[('10.0.0.7', 2, 5.0)]
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from tproxy.core.address import Address
from tproxy.core.record import Direction

LIMIT = 256  # pairs that are remembered; addresses come from the network


@dataclass(frozen=True, slots=True)
class Talk:
    """Ingress: this peer calls our port. Egress: we call the peer's port."""

    direction: Direction
    peer: Address
    port: int


@dataclass(slots=True)
class Seen:
    """What the directory called the peer, how often, and when (unix seconds)."""

    name: str = ""
    connections: int = 0
    first: float = 0.0
    last: float = 0.0


class Plaintext:
    """The newest pairs; ``forgotten`` counts those that had to go."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.forgotten = 0
        self._limit, self._seen = limit, OrderedDict[Talk, Seen]()

    def add(self, talk: Talk, name: str, now: float) -> None:
        """One more connection was admitted."""
        seen = self._seen.setdefault(talk, Seen(first=now))
        seen.name, seen.connections, seen.last = name, seen.connections + 1, now
        self._seen.move_to_end(talk)
        if len(self._seen) > self._limit:
            self._seen.popitem(last=False)
            self.forgotten += 1

    def rows(self) -> list[tuple[Talk, Seen]]:
        """The newest first."""
        return list(reversed(self._seen.items()))
