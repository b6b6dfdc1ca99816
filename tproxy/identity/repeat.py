"""Something that is done again and again, and at once when somebody asks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any


async def repeat(step: Callable[[], Coroutine[Any, Any, None]], asked: asyncio.Event) -> None:
    """For ever. Who sets the event ends the step that is under way, and the next one begins."""
    while True:
        asked.clear()
        tasks = asyncio.create_task(step()), asyncio.create_task(asked.wait())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
