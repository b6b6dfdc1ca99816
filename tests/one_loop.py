"""One event loop for every test that speaks gRPC.

The completion queue of grpc.aio belongs to the process: events of a loop that was closed too early break the next one.
"""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
RUNNER = asyncio.Runner()
atexit.register(RUNNER.close)


def run(work: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, but the loop stays."""
    return RUNNER.run(work)
