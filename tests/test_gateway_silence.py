"""Peers that are there and say nothing, or next to nothing: for how long a gateway believes in them."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import h2.connection
import h2.events
import pytest

from tests import gateway as gw
from tests.echo_backend import EchoBackend
from tests.web import curl, rule, service, to, url
from tproxy.gateway.http import h2_frames as f

HOST = "web.example.com"
PINGS = ("--ping-clients", "2", "--ping-backends", "2")


def configured(folder: Path, port: int, pod: int, kind: str = "http") -> Path:
    gw.write(
        folder / "conf" / "all.yaml",
        gw.gateway_yaml(gw.server(port, "HTTP", "*")),
        gw.virtual("v", [HOST], http=[rule(to("web"))]),
        *service("web", {kind: 80}, pod),
    )
    return folder / "conf"


def asking(port: int, target: str) -> tuple[socket.socket, h2.connection.H2Connection]:
    """A client that has sent a request by HTTP/2."""
    sock, conn = socket.create_connection(("127.0.0.1", port), 10), h2.connection.H2Connection()
    conn.initiate_connection()
    fields = [(":method", "GET"), (":scheme", "http"), (":authority", HOST), (":path", target)]
    conn.send_headers(1, fields, end_stream=True)
    sock.sendall(conn.data_to_send())
    return sock, conn


def test_a_client_that_answers_pings_waits_as_long_as_it_likes_and_one_that_does_not_is_gone(tmp_path: Path) -> None:
    port = gw.free_port()
    with EchoBackend() as pod, gw.running(configured(tmp_path, port, pod.port), *PINGS) as gateway:
        sock, conn = asking(port, "/?delay=8s")
        silent, _ = asking(port, "/?delay=30s")
        us = "{}:{}".format(*silent.getsockname())
        began, pings, answered = time.monotonic(), 0, False
        while not answered:
            for event in conn.receive_data(sock.recv(65536)):
                pings += isinstance(event, h2.events.PingReceived)
                answered = answered or isinstance(event, h2.events.StreamEnded)
            sock.sendall(conn.data_to_send())
        assert pings >= 2
        assert time.monotonic() - began > 7.5
        with suppress(ConnectionResetError):
            while silent.recv(65536):
                pass
        assert time.monotonic() - began < 25
        silent.close()
        sock.close()
        record = gateway.record(outcome="reset", source=us)
        assert record["why"] == "the peer answered no PING within 2 s"


class Mute:
    """An HTTP/2 backend that takes requests and is never heard of again; ``pongs``: but for its answers to PING."""

    def __init__(self, pongs: bool) -> None:
        self.listener, self.pongs, self.pinged = socket.create_server(("127.0.0.1", 0)), pongs, 0
        self.port: int = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._one, args=(self.listener.accept()[0],), daemon=True).start()

    def __enter__(self) -> Mute:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)

    def _one(self, sock: socket.socket) -> None:
        with sock:
            self._read(sock)

    def _read(self, sock: socket.socket) -> None:
        sock.sendall(f.settings([]) + f.frame(f.SETTINGS, f.ACK, 0))
        rest = b""
        with suppress(OSError):
            while data := sock.recv(65536):
                rest = (rest + data).removeprefix(f.PREFACE)
                while len(rest) >= 9 and len(rest) >= (size := 9 + int.from_bytes(rest[:3])):
                    kind, flags, payload, rest = rest[3], rest[4], rest[9:size], rest[size:]
                    if kind == f.PING and not flags:
                        self.pinged += 1
                        if self.pongs:
                            sock.sendall(f.ping(payload, ack=True))


@pytest.mark.parametrize("pongs", [True, False])
def test_a_backend_that_answers_no_ping_is_given_up_and_the_client_told(tmp_path: Path, pongs: bool) -> None:
    port = gw.free_port()
    with (
        Mute(pongs) as backend,
        gw.running(configured(tmp_path, port, backend.port, "http2"), *PINGS, "--access-log", "json"),
    ):
        began = time.monotonic()
        if pongs:
            with socket.create_connection(("127.0.0.1", port), 7) as sock:
                sock.sendall(f"POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 0\r\n\r\n".encode())
                with pytest.raises(TimeoutError):
                    sock.recv(1)
            assert backend.pinged >= 2
        else:
            found = curl(url(port), "-X", "POST", host=HOST)
            assert (found.status, found.body.rpartition(": ")[2]) == (503, "remote reset")
            assert backend.pinged == 1, "a request that may have been processed was sent again"
            assert time.monotonic() - began < 15


def trickled(port: int, begin: bytes, piece: bytes, seconds: float) -> bytes:
    """The answer to a body that comes piece by piece."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(begin)
        sock.settimeout(0.1)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with suppress(TimeoutError):
                return sock.recv(65536)
            sock.sendall(piece)
    return b""


def test_a_body_of_a_byte_now_and_then_is_408_and_one_of_some_more_is_served(tmp_path: Path) -> None:
    port = gw.free_port()
    head = f"POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 300\r\n\r\n".encode()
    with EchoBackend() as pod:
        conf = configured(tmp_path, port, pod.port)
        with gw.running(conf, "--stall", "1", "--body-rate", "50", "--access-log", "json") as gateway:
            assert trickled(port, head, b"x", 5).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            gateway.said("50 bytes a second are the least")
            line = next(line for line in gateway.process.log.read_text().split("\n") if '"response_code": 408' in line)
            assert '"response_flags": "DPE"' in line
            assert trickled(port, head, b"x" * 20, 8).startswith(b"HTTP/1.1 200 OK\r\n")
            assert b":status" not in (answer := _trickled_h2(port)) and answer == b"408"
        with gw.running(conf, "--stall", "1", "--body-rate", "0"):
            assert trickled(port, head, b"x", 4) == b""


def _trickled_h2(port: int) -> bytes:
    """The status that a client of HTTP/2 gets that sends ten bytes a second."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        conn = h2.connection.H2Connection()
        conn.initiate_connection()
        fields: list[Any] = [(":method", "POST"), (":scheme", "http"), (":authority", HOST), (":path", "/")]
        conn.send_headers(1, fields)
        sock.settimeout(0.1)
        for _ in range(100):
            conn.send_data(1, b"x")
            sock.sendall(conn.data_to_send())
            with suppress(TimeoutError):
                for event in conn.receive_data(sock.recv(65536)):
                    if isinstance(event, h2.events.ResponseReceived):
                        return bytes(dict(event.headers)[b":status"])
    return b""
