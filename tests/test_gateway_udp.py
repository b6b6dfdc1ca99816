"""UDP by UDPRoute: flows on real sockets, their bounds and their ends."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import free_port, running, write
from tproxy.core.address import Endpoint
from tproxy.core.reason import Reason
from tproxy.core.record import Outcome, Record
from tproxy.core.routes import Backend, Route, UdpListener
from tproxy.gateway import datagrams
from tproxy.gateway.datagrams import Datagrams
from tproxy.kernel.datagram import datagram_socket
from tproxy.world.process import wait_for


class Echo:
    """A backend that answers with its name and what it was sent."""

    def __init__(self, name: str = "echo") -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.port: int = self.sock.getsockname()[1]
        self.name, self.callers = name, list[Any]()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                data, caller = self.sock.recvfrom(65536)
                self.callers.append(caller)
                self.sock.sendto(self.name.encode() + b" " + data, caller)


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.sock.close()


def listener(*ports: int) -> UdpListener:
    endpoints = tuple(Endpoint.parse(f"127.0.0.1:{port}") for port in ports)
    return UdpListener(53, "Gateway shop/gw dns", Route("UDPRoute shop/dns rules[0]", (Backend("dns", endpoints),)))


def client(port: int, host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.connect((host, port))
    return sock


async def serving(
    what: UdpListener | None, use: Callable[[int], Any], clock: Callable[[], float], records: list[Record] | None = None
) -> list[Record]:
    """The records of what ``use``, in a thread, does with the port."""
    records = [] if records is None else records
    sock = datagram_socket("", 0)
    port = sock.getsockname()[1]
    made = Datagrams(sock, lambda: what, records.append, clock)
    made.start()
    try:
        await asyncio.to_thread(use, port)
    finally:
        made.stop()
    return records


def test_answers_come_back_from_the_address_that_was_asked_and_a_flow_keeps_its_socket(echo: Echo) -> None:
    def use(port: int) -> None:
        with client(port, "127.0.0.2") as sock:  # a connected socket takes answers of 127.0.0.2 only
            for word in (b"one", b"two"):
                sock.send(word)
                assert sock.recv(100) == b"echo " + word
        with client(port) as other:
            other.send(b"three")
            assert other.recv(100) == b"echo three"

    records = asyncio.run(serving(listener(echo.port), use, lambda: 0.0))
    assert len(set(echo.callers)) == 2
    assert [(each.outcome, each.sent, each.received) for each in records] == [
        (Outcome.CUT, 6, 16),
        (Outcome.CUT, 5, 10),
    ]
    assert str(records[0].target) == "127.0.0.2:53" and records[0].rule == "UDPRoute shop/dns rules[0]"


def test_a_flow_that_is_still_ends_with_a_record_and_its_port_may_begin_another(
    echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "SWEEP", 0.01)
    now = [0.0]

    def use(port: int) -> None:
        with client(port) as sock:
            sock.send(b"one")
            sock.recv(100)
            now[0] = datagrams.IDLE + 1
            wait_for(lambda: records, 5, "the flow's record")
            sock.send(b"two")
            sock.recv(100)

    records: list[Record] = []
    asyncio.run(serving(listener(echo.port), use, lambda: now[0], records))
    assert [each.outcome for each in records] == [Outcome.CLOSED, Outcome.CUT]


def test_flows_of_one_address_are_bounded_and_the_first_ones_go_on(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "MOST_OF_ONE", 3)

    def use(port: int) -> None:
        first = [client(port) for _ in range(3)]
        for sock in first:
            sock.send(b"x")
            sock.recv(100)
        with client(port) as late:
            late.settimeout(0.3)
            late.send(b"x")
            with pytest.raises(TimeoutError):
                late.recv(100)
        first[0].send(b"again")
        assert first[0].recv(100) == b"echo again"
        for sock in first:
            sock.close()

    records = asyncio.run(serving(listener(echo.port), use, lambda: 0.0))
    assert len(records) == 3


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (UdpListener(53, "Gateway shop/gw dns", None), Reason.NO_ROUTE),
        (listener(), Reason.NO_BACKEND),
        (listener(1), Reason.CONNECT_FAILED),  # nobody is there: ICMP says so
    ],
)
def test_what_leads_nowhere_is_one_record_however_many_datagrams_come(what: UdpListener, reason: Reason) -> None:
    def use(port: int) -> None:
        with client(port) as sock:
            for _ in range(3 if what.route is None or not what.route.backends[0].endpoints else 1):
                sock.send(b"x")
            sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                sock.recv(100)

    records = asyncio.run(serving(what, use, lambda: 0.0))
    assert [each.reason for each in records] == [reason]


def gateway(port: int, to: int) -> list[dict[str, Any]]:
    api, space = "gateway.networking.k8s.io/v1", {"namespace": "shop"}
    spec = {"gatewayClassName": "any", "listeners": [{"name": "dns", "port": port, "protocol": "UDP"}]}
    route = {"parentRefs": [{"name": "gw"}], "rules": [{"backendRefs": [{"name": "dns", "port": 53}]}]}
    slice_ = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "dns", **space, "labels": {"kubernetes.io/service-name": "dns"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": to}],
        "endpoints": [{"addresses": ["127.0.0.1"]}],
    }
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "dns", **space}}
    return [
        {"apiVersion": api, "kind": "Gateway", "metadata": {"name": "gw", **space}, "spec": spec},
        {"apiVersion": api, "kind": "UDPRoute", "metadata": {"name": "dns", **space}, "spec": route},
        {**service, "spec": {"ports": [{"port": 53, "protocol": "UDP"}]}},
        slice_,
    ]


def test_a_udp_route_is_served_by_the_command_and_gone_when_it_is_deleted(tmp_path: Path, echo: Echo) -> None:
    conf, port = tmp_path / "conf", free_port()
    write(conf / "dns.yaml", *gateway(port, echo.port))
    with running(conf) as gate, client(port) as sock:
        sock.send(b"hello")
        assert sock.recv(100) == b"echo hello"
        (conf / "dns.yaml").unlink()
        assert gate.record(outcome="cut")["rule"] == "UDPRoute shop/dns rules[0]"
        sock.send(b"hello")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
