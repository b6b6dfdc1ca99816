"""A very small HTTP server for health, metrics and the effective configuration: GET, bounded, one answer a connection.

h11 parses; nothing here is on the data path.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import h11

log = logging.getLogger("tproxy")
SECONDS = 5.0  # for a whole request and its answer
REQUEST_LIMIT = 8192  # bytes of a request
CONNECTIONS = 64  # at once; more wait in the backlog


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


async def serve(listener: socket.socket, pages: Pages) -> asyncio.Server:
    """Answer requests on a listening socket until the server is closed."""
    gate = asyncio.Semaphore(CONNECTIONS)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with gate, asyncio.timeout(SECONDS):
                await _exchange(reader, writer, pages)
        except (TimeoutError, OSError):
            log.debug("a client of the admin port left or stalled")
        finally:
            writer.close()

    return await asyncio.start_server(client, sock=listener, limit=REQUEST_LIMIT)


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: Pages) -> None:
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
    headers = [("content-type", answer.type), ("content-length", str(len(answer.body))), ("connection", "close")]
    data = http.send(h11.Response(status_code=answer.status, headers=headers)) or b""
    if not head:
        data += http.send(h11.Data(data=answer.body)) or b""
    writer.write(data)
    await writer.drain()


def _page(request: h11.Request, pages: Pages) -> Answer:
    if request.method not in (b"GET", b"HEAD"):
        return Answer.text("only GET is answered here", 405)
    path = request.target.partition(b"?")[0].decode("ascii", "replace")
    page = pages.get(path)
    if page is None:
        return Answer.text("not found; there is " + " ".join(pages), 404)
    return page()
