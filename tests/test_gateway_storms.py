"""Heavy and hostile loads on a whole gateway: what one client does, the others do not feel."""

from __future__ import annotations

import json
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import gateway as gw
from tests.web import api_gateway, http_route, rule, service, to, url
from tproxy.gateway.http import h2_frames as f
from tproxy.gateway.http.h2_hpack import Encoder
from tproxy.world.process import wait_for

HOST = "www.example.com"
VERSIONS = {"HTTP/1.1": ["--h1"], "HTTP/2": []}
CERTIFICATE = gw.self_signed("example.com")


@dataclass(frozen=True)
class Ports:
    """Of one gateway."""

    plain: int
    secure: int


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """nginx in cleartext: ``/one`` is the byte 1."""
    folder, port = tmp_path_factory.mktemp("nginx"), gw.free_port()
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;\n"
        "events { worker_connections 4096; } http { access_log off; keepalive_requests 10000000;\n"
        f'server {{ listen 127.0.0.1:{port}; location / {{ default_type text/plain; return 200 "1"; }} }} }}\n'
    )
    program = shutil.which("nginx", path=f"{gw.ENV['PATH']}:/usr/sbin")
    assert program is not None
    with subprocess.Popen([program, "-c", folder / "nginx.conf", "-p", folder]) as process:
        wait_for(lambda: gw.listens(port), 10, "nginx")
        yield port
        process.terminate()


def write(folder: Path, ports: Ports, backend: int, turn: int = 0) -> None:
    """Two listeners; ``turn`` changes a rule that nobody asks for, and the weights of one that everybody does."""
    web = [{"name": f"web-{place}", "port": 80, "weight": 1 + (turn + place) % 3} for place in range(2)]
    gw.write(
        folder / "all.yaml",
        *api_gateway(
            {"name": "http", "port": ports.plain, "protocol": "HTTP"},
            {
                "name": "https",
                "port": ports.secure,
                "protocol": "HTTPS",
                "tls": {"certificateRefs": [{"name": "cert"}]},
            },
        ),
        gw.secret("cert", "shop", *CERTIFICATE),
        *service("web-0", {"http": 80}, backend),
        *service("web-1", {"http": 80}, backend),
        http_route("www", [HOST, "crowd"], {"backendRefs": web}),
        http_route("turn", [f"t{turn}.example.com"], {"backendRefs": web}),
    )


@contextmanager
def serving(folder: Path, backend: int) -> Iterator[tuple[Ports, gw.Gateway]]:
    ports = Ports(gw.free_port(), gw.free_port())
    write(folder, ports, backend)
    with gw.running(folder) as gateway:
        yield ports, gateway


@pytest.fixture(scope="module")
def gateway(backend: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ports, gw.Gateway]]:
    with serving(tmp_path_factory.mktemp("storms") / "config", backend) as made:
        yield made


def load(ports: Ports, count: int, version: str, tls: bool = False) -> tuple[int, float]:
    """Requests that failed or were not 200, and the slowest one's milliseconds."""
    argv = ["h2load", "-n", str(count), "-c", "8", *VERSIONS[version], "-H", f":authority: {HOST}"]
    if tls:
        argv += [f"--connect-to=127.0.0.1:{ports.secure}", f"https://{HOST}/"]
    else:
        argv.append(url(ports.plain))
    said = subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout.decode()
    good = re.search(r"status codes: (\d+) 2xx", said)
    slowest = re.search(r"time for request: +\S+ +([\d.]+)(us|ms|s)", said)
    assert good is not None and slowest is not None, said
    return count - int(good[1]), float(slowest[1]) * {"us": 0.001, "ms": 1, "s": 1000}[slowest[2]]


