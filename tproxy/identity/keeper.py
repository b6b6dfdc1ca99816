"""Keeps credentials fresh: asks a source again and again, waits longer after each failure, and remembers both."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tproxy.core.identity import Snapshot
from tproxy.core.renewal import is_short, pause
from tproxy.identity.source import Source, SourceError

log = logging.getLogger("tproxy")
LOOK = 5.0  # seconds between two looks at the clock, which may jump


@dataclass(slots=True)
class Status:
    """What ``tproxy identity`` tells of a source; times are unix seconds, 0 for never."""

    source: str
    renewed: float = 0.0
    renewals: int = 0
    error: str = ""
    failed: float = 0.0
    failures: int = 0  # in a row


class Keeper:
    """Drives one source; the newest snapshot goes to ``taken``."""

    def __init__(self, source: Source, taken: Callable[[Snapshot], None]) -> None:
        self.source, self.status = source, Status(source.name)
        self.current: Snapshot | None = None
        self._taken, self._first = taken, asyncio.Event()
        self._warned = 0  # the certificate's end that was last warned of

    async def first(self) -> Snapshot:
        """Waits until there is one; ``run`` must be running."""
        await self._first.wait()
        assert self.current is not None
        return self.current

    async def run(self) -> None:
        """For ever. Whatever a source does, the last good snapshot stays."""
        warning = asyncio.create_task(self._warn())
        try:
            while True:
                await self._follow()
                await asyncio.sleep(pause(max(1, self.status.failures), random.random()))
        finally:
            warning.cancel()

    async def _follow(self) -> None:
        try:
            async for snapshot in self.source.snapshots():
                self._take(snapshot)
            self._fail("the source ended")
        except SourceError as error:
            self._fail(str(error))

    def _take(self, snapshot: Snapshot) -> None:
        status = self.status
        status.renewed, status.renewals, status.failures = time.time(), status.renewals + 1, 0
        self.current = snapshot
        self._taken(snapshot)
        self._first.set()

    def _fail(self, why: str) -> None:
        status = self.status
        known = status.failures and status.error == why
        status.error, status.failed, status.failures = why, time.time(), status.failures + 1
        kept = "the last good credentials keep serving" if self.current else "there are no credentials yet"
        log.log(logging.DEBUG if known else logging.ERROR, "no new credentials, %s: %s", kept, why)

    async def _warn(self) -> None:
        """Shout once for each certificate of which less than a third is left, by the clock on the wall."""
        while True:
            await asyncio.sleep(LOOK)
            if self.current is None:
                continue
            svid = self.current.svid
            if svid.not_after != self._warned and is_short(time.time(), svid.not_before, svid.not_after):
                self._warned = svid.not_after
                left, why = svid.not_after - time.time(), self.status.error or "nothing newer came"
                log.warning("our certificate ends in %.0f s and is not renewed: %s", left, why)
