"""Asking the Kubernetes API server over HTTPS: one connection, bounded answers, a deadline, no redirects.

h11 parses; the token file is read anew each time, because the kubelet renews it.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h11

from tproxy.kube.where import Kubernetes

SECONDS = 5.0  # for one connection with all that is asked on it
ANSWER_LIMIT = 4 * 1024 * 1024  # bytes of one body; a node's pods in one namespace
HEAD_LIMIT = 64 * 1024
READ = 64 * 1024
PAGE = 250  # objects of one answer to a list
JSON_PATCH, APPLY_PATCH = "application/json-patch+json", "application/apply-patch+yaml"  # JSON is YAML
MERGE_PATCH = "application/merge-patch+json"  # RFC 7386


class ApiError(Exception):
    """The API server cannot be asked, or its answer makes no sense. Never holds a token."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Status and the decoded JSON object."""

    status: int
    body: dict[str, Any]


class Api:
    """One connection; questions one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, token: str) -> None:
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        self._headers = [
            ("host", f"[{host}]" if ":" in host else host),
            ("authorization", f"Bearer {token}"),
            ("accept", "application/json"),
        ]

    async def get(self, path: str, limit: int = ANSWER_LIMIT) -> Reply:
        """GET; a longer answer is an error."""
        await self._send("GET", path, b"")
        return await self._answer(limit)

    async def post(self, path: str, body: object) -> Reply:
        """POST of a JSON document."""
        await self._send("POST", path, json.dumps(body).encode())
        return await self._answer(ANSWER_LIMIT)

    async def patch(self, path: str, body: object, kind: str) -> Reply:
        """PATCH, of one of the kinds above."""
        await self._send("PATCH", path, json.dumps(body).encode(), kind)
        return await self._answer(ANSWER_LIMIT)

    async def listed(self, path: str, query: str, rule: str) -> list[dict[str, Any]]:
        """All objects of a list, page by page; each has a name. ApiError names the rule of RBAC that it needs."""
        found: list[dict[str, Any]] = []
        more = ""
        while True:
            reply = await self.get(f"{path}?{query}&limit={PAGE}{more}")
            items = reply.body.get("items")
            if reply.status != 200:
                raise failed(reply, f"GET {path}", rule)
            if not isinstance(items, list) or not all(text(one, "metadata", "name") for one in items):
                raise ApiError(f"GET {path}: its answer is not a list")
            found += items
            following = text(reply.body, "metadata", "continue")
            if not following:
                return found
            more = f"&continue={quote(following, safe='')}"

    async def lines(self, path: str, limit: int = ANSWER_LIMIT) -> AsyncGenerator[Reply, None]:
        """GET of JSON documents, one a line, as they come; an answer that is not 200 is the one document."""
        await self._send("GET", path, b"")
        status, rest = 0, bytearray()
        async for event in self._events():
            if isinstance(event, h11.Response):
                status = event.status_code
                if status != 200:
                    yield await self._rest(status, limit)
                    return
            elif isinstance(event, h11.Data):
                first, *more = event.data.split(b"\n")
                rest += first
                for line in more:
                    if rest.strip():
                        yield Reply(status, _object(bytes(rest)))
                    rest[:] = line
                if len(rest) > limit:
                    raise ApiError(f"one line of its answer is longer than {limit} bytes")

    async def _send(self, method: str, path: str, body: bytes, kind: str = "application/json") -> None:
        http = self._http
        if http.our_state is h11.DONE:
            http.start_next_cycle()
        about = [("content-type", kind), ("content-length", str(len(body)))] if body else []
        request = h11.Request(method=method, target=path, headers=[*self._headers, *about])
        data = [http.send(request), http.send(h11.Data(data=body)) if body else b"", http.send(h11.EndOfMessage())]
        self._writer.write(b"".join(part or b"" for part in data))
        await self._writer.drain()

    async def _answer(self, limit: int) -> Reply:
        async for event in self._events():
            if isinstance(event, h11.Response):
                return await self._rest(event.status_code, limit)
        raise ApiError("it hung up")

    async def _rest(self, status: int, limit: int) -> Reply:
        body = bytearray()
        async for event in self._events():
            if isinstance(event, h11.Data):
                body += event.data
            if len(body) > limit:
                raise ApiError(f"its answer is longer than {limit} bytes")
        return Reply(status, _object(bytes(body)))

    async def _events(self) -> AsyncIterator[h11.Event]:
        """What the answer is made of, to its end."""
        while not isinstance(event := self._http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(READ))
            elif isinstance(event, h11.Response | h11.Data):
                yield event
            elif not isinstance(event, h11.InformationalResponse):
                raise ApiError("it hung up")


def text(document: object, *path: str) -> str:
    """What stands there; "" if it is no text, or if there is no such place."""
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    return document if isinstance(document, str) else ""


def failed(reply: Reply, doing: str, rule: str) -> ApiError:
    """An answer that says no, in words: what was tried, what it said, and for RBAC the rule that is missing."""
    said = text(reply.body, "message")[:300]
    if reply.status == 403:
        return ApiError(f"{doing}: forbidden ({said}); allow our service account {rule}")
    return ApiError(f"{doing}: status {reply.status}{f' ({said})' if said else ''}")


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body) if body else {}
    except (ValueError, RecursionError) as error:
        raise ApiError("its answer is not JSON") from error
    if not isinstance(found, dict):
        raise ApiError("its answer is not a JSON object")
    return found


def _credentials(where: Kubernetes) -> tuple[str, ssl.SSLContext]:
    try:
        context = ssl.create_default_context(cafile=where.ca_file)
        token = Path(where.token_file).read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        missing = ", ".join(name for name in (where.ca_file, where.token_file) if not Path(name).exists())
        raise ApiError(f"{missing}: No such file or directory") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return token, context


@asynccontextmanager
async def connected(where: Kubernetes, seconds: float = SECONDS) -> AsyncIterator[Api]:
    """A connection for a few questions within so many seconds. ApiError names the API server and what failed."""
    name = f"the API server {where.host}:{where.port}"
    try:
        async with asyncio.timeout(seconds):
            token, context = _credentials(where)
            reader, writer = await asyncio.open_connection(where.host, where.port, ssl=context, limit=READ)
            try:
                yield Api(reader, writer, where.host, token)
            finally:
                writer.transport.abort()  # nothing is under way, and a goodbye may be left unanswered for long
    except TimeoutError as error:
        raise ApiError(f"{name}: no answer within {seconds:g} s") from error
    except h11.ProtocolError as error:
        raise ApiError(f"{name}: its answer was cut short, or is not HTTP/1.1") from error
    except (OSError, ValueError) as error:  # ssl.SSLError is one, UnicodeDecodeError the other
        raise ApiError(f"{name}: {getattr(error, 'strerror', None) or type(error).__name__}") from error
    except ApiError as error:
        raise ApiError(f"{name}: {error}") from error
