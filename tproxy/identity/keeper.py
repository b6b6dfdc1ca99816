"""Keeps credentials fresh: asks a source again and again, waits longer after each failure, and remembers both."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tproxy.core.certificates.renewal import LONGEST, UNREACHED, is_short, pause
from tproxy.core.identity import Snapshot
from tproxy.identity.repeat import repeat
from tproxy.identity.source import Source, SourceError, UnreachedError

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
    """Drives one source; the newest snapshot goes to ``taken``, and ``failed`` hears of each failure."""

    def __init__(
        self, source: Source, taken: Callable[[Snapshot], None], failed: Callable[[], None] = lambda: None
    ) -> None:
        self.source, self.status = source, Status(source.name)
        self.current: Snapshot | None = None
        self._taken, self._failed = taken, failed
        self._now = asyncio.Event()
        self._warned = 0  # the certificate's end that was last warned of

    def renew(self) -> None:
        """Ask the source now, whatever was planned."""
        self._now.set()

    async def run(self) -> None:
        """For ever. Whatever a source does, the last good snapshot stays."""
        warning = asyncio.create_task(self._warn())
        try:
            await repeat(self._follow, self._now)
        finally:
            warning.cancel()

    async def _follow(self) -> None:
        """Until it fails, and the pause after that."""
        longest = LONGEST
        try:
            async for one in self.source.snapshots():
                if isinstance(one, SourceError):
                    self._fail(str(one))
                else:
                    self._take(one)
            self._fail("the source ended")
        except SourceError as error:
            self._fail(str(error))
            longest = UNREACHED if isinstance(error, UnreachedError) else LONGEST
        except Exception as error:  # renewal must go on whatever a server made us stumble over
            log.exception("a defect in the source %s", self.source.name)
            self._fail(f"{self.source.name}: a defect of the sidecar: {type(error).__name__}")
        await asyncio.sleep(pause(max(1, self.status.failures), random.random(), longest))

    def _take(self, snapshot: Snapshot) -> None:
        status = self.status
        status.renewed, status.renewals, status.failures = time.time(), status.renewals + 1, 0
        self._taken(snapshot)
        self.current = snapshot

    def _fail(self, why: str) -> None:
        status = self.status
        known = status.failures and status.error == why
        status.error, status.failed, status.failures = why, time.time(), status.failures + 1
        kept = "the last good credentials keep serving" if self.current else "there are no credentials yet"
        log.log(logging.DEBUG if known else logging.ERROR, "no new credentials, %s: %s", kept, why)
        self._failed()

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
                ends = f"ends in {left:.0f} s" if left > 0 else f"ended {-left:.0f} s ago"
                log.warning("our certificate %s and is not renewed: %s", ends, why)
