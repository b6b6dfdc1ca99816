"""The admin pages: one bounded HTTP server, and what it says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys

import pytest

from tproxy.admin.http import OF_ONE, Answer, serve


async def ask(data: bytes) -> bytes:
    """What the server answers to these bytes."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = await serve(listener, {"/page": lambda: Answer.text("hello"), "/json": lambda: Answer.json({"a": 1})})
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(-1), 10)
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    return answer


@pytest.mark.parametrize(
    ("request_bytes", "status", "body"),
    [
        (b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n", b"200", b"hello\n"),
        (b"GET /page?x=y HTTP/1.1\r\nHost: x\r\n\r\n", b"200", b"hello\n"),
        (b"GET /json HTTP/1.1\r\nHost: x\r\n\r\n", b"200", b'{\n  "a": 1\n}\n'),
        (b"HEAD /page HTTP/1.1\r\nHost: x\r\n\r\n", b"200", b""),
        (b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n", b"404", b"not found; there is /page /json\n"),
        (b"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"405", b"only GET is answered here\n"),
    ],
)
def test_a_page_is_answered(request_bytes: bytes, status: bytes, body: bytes) -> None:
    answer = asyncio.run(ask(request_bytes))
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == status
    assert rest == body


@pytest.mark.parametrize("data", [b"\x16\x03\x01\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"y" * 20_000])
def test_nonsense_is_a_bad_request_and_no_traceback(data: bytes) -> None:
    assert asyncio.run(ask(data)).split()[1] == b"400"


def test_whoever_hangs_on_keeps_nobody_else_out() -> None:
    def page(name: tuple[str, int], source: str) -> bytes:
        with socket.create_connection(name, timeout=10, source_address=(source, 0)) as sock:
            try:
                sock.sendall(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
                return b"".join(iter(lambda: sock.recv(4096), b""))
            except ConnectionError:
                return b""

    async def crowd() -> tuple[bytes, bytes]:
        listener = socket.create_server(("127.0.0.1", 0))
        server = await serve(listener, {"/page": lambda: Answer.text("hello")})
        name = listener.getsockname()
        with contextlib.ExitStack() as stack:
            for _ in range(OF_ONE):
                stack.enter_context(socket.create_connection(name))
            other = await asyncio.to_thread(page, name, "127.0.0.2")
            same = await asyncio.to_thread(page, name, "127.0.0.1")
        server.close()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
        return other, same

    other, same = asyncio.run(crowd())
    assert other.endswith(b"hello\n")
    assert same == b""


LEAN = """
import sys
from tproxy.admin.metrics import Metrics
metrics = Metrics()
metrics.taken()
assert b'tproxy_reloads_total{result="ok"} 1.0' in metrics.page().body
heavy = {"http.server", "http.client", "urllib.request", "wsgiref", "html.entities", "email.parser"} & set(sys.modules)
assert not heavy, heavy
import gzip, http.server, urllib.request, wsgiref.simple_server
assert http.server.BaseHTTPRequestHandler.handle and urllib.request.urlopen and gzip.compress(b"")
assert issubclass(wsgiref.simple_server.WSGIServer, http.server.HTTPServer)
"""


def test_metrics_bring_no_servers_into_memory_and_leave_them_as_they_are_to_others() -> None:
    subprocess.run([sys.executable, "-c", LEAN], check=True, timeout=60)
