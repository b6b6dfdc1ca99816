"""``tproxy gateway run --mesh FILE``: the gateway's own identity in the mesh, as a sidecar has one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tproxy.cli.source import read
from tproxy.core.fields import ConfigError

if TYPE_CHECKING:
    from tproxy.core.config import Config
    from tproxy.gateway.gate import Gate
    from tproxy.proxy.side import State

log = logging.getLogger("tproxy")
LOOK = 5.0  # seconds


def mesh_of(path: str) -> Config:
    """A sidecar's configuration, of which trust domain, identity and trust count here."""
    config = read(path)
    if config.identity is None:
        raise ConfigError(path, "identity", "is missing: where the gateway's certificate comes from")
    return config


async def join(path: str, gate: Gate, refused: Callable[[], None]) -> None:
    """Get it and keep it fresh, for ever; until it is there, the mesh is neither called nor let in."""
    from tproxy.proxy.generations import Generations

    def taken(state: State) -> None:
        gate.join(state)
        log.info("in the mesh as %s", state.own)

    generations = Generations(mesh_of(path), lambda: mesh_of(path), path, taken, refused)
    try:
        taken(await generations.first())
        async with asyncio.TaskGroup() as group:
            group.create_task(generations.run())
            group.create_task(_expire(gate))
    finally:
        generations.stop()


async def _expire(gate: Gate) -> None:
    while True:
        await asyncio.sleep(LOOK)
        gate.expire(time.monotonic())