@contextmanager
def meanwhile(work: Callable[[threading.Event], None], threads: int = 1) -> Iterator[None]:
    """Somebody else does this, until the event."""
    stop, failed = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            work(stop)
        except BaseException as error:
            failed.append(error)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in running:
            thread.join(30)
    assert not failed, failed


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\nhost: www.example.com\r\nx-slow: ", f.PREFACE[:3]])
def test_slow_clients_are_ended_and_nobody_waits_for_them(gateway: tuple[Ports, gw.Gateway], first: bytes) -> None:
    """Slowloris: 300 heads of requests, a byte at a time."""
    ports, _ = gateway
    socks = [socket.create_connection(("127.0.0.1", ports.plain), 5) for _ in range(300)]
    ended = set[int]()
    for sock in socks:
        sock.sendall(first)
        sock.setblocking(False)

    def drip(stop: threading.Event) -> None:
        while not stop.is_set():
            for sock in socks:
                if sock.fileno() not in ended:
                    try:
                        sock.send(b"a" if first[0] == 71 else b"")
                        if not sock.recv(1000):
                            ended.add(sock.fileno())
                    except BlockingIOError:
                        continue
                    except OSError:
                        ended.add(sock.fileno())
            stop.wait(0.3)

    with meanwhile(drip):
        for version in VERSIONS:
            failed, slowest = load(ports, 1500, version)
            assert failed == 0
            assert slowest < 1000, "milliseconds; a head may take ten seconds"
        wait_for(lambda: len(ended) == len(socks), 20, "the slow clients to be ended")
    for sock in socks:
        sock.close()


def rapid_reset(number: int, encoder: Encoder) -> bytes:
    """CVE-2023-44487."""
    return request(number, encoder, "/") + f.rst_stream(number, f.Code.CANCEL)


def made_you_reset(number: int, encoder: Encoder) -> bytes:
    """CVE-2025-8671: a body that is longer than it says."""
    return request(number, encoder, "/", ("content-length", "1")) + f.frame(f.DATA, 0, number, b"12")


def malformed(number: int, encoder: Encoder) -> bytes:
    """No path."""
    return request(number, encoder, "")


def request(number: int, encoder: Encoder, path: str, *more: tuple[str, str]) -> bytes:
    fields = [(":method", "POST"), (":scheme", "http"), (":authority", HOST), (":path", path), *more]
    return f.header_block(number, encoder.encode(fields), False, f.FRAME)


@pytest.mark.parametrize("attack", [rapid_reset, made_you_reset, malformed])
def test_a_flood_of_resets_is_cut_and_nobody_else_feels_it(
    gateway: tuple[Ports, gw.Gateway], attack: Callable[[int, Encoder], bytes]
) -> None:
    """Four clients that come back as soon as they are thrown out."""
    ports, _ = gateway
    cut = [0]

    def flood(stop: threading.Event) -> None:
        while not stop.is_set():
            with socket.create_connection(("127.0.0.1", ports.plain), 5) as sock, suppress(OSError):
                encoder = Encoder()
                sock.sendall(f.PREFACE + f.settings([]) + f.frame(f.SETTINGS, f.ACK, 0))
                for number in range(1, 4001, 100):
                    sock.sendall(b"".join(attack(each, encoder) for each in range(number, number + 100, 2)))
                while sock.recv(65536):
                    pass
                cut[0] += 1

    with meanwhile(flood, 4):
        for version in VERSIONS:
            failed, slowest = load(ports, 1500, version)
            assert failed == 0
            assert slowest < 2000, "milliseconds, while two processes and four threads want the same processor"
        wait_for(lambda: cut[0] >= 4, 20, "floods to be cut")


def test_two_hundred_reloads_under_load_fail_no_request(backend: int, tmp_path: Path) -> None:
    results = list[tuple[str, bool, int]]()

    with serving(tmp_path / "config", backend) as (ports, gateway):

        def work(stop: threading.Event) -> None:
            while not stop.is_set():
                for version in VERSIONS:
                    results.extend((version, tls, load(ports, 400, version, tls)[0]) for tls in (False, True))

        with meanwhile(work):
            for turn in range(1, 201):
                write(tmp_path / "config", ports, backend, turn)
                gateway.said("reloaded:", turn)
    assert len(results) >= 8, "each of four twice"
    assert all(failed == 0 for *_, failed in results), results


