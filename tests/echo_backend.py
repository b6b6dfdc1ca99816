"""A backend that says what reached it: JSON with path, host, method, proto and headers, as Gateway API's echo-basic.

HTTP/1.1, h2c (by its preface) and websocket on one port; with a certificate TLS, too, ALPN ``h2`` and ``http/1.1``.

    with EchoBackend("backend-v1-0", service="backend-v1", namespace="shop") as pod:
        ... pod.port, pod.seen

Of a request: ``X-Echo-Set-Header: name:value, ...`` sets headers of the response, ``?delay=500ms`` waits before it,
``/status/503`` answers so, ``/echo`` streams the body back, ``/bytes?n=1000`` has a body of so many bytes, ``/chunked``
one without a length, ``/close`` ends the connection without an answer. ``upgrade: websocket`` echoes messages.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import ssl
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.client import responses
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h2.config
import h2.connection
import h2.events
import h2.exceptions

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, 3.4
_UNITS = (("ms", 0.001), ("s", 1.0))
Pairs = list[tuple[str, str]]


@dataclass
class Seen:
    """One request as it came."""

    method: str
    path: str
    host: str
    proto: str
    headers: Pairs
    body: bytes = b""

    def first(self, name: str) -> str:
        """A header's first value, or nothing."""
        return next((value for key, value in self.headers if key == name), "")


@dataclass
class EchoBackend:
    """A pod of its own thread and loop, until the ``with`` ends."""

    pod: str = "backend-0"
    service: str = ""
    namespace: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    tls: ssl.SSLContext | None = None
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def __enter__(self) -> EchoBackend:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        """Once; a test may have ended it before."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, ready: threading.Event) -> None:
        loop = self._loop
        server = loop.run_until_complete(self.listen())
        loop.call_soon(ready.set)
        loop.run_forever()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        loop.run_until_complete(self._end())
        loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def listen(self) -> asyncio.Server:
        """Also for who has a loop already."""
        server = await asyncio.start_server(self._serve, self.host, self.port, ssl=self.tls, backlog=512, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        tls = writer.get_extra_info("ssl_object")
        facts = tls_facts(tls) if tls else None
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            first = await reader.readexactly(4)
            await (
                Http2(self, reader, writer, facts) if first == PREFACE[:4] else Http1(self, reader, writer, facts)
            ).run(first)
        self._writers.discard(writer)
        writer.close()

    def answer(self, seen: Seen, tls: dict[str, Any] | None) -> tuple[int, Pairs, bytes, float]:
        """Status, headers, body, and the seconds to wait."""
        self.seen.append(seen)
        parts = urlsplit(seen.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        status, body = 200, self._document(seen, tls)
        headers = [("content-type", "application/json"), ("x-content-type-options", "nosniff")]
        if parts.path.startswith("/status/"):
            status = int(parts.path.removeprefix("/status/"))
        if parts.path == "/bytes":
            headers, body = [("content-type", "application/octet-stream")], b"x" * int(query.get("n", "0"))
        if parts.path == "/echo":
            headers, body = [("content-type", "application/octet-stream")], seen.body
        for pair in seen.first("x-echo-set-header").split(","):
            name, _, value = pair.partition(":")
            if name.strip():
                headers.append((name.strip().lower(), value.strip()))
        headers.append(("date", formatdate(usegmt=True)))
        return status, headers, body, duration(query.get("delay", "0s"))

    def _document(self, seen: Seen, tls: dict[str, Any] | None) -> bytes:
        headers: dict[str, list[str]] = {}
        for name, value in seen.headers:
            if name != "host":
                headers.setdefault("-".join(part.capitalize() for part in name.split("-")), []).append(value)
        said = {
            "path": seen.path,
            "host": seen.host,
            "method": seen.method,
            "proto": seen.proto,
            "headers": headers,
            "httpPort": str(self.port),
            "namespace": self.namespace,
            "ingress": "",
            "service": self.service,
            "pod": self.pod,
        }
        return (json.dumps({**said, **({"tls": tls} if tls else {})}, indent=1) + "\n").encode()


def duration(text: str) -> float:
    """Go's, of one unit."""
    return next((float(text.removesuffix(unit)) * factor for unit, factor in _UNITS if text.endswith(unit)), 0.0)


def tls_facts(tls: ssl.SSLObject) -> dict[str, Any]:
    """As echo-basic names them."""
    cipher, peer = tls.cipher(), tls.getpeercert(binary_form=True)
    return {
        "version": tls.version(),
        "serverName": getattr(tls, "asked", ""),
        "negotiatedProtocol": tls.selected_alpn_protocol() or "",
        "cipherSuite": cipher[0] if cipher else "",
        **({"peerCertificates": [ssl.DER_cert_to_PEM_cert(peer)]} if peer else {}),
    }


