"""Several processes on the same ports behave as one: shared connections, added metrics, one drain."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests import gateway as gw
from tests.echo_backend import EchoBackend
from tests.web import curl, rule, service, to, url
from tproxy.core.metrics_text import added
from tproxy.world.process import wait_for

HOST = "web.example.com"


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def count(port: int) -> int:
    """Requests as the metrics have them."""
    page = curl(url(port, "/metrics")).body
    return sum(int(float(found)) for found in re.findall(r"^tproxy_http_requests_total\{.*\} (\S+)$", page, re.M))


def test_workers_share_connections_and_their_metrics_are_added_up(tmp_path: Path) -> None:
    port, metrics, folder = gw.free_port(), gw.free_port(), tmp_path / "config"
    with EchoBackend() as pod:
        objects = [gw.gateway_yaml(gw.server(port, "HTTP", "*")), *service("web", {"http": 80}, pod.port)]
        gw.write(folder / "all.yaml", *objects, gw.virtual("v", [HOST], http=[rule(to("web"))]))
        with gw.running(folder, "--workers", "2", "--metrics-port", str(metrics)) as gateway:
            gateway.said("ready: ports", 2)
            assert len(children(gateway.process.pid)) == 2
            for _ in range(40):
                assert curl(url(port), host=HOST).status == 200
            assert count(metrics) == 40
            sources = {str(record["source"]) for record in gateway.records(outcome="closed")}
            assert len(sources) == 40
            assert curl(url(metrics, "/healthz/ready")).body == "ready\n"
            gw.write(folder / "all.yaml", *objects, gw.virtual("v", ["new.example.com"], http=[rule(to("web"))]))
            gateway.said("reloaded: ports", 2)
            for _ in range(10):
                assert curl(url(port), host="new.example.com").status == 200


def test_sigterm_drains_all_of_them(tmp_path: Path) -> None:
    port, folder = gw.free_port(), tmp_path / "config"
    with EchoBackend() as pod:
        objects = [gw.gateway_yaml(gw.server(port, "HTTP", "*")), *service("web", {"http": 80}, pod.port)]
        gw.write(folder / "all.yaml", *objects, gw.virtual("v", [HOST], http=[rule(to("web"))]))
        with gw.running(folder, "--workers", "2", "--drain", "5") as gateway:
            gateway.said("ready: ports", 2)
            with socket.create_connection(("127.0.0.1", port), 10) as sock:
                sock.sendall(f"GET /?delay=500ms HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                wait_for(lambda: pod.seen, 10, "the request at the backend")
                os.kill(gateway.process.pid, signal.SIGTERM)
                data = b""
                while part := sock.recv(65536):
                    data += part
            assert data.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"connection: close\r\n" in data
            gateway.said("stopped: 0 connections were cut", 2)
            assert gateway.process.popen.wait(10) == 0


def test_a_worker_that_ends_ends_all(tmp_path: Path) -> None:
    folder = tmp_path / "config"
    gw.write(folder / "all.yaml", gw.gateway_yaml(gw.server(gw.free_port(), "HTTP", "*")))
    popen = gw.started(folder, "--workers", "2")
    try:
        gateway = gw.Gateway(folder, popen)
        gateway.said("ready: ports", 2)
        os.kill(children(popen.pid)[0], signal.SIGKILL)
        assert popen.popen.wait(10) == 1
    finally:
        popen.kill()


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    folder = tmp_path / "config"
    gw.write(folder / "all.yaml", gw.gateway_yaml(gw.server(gw.free_port(), "HTTP", "*")))
    popen = gw.started(folder, "--workers", "2")
    gateway = gw.Gateway(folder, popen)
    gateway.said("ready: ports", 2)
    workers = children(popen.pid)
    popen.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 10, "the end of the workers")


NAMES = st.sampled_from(["a", "b_total", 'b_total{x="1 2"}', "c_timestamp_seconds"])


@given(pages=st.lists(st.dictionaries(NAMES, st.integers(0, 1000)), max_size=4))
def test_samples_are_added_and_the_earliest_time_counts(pages: list[dict[str, int]]) -> None:
    text = added("".join(f"{name} {value}\n" for name, value in page.items()) for page in pages)
    found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines()}
    for name in {name for page in pages for name in page}:
        values = [page[name] for page in pages if name in page]
        assert found[name] == (min(values) if name.endswith("_seconds") else sum(values))


def test_a_second_gateway_with_workers_does_not_take_half_of_the_firsts_connections(tmp_path: Path) -> None:
    """SO_REUSEPORT lets it; so it has to be noticed, before and after a reload."""
    port, later = gw.free_port(), gw.free_port()
    first, second = tmp_path / "first", tmp_path / "second"
    gw.write(first / "all.yaml", gw.gateway_yaml(gw.server(port, "HTTP", "*")))
    gw.write(second / "all.yaml", gw.gateway_yaml(gw.server(later, "HTTP", "*")))
    with gw.running(first, "--workers", "2") as gateway:
        gateway.said("ready: ports", 2)
        late = gw.started(first, "--workers", "3")
        assert late.popen.wait(15) == 3
        assert f"port {port}: another gateway with --workers has it" in late.log.read_text()
        with gw.running(second, "--workers", "2") as other:
            other.said("ready: ports", 2)
            gw.write(second / "all.yaml", gw.gateway_yaml(gw.server(port, "HTTP", "*")))
            other.said("not taken up, what was served before goes on", 2)
            gw.write(first / "all.yaml", gw.gateway_yaml(gw.server(gw.free_port(), "HTTP", "*")))
            gateway.said("reloaded: ports", 2)
            gw.write(second / "all.yaml", gw.gateway_yaml(gw.server(port, "HTTP", "a.example.com")))
            other.said(f"reloaded: ports {port}", 2)


def test_a_port_that_a_single_gateway_has_is_refused_to_workers(tmp_path: Path) -> None:
    folder = tmp_path / "config"
    gw.write(folder / "all.yaml", gw.gateway_yaml(gw.server(gw.free_port(), "HTTP", "*")))
    with gw.running(folder):
        late = gw.started(folder, "--workers", "2")
        assert late.popen.wait(15) == 3
        assert "who listens there already?" in late.log.read_text()
