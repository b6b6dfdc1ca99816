"""TLS sessions that a later connection to the same destination may resume, of one generation of credentials only.

They go when the generation goes: with the credentials, the bundle or the policy. What a resumed session stands on (the
peer's certificate) is looked at again by whoever resumes it.
"""

from __future__ import annotations

from collections import OrderedDict

from tproxy.core.address import Endpoint
from tproxy.identity.openssl import Ticket

LIMIT = 1024  # destinations


class Sessions:
    """The newest session of each destination; the least recently used one goes first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Endpoint, Ticket] = OrderedDict()

    def take(self, target: Endpoint) -> Ticket | None:
        """What to resume, or None."""
        found = self._kept.get(target)
        if found is not None:
            self._kept.move_to_end(target)
        return found

    def keep(self, target: Endpoint, ticket: Ticket | None) -> None:
        """For the next connection."""
        if ticket is None:
            return
        self._kept[target] = ticket
        self._kept.move_to_end(target)
        if len(self._kept) > LIMIT:
            self._kept.popitem(last=False)

    def drop(self, target: Endpoint) -> None:
        """What was resumed was no good."""
        self._kept.pop(target, None)
