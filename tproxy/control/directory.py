"""The directory: follows pods, services and endpoint slices, and streams entries to sidecars (tproxy.v1.Directory).

Nothing is said before all three collections have been seen whole, because what is missing from a snapshot would be
forgotten by everyone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from tproxy.control import streams
from tproxy.control.config import Control
from tproxy.control.feed import Feed
from tproxy.control.record import Line
from tproxy.control.streams import Streams
from tproxy.core import workloads
from tproxy.core.directory import Version
from tproxy.core.identity import SpiffeId
from tproxy.kube.watch import Put, Watch
from tproxy.wire import WATCH_DIRECTORY
from tproxy.wire.directory_pb2 import WatchRequest

log = logging.getLogger("tproxy")
PACE = 0.1  # seconds between two steps, at least: what happens meanwhile is one
SHARE = 0.0004  # seconds more for each stream: telling it takes a third of that, so we use a third of a CPU at most


class Directory:
    """Watches, feed and streams."""

    def __init__(self, config: Control, trust_domain: str, finished: Callable[[Line], None]) -> None:
        assert config.directory is not None and config.kubernetes is not None
        self._port = config.directory.port
        self._book = workloads.Book()
        self.feed = Feed(self._book.entries)
        self.streams = Streams(
            WATCH_DIRECTORY, WatchRequest.FromString, self._tell, self.not_ready, trust_domain, finished
        )
        book, where = self._book, config.kubernetes
        self.watches = (
            Watch(where, "/api/v1/pods", _sink(book.pod, workloads.pod)),
            Watch(where, "/api/v1/services", _sink(book.service, workloads.service)),
            Watch(where, "/apis/discovery.k8s.io/v1/endpointslices", _sink(book.slice, workloads.endpoint_slice)),
        )

    @property
    def entries(self) -> int:
        """How many addresses are known."""
        return len(self._book.entries)

    def not_ready(self) -> str:
        """Why nobody is told anything yet, or nothing."""
        if self.streams.is_open:
            return ""
        return next((one.status.error for one in self.watches if one.status.error), "pods have not been listed yet")

    def failures(self) -> int:
        """Failed questions to the API server, in a row, of the watch that fares worst."""
        return max(one.status.failures for one in self.watches)

    async def run(self) -> None:
        """Follow the cluster for ever."""
        async with asyncio.TaskGroup() as group:
            for one in self.watches:
                group.create_task(one.run())
            group.create_task(self._publish())

    async def _publish(self) -> None:
        rest = PACE
        while True:
            await asyncio.sleep(rest)
            rest = PACE
            if not all(one.status.synced for one in self.watches):
                continue
            if delta := self._book.flush():
                size, rest = self.feed.append(delta), max(PACE, SHARE * self.streams.running)
                log.debug(
                    "directory %s: %d set, %d gone, %d bytes",
                    self.feed.version,
                    len(delta.set),
                    len(delta.removed),
                    size,
                )
            if not self.streams.is_open:
                log.info("directory: %d addresses, port %d", self.entries, self._port)
                self.streams.open()

    async def _tell(self, _: SpiffeId, request: WatchRequest, context: streams.Context) -> None:
        have = Version(request.have.epoch, request.have.number) if request.HasField("have") else None
        await streams.accept(context)
        number = self.feed.start(have)
        while True:
            number, messages = await self.feed.next(number)
            for message in messages:
                await context.write(message)


def _sink(put: Callable[[str, Any], None], parse: Callable[[Any], object]) -> Put:
    def sink(key: str, document: dict[str, Any] | None) -> None:
        put(key, parse(document) if document is not None else None)

    return sink
