"""The issuance log's one writer: whoever waits shares one transaction and one fsync with all who wait.

>>> await Ledger(state).add(entry)                                                              # doctest: +SKIP
<Outcome.DONE: 'done'>
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from tproxy.control.state import Entry, Outcome, State
from tproxy.core.fields import ConfigError

BATCH = 512  # entries of one transaction


class Ledger:
    """Owns its State: a thread writes while the loop goes on signing."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._thread = ThreadPoolExecutor(1, "ledger")
        self._waiting: list[tuple[Entry, asyncio.Future[Outcome]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def add(self, entry: Entry) -> Outcome:
        """Returns when the entry is on the disk, or says why it is not. ConfigError if the disk fails."""
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, done))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return await done

    async def prune(self, before: int) -> int:
        """Forget certificates that had expired by then, a bounded number at a time: others write in between."""
        gone, loop = 0, asyncio.get_running_loop()
        while some := await loop.run_in_executor(self._thread, self._state.prune, before):
            gone += some
        return gone

    async def close(self) -> None:
        """Finish what waits, then give the file back."""
        if self._writing is not None:
            await self._writing
        self._thread.shutdown()
        self._state.close()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            entries = [entry for entry, _ in batch]
            try:
                outcomes = await loop.run_in_executor(self._thread, self._state.record, entries, int(time.time()))
            except ConfigError as error:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for (_, done), outcome in zip(batch, outcomes, strict=True):
                if not done.done():  # its caller may have left
                    done.set_result(outcome)
        self._writing = None