def server_context(certificate: str, key: str, client_ca: str = "") -> ssl.SSLContext:
    """TLS for a backend that says which name was asked for; with ``client_ca`` it demands a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    context.sni_callback = lambda tls, name, _: setattr(tls, "asked", name or "")
    return context


@dataclass
class Http1:
    """One connection; one request after the other."""

    backend: EchoBackend
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    tls: dict[str, Any] | None

    async def run(self, first: bytes) -> None:
        while True:
            raw = first + await self.reader.readuntil(b"\r\n\r\n")
            line, *rest = raw.decode("latin-1").split("\r\n")[:-2]
            method, path, proto = line.split(" ")
            pairs = [(name.strip().lower(), value.strip()) for name, _, value in (item.partition(":") for item in rest)]
            seen = Seen(method, path, "", proto, pairs)
            seen.host = seen.first("host")
            if path == "/close":
                return
            if seen.first("upgrade").lower() == "websocket":
                await self._websocket(seen)
                return
            if seen.first("expect").lower() == "100-continue":
                self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if path == "/echo" and seen.first("transfer-encoding"):
                await self._stream(seen)
            else:
                seen.body = b"".join([part async for part in self._body(seen)])
                await self._reply(seen)
            await self.writer.drain()
            if seen.first("connection").lower() == "close":
                return
            first = b""

    async def _body(self, seen: Seen) -> Any:
        if seen.first("transfer-encoding").lower() == "chunked":
            while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
                yield await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            while await self.reader.readuntil(b"\r\n") != b"\r\n":
                pass
            return
        left = int(seen.first("content-length") or 0)
        while left:
            part = await self.reader.read(min(left, 65536))
            if not part:
                raise asyncio.IncompleteReadError(part, left)
            left -= len(part)
            yield part

    async def _reply(self, seen: Seen) -> None:
        status, headers, body, wait = self.backend.answer(seen, self.tls)
        await asyncio.sleep(wait)
        chunked = urlsplit(seen.path).path == "/chunked"
        length = ("transfer-encoding", "chunked") if chunked else ("content-length", str(len(body)))
        self._head(status, headers if status in {204, 304} else [*headers, length])
        if seen.method == "HEAD" or status in {204, 304}:
            return
        if chunked:
            self._chunk(body)
            self._chunk(b"")
        else:
            self.writer.write(body)

    async def _stream(self, seen: Seen) -> None:
        self.backend.seen.append(seen)
        self._head(200, [("content-type", "application/octet-stream"), ("transfer-encoding", "chunked")])
        async for part in self._body(seen):
            self._chunk(part)
            await self.writer.drain()
        self._chunk(b"")

    def _head(self, status: int, headers: Pairs) -> None:
        lines = [
            f"HTTP/1.1 {status} {responses.get(status, 'Status')}",
            *(f"{name}: {value}" for name, value in headers),
            "",
            "",
        ]
        self.writer.write("\r\n".join(lines).encode("latin-1"))

    def _chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    async def _websocket(self, seen: Seen) -> None:
        """RFC 6455: short text messages are sent back as they came; a close ends it."""
        self.backend.seen.append(seen)
        key = seen.first("sec-websocket-key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self._head(101, [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-accept", accept)])
        while True:
            kind, size = await self.reader.readexactly(2)
            long = {126: 2, 127: 8}.get(size & 0x7F, 0)
            length = int.from_bytes(await self.reader.readexactly(long)) if long else size & 0x7F
            mask = await self.reader.readexactly(4)
            data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(await self.reader.readexactly(length)))
            shown = length if length < 126 else 126 if long == 2 else 127
            self.writer.write(bytes((kind, shown)) + (length.to_bytes(long) if long else b"") + data)
            await self.writer.drain()
            if kind & 0x0F == 8:  # close
                return


@dataclass
class Http2:
    """One connection; requests beside one another."""

    backend: EchoBackend
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    tls: dict[str, Any] | None
    requests: dict[int, Seen] = field(default_factory=dict)
    waiting: dict[int, bytearray] = field(default_factory=dict)  # bodies that the windows do not let out yet
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, first: bytes) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding="latin-1")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        data = first
        try:
            while data:
                for event in self.h2.receive_data(data):
                    self._event(event)
                self._flush()
                await self.writer.drain()
                data = await self.reader.read(65536)
        except h2.exceptions.ProtocolError:
            self._flush()
        for task in self.tasks:
            task.cancel()

    def _event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=stream, headers=fields):
                pairs = [(str(name), str(value)) for name, value in fields or ()]
                pseudo = {name: value for name, value in pairs if name.startswith(":")}
                plain = [pair for pair in pairs if not pair[0].startswith(":")]
                host = pseudo.get(":authority", "")
                self.requests[stream] = Seen(pseudo[":method"], pseudo[":path"], host, "HTTP/2.0", plain)
            case h2.events.DataReceived(stream_id=stream, data=data, flow_controlled_length=length):
                self.requests[stream].body += data or b""
                self.h2.acknowledge_received_data(length, stream)
            case h2.events.StreamEnded(stream_id=stream):
                task = asyncio.get_running_loop().create_task(self._reply(stream))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            case h2.events.StreamReset(stream_id=stream):
                self.requests.pop(stream, None)
                self.waiting.pop(stream, None)

    async def _reply(self, stream: int) -> None:
        seen = self.requests[stream]
        if seen.path == "/close":
            self.writer.transport.abort()
            return
        status, headers, body, wait = self.backend.answer(seen, self.tls)
        await asyncio.sleep(wait)
        if stream not in self.requests:
            return
        empty = seen.method == "HEAD" or status in {204, 304} or not body
        if urlsplit(seen.path).path != "/chunked" and status not in {204, 304}:
            headers.append(("content-length", str(len(body))))
        self.h2.send_headers(stream, [(":status", str(status)), *headers], end_stream=empty)
        if not empty:
            self.waiting[stream] = bytearray(body)
        self._flush()

    def _flush(self) -> None:
        for stream, body in list(self.waiting.items()):
            while body and (room := min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)):
                part = bytes(body[:room])
                del body[:room]
                self.h2.send_data(stream, part, end_stream=not body)
            if not body:
                del self.waiting[stream]
        self.writer.write(self.h2.data_to_send())


if __name__ == "__main__":
    # python -m tests.echo_backend PORT POD SERVICE NAMESPACE
    async def _main() -> None:
        backend = EchoBackend(*sys.argv[2:5], host="0.0.0.0", port=int(sys.argv[1]))
        await (await backend.listen()).serve_forever()

    asyncio.run(_main())
