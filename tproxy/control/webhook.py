"""The webhook's server: ``POST /inject`` takes an AdmissionReview, ``GET /healthz`` says that we live.

Nobody is authenticated: an API server shows a webhook no certificate unless it was started with one for it. So whoever
reaches the port may ask what would be done to a pod. A review is a pure function, and its answer holds what was sent
and the cluster's settings of injection, which stand in every injected pod; all that it moves is our next look at the
cluster, once a second at most. What a stranger can take is time, and that is bounded: connections, from one address and
together; bodies, of which only a few may be large at once; those that cost much are judged beside the loop; deadlines.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress

import h11

from tproxy.control import admission, https
from tproxy.control.admission import Reply, review
from tproxy.control.https import Link
from tproxy.control.record import Reviewed
from tproxy.core.inject.injection import Injection

log = logging.getLogger("tproxy")
CONNECTIONS = 512  # at once
OF_ONE = 128  # from one address; an API server opens as many as it has pods to ask about
LARGE, MANY = 64 * 1024, 16  # bytes of a body from which on only so many are read at once
LONG, PARTS = 1 << 20, 2048  # bytes of a body, and objects and lists in it, that are judged in some milliseconds
HELD = 64 * 1024  # bytes that may lie in a connection unread; asyncio takes up to twice as many
HANDSHAKE = SECONDS = 5.0  # for a handshake; for a request and its answer: API servers wait for ten at most by default
IDLE = 120.0  # between two requests: Go's clients hang up after 90, and who hangs up first loses no request
PLAIN = "text/plain; charset=utf-8"


class Webhook:
    """Answers reviews; ``settings`` is None as long as something about the cluster is not known yet."""

    def __init__(
        self,
        newest: Callable[[], ssl.SSLContext],
        settings: Callable[[], Injection | None],
        finished: Callable[[Reviewed], None],
    ) -> None:
        self._newest, self._settings, self._finished = newest, settings, finished
        self._large = asyncio.Semaphore(MANY)
        self._judge = ThreadPoolExecutor(1, "judge")  # one after the other: threads of Python only hold each other up
        self._callers = Counter[str]()
        self._tasks, self._idle = set[asyncio.Task[None]](), set[asyncio.Task[None]]()
        self._server: asyncio.Server | None = None
        self._closing = False

    async def listen(self, listener: socket.socket) -> None:
        """Answer on a listening socket."""
        self._server = await asyncio.start_server(
            self._client,
            sock=listener,
            ssl=https.door(self._newest),
            ssl_handshake_timeout=HANDSHAKE,
            ssl_shutdown_timeout=1.0,
            limit=HELD,
        )

    async def close(self, seconds: float) -> None:
        """Listen no more; requests under way have so long."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        for task in self._idle:
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()
        self._judge.shutdown(wait=False)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = (writer.get_extra_info("peername") or ("gone",))[0]
        if self._closing or self._callers[caller] >= OF_ONE or self._callers.total() >= CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._callers[caller] += 1
        try:
            await self._requests(Link(reader, writer), task, caller)
        except (TimeoutError, OSError, asyncio.CancelledError):
            log.debug("a client of the webhook left or stalled")
        except Exception:
            log.exception("a connection of the webhook failed")
        finally:
            writer.close()
            with suppress(OSError, TimeoutError):  # TimeoutError: the client says no goodbye
                await writer.wait_closed()
            self._tasks.discard(task)
            self._callers[caller] -= 1
            if not self._callers[caller]:
                del self._callers[caller]

    async def _requests(self, link: Link, task: asyncio.Task[None], caller: str) -> None:
        """One after the other, until either side has enough."""
        more = True
        while more and not self._closing:
            self._idle.add(task)
            try:
                async with asyncio.timeout(IDLE):
                    request = await link.request()
            except h11.RemoteProtocolError as error:
                request, reply = None, Reply(400, f"{error}\n".encode(), PLAIN)
                await self._say(link, reply, last=True)
            finally:
                self._idle.discard(task)
            more = request is not None and await self._one(link, request, caller)

    async def _one(self, link: Link, request: h11.Request, caller: str) -> bool:
        """Answer it; whether the connection goes on."""
        began, last = time.monotonic(), False
        try:
            async with asyncio.timeout(SECONDS), AsyncExitStack() as held:
                body = await self._body(link, held)
                reply = await self._answer(request, body)
        except TimeoutError:
            reply, last = Reply(408, f"no whole review within {SECONDS:g} s\n".encode(), PLAIN), True
        except h11.RemoteProtocolError as error:
            reply, last = Reply(400, f"{error}\n".encode(), PLAIN), True
        if _path(request) == "/inject":
            self._finished(Reviewed(time.time(), caller, reply, time.monotonic() - began))
        return await self._say(link, reply, last or self._closing)

    async def _say(self, link: Link, reply: Reply, last: bool) -> bool:
        async with asyncio.timeout(SECONDS):
            return await link.answer(reply.status, reply.type, reply.body, last)

    async def _body(self, link: Link, held: AsyncExitStack) -> bytes:
        """All of it. What is longer than a review may be is read, as clients first send and then look, and not kept."""
        parts, size, large = list[bytes | bytearray](), 0, False
        while (data := await link.data()) is not None:
            if size <= admission.LIMIT:
                parts.append(data)
                size += len(data)
            if size > LARGE and not large:
                await held.enter_async_context(self._large)
                large = True
        return b"".join(parts)

    async def _answer(self, request: h11.Request, body: bytes) -> Reply:
        match _path(request), request.method:
            case "/healthz", b"GET":
                return Reply(200, b"ok\n", PLAIN)
            case "/inject", b"POST":
                pass
            case "/healthz" | "/inject", _:
                return Reply(405, b"POST /inject, GET /healthz\n", PLAIN)
            case _:
                return Reply(404, b"not found; there is POST /inject and GET /healthz\n", PLAIN)
        if _kind(request) != b"application/json":
            return Reply(415, b"expected content-type: application/json\n", PLAIN)
        settings = self._settings()
        if settings is None:
            return Reply(503, b"the version of Kubernetes is not known yet\n", PLAIN)
        if _is_quick(body):
            return review(body, settings)
        return await asyncio.get_running_loop().run_in_executor(self._judge, review, body, settings)


def _is_quick(body: bytes) -> bool:
    """Whether the authority's callers can wait for it: parts cost more than bytes do.

    A thread takes a third more time, and its turns with the loop are Python's, five milliseconds each.
    """
    return len(body) <= LONG and body.count(b"{") + body.count(b"[") <= PARTS


def _path(request: h11.Request) -> str:
    return request.target.partition(b"?")[0].decode("ascii", "replace")  # API servers append ?timeout=10s


def _kind(request: h11.Request) -> bytes:
    kinds = [value for name, value in request.headers if name == b"content-type"]
    return kinds[0].partition(b";")[0].strip().lower() if len(kinds) == 1 else b""
