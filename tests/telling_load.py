"""What the loads of ``tproxy control``'s streams share: many sidecars, a TLS connection each, and a change a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import grpc
import grpc.aio

from tests.ca_load import cpu
from tests.control import DOMAIN, Ca
from tests.telling import svid
from tproxy.core.identity import Snapshot, SpiffeId, Svid

CHANGES = 20  # one a second
WHO = SpiffeId.workload(DOMAIN, "demo", "client")


class Svids:
    """What every stream shows."""

    def __init__(self, ca: Ca) -> None:
        made, middle = svid(ca, WHO)
        self.roots = (ca.dir / "bundle.pem").read_bytes()
        self.chain, self.key = made.certificate_pem() + middle, made.key_pem()
        ends = int(datetime.now(UTC).timestamp()) + 3600
        self.snapshot = Snapshot(Svid(WHO, self.chain, self.key, 1, ends - 3600, ends), {DOMAIN: self.roots})


class Readers:
    """So many streams of one method; ``is_last`` tells whether a message ends a version."""

    def __init__(self, method: str, request: bytes, is_last: Callable[[bytes], bool]) -> None:
        self._method, self._request, self._is_last = method, request, is_last
        self.seen, self.sizes = list[int](), list[int]()  # versions, and bytes, of each
        self._tasks, self._news = list[asyncio.Task[None]](), asyncio.Event()

    def begin(self, port: int, svids: Svids, count: int) -> None:
        """All at once."""
        self.seen, self.sizes = [0] * count, [0] * count
        self._tasks = [asyncio.create_task(self._one(number, port, svids)) for number in range(count)]

    async def _one(self, number: int, port: int, svids: Svids) -> None:
        options = (("grpc.use_local_subchannel_pool", 1), ("tests.number", number))
        credentials = grpc.ssl_channel_credentials(svids.roots, svids.key, svids.chain)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            async for raw in channel.unary_stream(self._method)(self._request):
                self.sizes[number] += len(raw)
                self.seen[number] += self._is_last(raw)
                self._news.set()

    async def everyone(self, version: int) -> None:
        """Until all of them have it."""
        while min(self.seen) < version:
            self._news.clear()
            await self._news.wait()

    async def changes(self, change: Callable[[int], None], pid: int) -> tuple[float, list[float]]:
        """A change a second: the server's seconds of CPU, and when all knew of each, sorted."""
        used, late = cpu(pid), list[float]()
        for turn in range(CHANGES):
            began = time.monotonic()
            change(turn)
            await self.everyone(turn + 2)
            late.append(time.monotonic() - began)
            await asyncio.sleep(max(0.0, 1 - late[-1]))
        return cpu(pid) - used, sorted(late)

    def end(self) -> None:
        """Hang up."""
        for task in self._tasks:
            task.cancel()
