"""Which policies there are for our namespace, as ``tproxy control`` tells it: each set whole, or none.

Nothing is kept across a restart: a sidecar that starts while control is away lets nobody in until the first set is
there, since what was true when it ended may have been closed meanwhile. While it runs, the last good set counts.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tproxy.core.identity import Snapshot
from tproxy.core.policy.told import Told
from tproxy.core.settings import Directory as Settings
from tproxy.identity import stream
from tproxy.wire import WATCH_POLICIES
from tproxy.wire import policies_pb2 as wire

SET_LIMIT = 32 * 1024 * 1024  # bytes of all objects of a set


@dataclass(slots=True)
class Status(stream.Status):
    """And what became of the newest set."""

    objects: int = 0  # in force
    in_force: str = ""  # version
    refused: str = ""  # why the newest set is not in force: object, field, value


class Policies:
    """A client; all of it belongs to one loop. Who puts sets in force waits for ``news``, and says what came of it."""

    what = "policies"

    def __init__(self, settings: Settings, trust_domain: str) -> None:
        self.status: Status = Status(settings.address)
        self.news = asyncio.Event()
        self.newest: Told | None = None
        self.held: Told | None = None  # in force
        self._pending = list[wire.PolicySet]()
        self._stream = stream.Stream(settings, trust_domain, WATCH_POLICIES, self)
        self.run = self._stream.run

    def renewed(self, credentials: Snapshot) -> None:
        """Go on with these, at once."""
        self._stream.renewed(credentials)

    def not_ready(self) -> str:
        """What is waited for, as long as nobody is let in."""
        status = self.status
        if self.held is not None:
            return ""
        return f"waiting for policies from {status.address}: {status.refused or status.error or 'nothing came yet'}"

    def taken(self, version: str) -> None:
        """This one is in force now."""
        told, status = self.newest, self.status
        if told is not None and told.version == version:
            self.held, status.refused = told, ""
            status.in_force, status.objects = version, len(told.objects)

    def refused(self, why: str) -> None:
        """The newest one cannot be used."""
        self.status.refused = why

    def request(self) -> bytes:
        """What we have need not be said again."""
        return wire.PoliciesRequest(have=self.newest.version if self.newest else "").SerializeToString()

    def take(self, raw: bytes) -> None:
        """A part of a set. ValueError or DecodeError if it is none."""
        part = wire.PolicySet.FromString(raw)
        if part.unchanged:
            if self.newest is None or part.version != self.newest.version or self._pending:
                raise ValueError(f"version {part.version!r:.80} is not ours, and nothing else is said")
            return
        self._pending.append(part)
        heads = {(one.version, one.namespace, one.root) for one in self._pending}
        if len(heads) > 1 or not all((part.version, part.namespace, part.root)):
            raise ValueError("a set in pieces of different sets")
        if sum(one.ByteSize() for one in self._pending) > SET_LIMIT:
            raise ValueError(f"a set of more than {SET_LIMIT} bytes")
        if part.more:
            return
        objects = tuple(one for piece in self._pending for one in piece.objects)
        self._pending.clear()
        self.newest = Told(part.version, part.namespace, part.root, objects)
        self.status.version, self.status.updates = part.version, self.status.updates + 1
        self.news.set()

    def interrupted(self) -> None:
        """Pieces without an end are worth nothing."""
        self._pending.clear()

    def kept(self) -> str:
        """What counts meanwhile."""
        return "the last good set counts" if self.held else "there is none yet, so nobody is let in"