def test_ten_thousand_idle_connections_are_kept_and_answered(backend: int, tmp_path: Path) -> None:
    """Each has asked once and asks again; what one costs is printed and bounded."""
    count = min(10_000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 5000)
    with serving(tmp_path / "config", backend) as (ports, gateway):

        def resident() -> int:
            status = Path(f"/proc/{gateway.process.popen.pid}/status").read_text()
            return int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]

        before = resident()
        argv = [sys.executable, "-m", "tproxy.world.crowd", f"127.0.0.1:{ports.plain}"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as crowd:
            assert crowd.stdin is not None and crowd.stdout is not None

            def tell(line: str) -> dict[str, float]:
                crowd.stdin.write(line + "\n")  # type: ignore[union-attr]
                crowd.stdin.flush()  # type: ignore[union-attr]
                return dict(json.loads(crowd.stdout.readline()))  # type: ignore[union-attr]

            found = tell(str(count))
            assert (found["open"], found["failed"]) == (count, 0)
            each = (resident() - before) / count
            print(f"{count} connections in {found['seconds']} s, {each:.1f} KiB each, {resident()} KiB in all")
            assert each < 20, "KiB"
            began = time.monotonic()
            assert load(ports, 1000, "HTTP/2")[0] == 0
            print(f"1000 requests beside them in {time.monotonic() - began:.2f} s")
            found = tell("ask")
            assert (found["open"], found["failed"]) == (count, 0)
            crowd.stdin.close()


def many(count: int, folder: Path, backend: int) -> int:
    """So many hosts on one port, each with its Secret, server and rule, as Istio's users have them; the port."""
    port = gw.free_port()
    names = [f"host-{number}.example{number % 10}.com" for number in range(count)]
    servers = [gw.server(port, "HTTPS", name, mode="SIMPLE", credentialName=name) for name in names]
    for number, one in enumerate(servers):
        one["port"]["name"] = f"https-{number}"
    gw.write(
        folder / "all.yaml",
        gw.gateway_yaml(*servers),
        *service("web", {"http": 80}, backend),
        *(gw.secret(name, "istio-system", *gw.self_signed(name)) for name in names),
        *(gw.virtual(f"v{number}", [name], http=[rule(to("web"))]) for number, name in enumerate(names)),
    )
    return port


def cpu(pid: int) -> float:
    """Seconds that its first thread has run: other than the clock's, those do not grow when the machine is busy."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def test_a_thousand_hosts_with_a_thousand_certificates_start_and_are_found_as_fast_as_ten(
    backend: int, tmp_path: Path
) -> None:
    seconds, started, memory = dict[int, float](), dict[int, float](), dict[int, int]()
    for count in (10, 1000):
        folder = tmp_path / str(count)
        port = many(count, folder, backend)
        began = time.monotonic()
        with gw.running(folder) as gateway:
            started[count] = time.monotonic() - began
            status = Path(f"/proc/{gateway.process.popen.pid}/status").read_text()
            memory[count] = int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]
            last = f"host-{count - 1}.example{(count - 1) % 10}.com"
            argv = ["h2load", "-n", "2000", "-c", "4", "-m", "10", f"--connect-to=127.0.0.1:{port}", f"https://{last}/"]
            best = float("inf")
            for _ in range(3):
                before = cpu(gateway.process.popen.pid)
                said = subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout.decode()
                assert "status codes: 2000 2xx" in said, said
                best = min(best, cpu(gateway.process.popen.pid) - before)
            seconds[count] = best
    print(f"start {started} s, memory {memory} KiB, 2000 requests {seconds} s")
    assert started[1000] < started[10] * 30, "a hundred times as much to read"
    assert seconds[1000] < seconds[10] * 2
    assert memory[1000] - memory[10] < 150 * 1024, "KiB"
