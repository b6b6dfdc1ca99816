"""Where SVIDs come from, seen by everyone else: something that yields immutable, proven snapshots."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from tproxy.core.identity import Snapshot


class SourceError(Exception):
    """A source cannot give credentials now: ``where`` it looked and ``why`` it failed. Never holds a key or a token."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.where, self.why = where, why


class UnreachedError(SourceError):
    """Nobody took the connection: nothing was asked of anyone."""


class Source(Protocol):
    """Each kind of ``identity:`` in the configuration has one."""

    name: str  # in words, for people: "Istio CA istiod.istio-system.svc:15012"

    def snapshots(self) -> AsyncIterator[Snapshot | SourceError]:
        """The first one as soon as it can be had, then each newer one, for ever.

        Every snapshot has been through ``identity.proof.proven``. Raises SourceError when the source fails; whoever
        iterates waits a while (backoff is not the source's business) and calls ``snapshots`` again. A source that
        goes on by itself after a failure yields the error instead. Cancelling ends everything that it has open.
        """
        ...
