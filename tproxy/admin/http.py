"""A very small HTTP server for health, metrics and the effective configuration: GET, bounded, one answer a connection.

h11 parses; nothing here is on the data path.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import h11

log = logging.getLogger("tproxy")
SECONDS = 5.0  # for a whole request and its answer
REQUEST_LIMIT = 8192  # bytes of a request
CONNECTIONS = 256  # at once; more wait
OF_ONE = 16  # from one address: whoever hangs on may not keep the kubelet's probes out


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, type and body."""

    status: int
    body: bytes
    type: str = "text/plain; charset=utf-8"

    @classmethod
    def json(cls, value: object, status: int = 200) -> Answer:
        """A JSON document, readable by people too."""
        return cls(status, json.dumps(value, indent=2, default=str).encode() + b"\n", "application/json")

    @classmethod
    def text(cls, text: str, status: int = 200) -> Answer:
        """One line."""
        return cls(status, text.encode() + b"\n")


Pages = Mapping[str, Callable[[], Answer]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, as far as an answer that takes time may depend on it."""

    path: str
    headers: Mapping[bytes, bytes]  # names in lower case
    address: str  # of ours, at which it was asked


class Slow(Protocol):
    """Pages whose answer takes time."""

    def seconds(self, path: str) -> float | None:
        """How long at most; None if there is no such page."""

    async def answer(self, asked: Asked) -> Answer:
        """The page."""


async def serve(listener: socket.socket, pages: Pages, slow: Slow | None = None) -> asyncio.Server:
    """Answer requests on a listening socket until the server is closed."""
    gate, callers = asyncio.Semaphore(CONNECTIONS), Counter[str]()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = (writer.get_extra_info("peername") or ("gone",))[0]
        if callers[caller] >= OF_ONE:
            writer.transport.abort()
            return
        callers[caller] += 1
        try:
            async with gate, asyncio.timeout(SECONDS) as clock:
                await _exchange(reader, writer, pages, slow, clock)
        except (TimeoutError, OSError):
            log.debug("a client of the admin port left or stalled")
        finally:
            callers[caller] -= 1
            if not callers[caller]:
                del callers[caller]
            writer.close()

    return await asyncio.start_server(client, sock=listener, limit=REQUEST_LIMIT)


async def _exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    pages: Pages,
    slow: Slow | None,
    clock: asyncio.Timeout,
) -> None:
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_LIMIT)
    try:
        while (event := http.next_event()) is h11.NEED_DATA:
            http.receive_data(await reader.read(REQUEST_LIMIT))
    except h11.RemoteProtocolError as error:
        answer, head = Answer.text(f"bad request: {error}", 400), False
    else:
        if not isinstance(event, h11.Request):
            return
        answer, head = _page(event, pages), event.method == b"HEAD"
        path = _path(event)
        if slow and event.method == b"GET" and (seconds := slow.seconds(path)) is not None:
            clock.reschedule(asyncio.get_running_loop().time() + seconds + SECONDS)
            asked = Asked(path, dict(event.headers), writer.get_extra_info("sockname")[0])
            answer = await slow.answer(asked)
    headers = [("content-type", answer.type), ("content-length", str(len(answer.body))), ("connection", "close")]
    data = http.send(h11.Response(status_code=answer.status, headers=headers)) or b""
    if not head:
        data += http.send(h11.Data(data=answer.body)) or b""
    writer.write(data)
    await writer.drain()


def _page(request: h11.Request, pages: Pages) -> Answer:
    if request.method not in (b"GET", b"HEAD"):
        return Answer.text("only GET is answered here", 405)
    page = pages.get(_path(request))
    if page is None:
        return Answer.text("not found; there is " + " ".join(pages), 404)
    return page()


def _path(request: h11.Request) -> str:
    return request.target.partition(b"?")[0].decode("ascii", "replace")
