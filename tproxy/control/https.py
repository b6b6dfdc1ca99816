"""HTTPS for a server of few pages: the newest certificate at each handshake, one request after the other, all bounded.

>>> context = door(lambda: serving.https)                             # doctest: +SKIP
>>> await asyncio.start_server(client, sock=listener, ssl=context)    # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from http import HTTPStatus

import h11

HEAD_LIMIT = 16 * 1024  # bytes of a request line and its headers
READ = 1 << 20  # all that the connection holds


def context(key: bytes, chain: bytes) -> ssl.SSLContext:
    """A server's context for these PEMs. The standard library reads only files: this one is in memory and nameless."""
    made = _server()
    fd = os.memfd_create("tproxy", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(key + chain)
        made.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return made


def door(newest: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """A context without a certificate that takes over the newest one in each handshake; connections keep theirs."""

    def take(sock: ssl.SSLObject, _name: str | None, _own: ssl.SSLContext) -> None:
        sock.context = newest()

    made = _server()
    made.sni_callback = take  # called for each ClientHello, with or without a name
    return made


def _server() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_RENEGOTIATION
    made.num_tickets = 0  # Go's clients keep connections, not sessions
    return made


class Link:
    """One connection: h11 above the streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)

    async def request(self) -> h11.Request | None:
        """The next request's head; None when the client has left."""
        event = await self._event()
        return event if isinstance(event, h11.Request) else None

    async def data(self) -> bytes | bytearray | None:
        """The next piece of the body; None at its end. h11.RemoteProtocolError if there is none."""
        if self._http.they_are_waiting_for_100_continue:
            self._send(h11.InformationalResponse(status_code=100, headers=[]))
        event = await self._event()
        return event.data if isinstance(event, h11.Data) else None

    async def answer(self, status: int, kind: str, body: bytes, last: bool) -> bool:
        """Send it; whether another request may come."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return False
        headers = [("content-type", kind), ("content-length", str(len(body)))]
        headers += [("connection", "close")] if last else []
        head = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode())
        self._send(head, h11.Data(data=body), h11.EndOfMessage())
        await self._writer.drain()
        more = not last and self._http.states == {h11.SERVER: h11.DONE, h11.CLIENT: h11.DONE}
        if more:
            self._http.start_next_cycle()
        return more

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(READ))
        return event

    def _send(self, *events: h11.Event) -> None:
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
