"""Requests that do not go straight: deadlines, other tries, mirrors, early answers, backends that break off."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import gateway as gw
from tests.echo_backend import EchoBackend
from tests.web import curl, rule, service, to, url
from tproxy.world.process import wait_for

TERMINATION = "upstream connect error or disconnect/reset before headers. reset reason: connection termination"


class Scripted:
    """A backend that does with each connection what the script says."""

    def __init__(self, script: Callable[[socket.socket, int], None]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.script, self.count = script, 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.count += 1
                threading.Thread(target=self._one, args=(sock, self.count), daemon=True).start()

    def _one(self, sock: socket.socket, number: int) -> None:
        with suppress(OSError), sock:
            self.script(sock, number)


def request(sock: socket.socket) -> bytes:
    """One without a body."""
    data = b""
    while b"\r\n\r\n" not in data and (part := sock.recv(65536)):
        data += part
    return data


def saying(answer: bytes) -> Callable[[socket.socket, int], None]:
    """Always the same."""

    def script(sock: socket.socket, _: int) -> None:
        request(sock)
        sock.sendall(answer)
        sock.recv(1)

    return script


@dataclass
class Served:
    gateway: gw.Gateway
    port: int

    def get(self, path: str = "/", *options: str) -> Any:
        return curl(url(self.port, path), *options, host="web.example.com")


@contextmanager
def serving(folder: Path, *pods: int, **more: Any) -> Iterator[Served]:
    """A gateway of one rule; with ``mirrors`` a second Service."""
    port, mirrors = gw.free_port(), more.pop("mirrors", ())
    gw.write(
        folder / "config" / "all.yaml",
        gw.gateway_yaml(gw.server(port, "HTTP", "*")),
        gw.virtual("v", ["web.example.com"], http=[rule(to("web"), **more)]),
        *service("web", {"http": 80}, *pods),
        *service("shadow", {"http": 80}, *mirrors),
    )
    with gw.running(folder / "config") as gateway:
        yield Served(gateway, port)


@pytest.fixture
def pod() -> Iterator[EchoBackend]:
    with EchoBackend() as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config").mkdir()
    return tmp_path


def test_a_request_that_takes_too_long_is_504(folder: Path, pod: EchoBackend) -> None:
    with serving(folder, pod.port, timeout="300ms") as web:
        found = web.get("/?delay=5s")
        assert (found.status, found.body) == (504, "upstream request timeout")
        assert web.get("/").status == 200


def test_a_try_that_takes_too_long_is_given_up_and_another_is_made(folder: Path) -> None:
    def slow(sock: socket.socket, number: int) -> None:
        request(sock)
        if number > 1:
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        sock.recv(1)

    backend = Scripted(slow)
    with serving(folder, backend.port, retries={"attempts": 2, "perTryTimeout": "300ms", "retryOn": "5xx"}) as web:
        assert web.get().body == "ok"
        assert backend.count == 2


def test_a_status_that_the_rule_names_is_tried_again_with_its_body(folder: Path) -> None:
    seen: list[bytes] = []

    def failing(sock: socket.socket, number: int) -> None:
        data = request(sock)
        while not data.endswith(b"payload"):
            data += sock.recv(1000)
        seen.append(data)
        status = b"503 Service Unavailable" if number < 3 else b"200 OK"
        sock.sendall(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\nok")
        sock.recv(1)

    backend = Scripted(failing)
    with serving(folder, backend.port, retries={"attempts": 3, "retryOn": "503"}) as web:
        assert web.get("/", "-d", "payload").status == 200
        assert len(seen) == 3


def test_attempts_0_means_once(folder: Path) -> None:
    backend = Scripted(saying(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"))
    with serving(folder, backend.port, retries={"attempts": 0}) as web:
        assert web.get().status == 503
        assert backend.count == 1


def test_another_endpoint_is_asked_when_one_does_not_accept(folder: Path, pod: EchoBackend) -> None:
    with serving(folder, gw.free_port(), pod.port, retries={"attempts": 0}) as web:
        assert [web.get().status for _ in range(8)] == [200] * 8


def test_a_kept_connection_that_the_backend_has_closed_costs_nobody_a_request(folder: Path) -> None:
    def once(sock: socket.socket, _: int) -> None:
        request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        request(sock)  # the next request arrives, and is not answered

    backend = Scripted(once)
    with serving(folder, backend.port, retries={"attempts": 0}) as web:
        assert [web.get().body for _ in range(5)] == ["ok"] * 5
        post = web.get("/", "-X", "POST")
        assert (post.status, post.body) == (503, TERMINATION)


def test_an_answer_that_breaks_off_is_not_taken_for_whole(folder: Path) -> None:
    def short(sock: socket.socket, _: int) -> None:
        request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")

    with serving(folder, Scripted(short).port) as web, pytest.raises(AssertionError, match="transfer closed"):
        web.get()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\na: b\nc: d\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    ],
)
def test_a_backend_that_does_not_speak_http_is_502(folder: Path, answer: bytes) -> None:
    backend = Scripted(saying(answer))
    with serving(folder, backend.port, retries={"attempts": 0}) as web:
        found = web.get()
        assert (found.status, found.body.rpartition(": ")[2]) == (502, "protocol error")


def test_an_answer_before_the_request_is_complete_is_passed_on_at_once(folder: Path) -> None:
    def early(sock: socket.socket, _: int) -> None:
        request(sock)
        sock.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        sock.recv(1 << 20)

    with serving(folder, Scripted(early).port) as web, socket.create_connection(("127.0.0.1", web.port), 10) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: web.example.com\r\nContent-Length: 100000000\r\n\r\nabc")
        data = b""
        while part := sock.recv(1000):
            data += part
        assert data.startswith(b"HTTP/1.1 413 ")
        assert data.endswith(b"big")


def test_a_client_that_leaves_takes_its_request_with_it(folder: Path) -> None:
    came, gone = threading.Event(), threading.Event()

    def waiting(sock: socket.socket, _: int) -> None:
        request(sock)
        came.set()
        with suppress(ConnectionResetError):
            sock.recv(1)
        gone.set()

    with serving(folder, Scripted(waiting).port) as web:
        with socket.create_connection(("127.0.0.1", web.port), 10) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
            assert came.wait(10)
            assert not gone.is_set()
        assert gone.wait(10)


def test_a_mirror_gets_the_request_and_nobody_its_answer(folder: Path, pod: EchoBackend) -> None:
    with EchoBackend("shadow-0") as shadow:
        mirror = {"host": "shadow", "port": {"number": 80}}
        with serving(folder, pod.port, mirrors=(shadow.port,), mirror=mirror) as web:
            assert web.get("/a", "-d", "payload").said["pod"] == "backend-0"
            wait_for(lambda: shadow.seen, 10, "the copy")
            assert (shadow.seen[0].path, shadow.seen[0].body) == ("/a", b"payload")
            assert shadow.seen[0].host == "web.example.com-shadow"


def test_a_mirror_that_is_not_there_changes_nothing(folder: Path, pod: EchoBackend) -> None:
    mirror = {"host": "shadow", "port": {"number": 80}}
    with serving(folder, pod.port, mirrors=(gw.free_port(),), mirror=mirror) as web:
        assert web.get("/echo", "--data-binary", "x" * 100_000).body == "x" * 100_000


def test_requests_under_way_are_finished_when_the_gateway_stops(folder: Path, pod: EchoBackend) -> None:
    with serving(folder, pod.port) as web, ExitStack() as stack:
        idle = stack.enter_context(socket.create_connection(("127.0.0.1", web.port), 10))
        busy = stack.enter_context(socket.create_connection(("127.0.0.1", web.port), 10))
        busy.sendall(b"GET /?delay=500ms HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
        wait_for(lambda: pod.seen, 10, "the request at the backend")
        os.kill(web.gateway.process.pid, signal.SIGTERM)
        assert not idle.recv(1)
        data = b""
        while part := busy.recv(65536):
            data += part
        assert data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection: close\r\n" in data
        assert web.gateway.process.popen.wait(10) == 0


def test_another_try_waits_a_little_and_longer_each_time(folder: Path) -> None:
    times: list[float] = []

    def failing(sock: socket.socket, _: int) -> None:
        request(sock)
        times.append(time.monotonic())
        sock.sendall(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")
        sock.recv(1)

    retries = {"attempts": 3, "retryOn": "503", "backoff": "400ms"}
    with serving(folder, Scripted(failing).port, retries=retries, timeout="20s") as web:
        assert web.get().status == 503
        assert len(times) == 4
        assert 0.005 < times[-1] - times[0] < 5.0
