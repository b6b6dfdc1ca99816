"""From plaintext to strict mTLS, step by step as the README says it, under traffic: no connection fails on the way.

A real ``tproxy control`` follows an API of the tests' own, a node translates the Service's address, and every rollout
is what a Deployment makes of it: a new pod, ready, into the endpoints; an old one out of them, then SIGTERM.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from pods.podman import injection
from pods.render import find, render
from tests.cluster import PODS, SERVICES, SLICES, Cluster, Document, endpoints, pod, service
from tests.test_manifests import HERE
from tests.test_rotation import is_alive
from tests.test_sidecar import answer, connect
from tproxy.world import apps
from tproxy.world.control import Control
from tproxy.world.pods import Pod, Process, World, wait_for
from tproxy.world.service import Service
from tproxy.world.sidecars import TPROXY, Sidecar

DOMAIN, VIP, PORT = "test.local", "10.96.0.20", 7
LIMITS = {"peek": 1.0, "handshake": 2.0, "silence": 0.2, "connect": 2.0, "drain": 5.0}
GRACE = 1.5  # seconds between leaving the endpoints and SIGTERM: what a preStop hook waits
ROUND = 20  # exchanges on a connection that is kept
MIXED = "egress: passthrough (directory: service demo/web (mixed: not every endpoint is in the mesh))"


def of_overlay(name: str) -> Document:
    """What sidecars read there, but for the addresses of this world."""
    found = injection(find(render(HERE / name), "ConfigMap", "tproxy-control"))["config"]
    return {key: value for key, value in found.items() if key not in ("trustDomain", "directory")} | {
        "mixed": found["directory"].get("mixed", "mtls")
    }


@dataclass
class Member:
    """A pod of a workload."""

    place: Pod
    account: str
    sidecar: Sidecar | None
    app: Process | None


class Traffic:
    """Calls from a pod until it is stopped: each connection is new, every second one is kept for a while."""

    def __init__(self, place: Pod) -> None:
        self.place, self.done, self.failed = place, 0, list[str]()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(kept,)) for kept in (False, True)]
        for thread in self._threads:
            thread.start()

    def _run(self, kept: bool) -> None:
        while not self._stop.is_set():
            try:
                self._kept() if kept else self._new()
            except OSError as error:
                self.failed.append(f"{self.place.name} at {time.time():.2f}: {error!r}")
            self.done += 1

    def _new(self) -> None:
        if answer(self.place, VIP, PORT, b"new") != b"new":
            raise OSError("no answer on a new connection")
        self._stop.wait(0.02)

    def _kept(self) -> None:
        with connect(self.place, VIP, PORT) as sock:
            for _ in range(ROUND):
                if not is_alive(sock):
                    raise OSError("no answer on a connection that was kept")
                self._stop.wait(0.03)

    def stop(self) -> None:
        """Finish what runs."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Shop:
    """Control, a Service, and who lives there now."""

    def __init__(self, world: World) -> None:
        self.world = world
        place = world.pod("control")
        with place.inside():  # the API server listens there
            self.cluster = Cluster(world.directory)
        self.control = Control(place, DOMAIN, kubernetes=self.cluster.config, directory={})
        self.control.start()
        self.service = Service(world, VIP, PORT)
        self.web, self.callers, self.leaving = list[Member](), list[Pod](), list[str]()
        self.cluster.put(SERVICES, service("web", VIP))

    def member(self, name: str, account: str, config: Document | None, app: bool = False) -> Member:
        """A new pod; without a ``config`` it has no sidecar. It is ready."""
        place = self.world.pod(name)
        listens = apps.peer(place, PORT, "echo") if app else None
        if app:
            for caller in self.callers:
                self.service.returns(place, caller)
        else:
            self.callers.append(place)
            for one in self.web:
                self.service.returns(one.place, place)
        self.cluster.put(PODS, pod(name, account, place.v4, meshed=config is not None))
        return Member(place, account, self._sidecar(place, account, config) if config else None, listens)

    def _sidecar(self, place: Pod, account: str, config: Document) -> Sidecar:
        config = dict(config)
        told = {**self.control.directory, "mixed": config.pop("mixed")}
        made = Sidecar(place, self.control.identity(account), DOMAIN)
        made.base = {**made.base, "directory": told, "limits": LIMITS}
        made.write(**config)
        return made.up()

    def join(self, name: str, config: Document | None) -> Member:
        """A replica of web comes, is ready, and gets connections."""
        made = self.member(name, "web", config, app=True)
        self.web.append(made)
        self._balance()
        return made

    def leave(self, one: Member) -> None:
        """A replica goes, as the kubelet ends a pod: out of the endpoints, preStop, application, sidecar."""
        self.web.remove(one)
        self.leaving.append(one.place.v4)
        self._balance()
        time.sleep(GRACE)
        assert one.app is not None
        one.app.stop()
        if one.sidecar is not None:
            assert one.sidecar.stop() == 0
            assert "stopped: 0 connections were cut" in one.sidecar.log.read_text()
        self.leaving.remove(one.place.v4)
        self._balance()
        self.cluster.delete(PODS, f"demo/{one.place.name}")

    def _balance(self) -> None:
        told = endpoints("web", *(one.place.v4 for one in self.web))
        told["endpoints"] += [
            {"addresses": [one], "conditions": {"ready": False, "serving": True, "terminating": True}}
            for one in self.leaving
        ]
        self.cluster.put(SLICES, told)
        self.service.endpoints(*(one.place for one in self.web))


@pytest.fixture(scope="module")
def shop(world: World) -> Iterator[Shop]:
    made = Shop(world)
    yield made
    made.cluster.stop()


def plaintext(one: Member, *options: str) -> tuple[int, str]:
    """What the command says in the pod."""
    done = one.place.run([*TPROXY, "plaintext", *options])
    return done.returncode, done.stdout


def rules(one: Member) -> list[str]:
    """Of the caller's records, in their order, without repetitions."""
    assert one.sidecar is not None
    found = [record["rule"] for record in one.sidecar.records() if record["direction"] == "egress"]
    return [rule for index, rule in enumerate(found) if not index or found[index - 1] != rule]


def knows(one: Member, mixed: bool, count: int) -> None:
    """Wait until the caller's directory says this of the service."""
    assert one.sidecar is not None
    sidecar = one.sidecar

    def look() -> bool:
        entry = json.loads(sidecar.page(15000, "/directory"))["entries"].get(VIP)
        return entry is not None and (entry["mixed"], len(entry["ids"])) == (mixed, count)

    wait_for(look, 20, f"the service is known as mixed: {mixed}")


def lasting_to(server: Member, caller: Member) -> socket.socket:
    """A connection over the Service's address that has reached this replica."""
    assert server.sidecar is not None
    for _ in range(50):
        sock = connect(caller.place, VIP, PORT)
        assert is_alive(sock)
        rows = json.loads(server.sidecar.page(15000, "/plaintext"))["rows"]
        if any(row["open"] and row["peer"] == caller.place.v4 for row in rows):
            return sock
        sock.close()
    raise AssertionError(f"no connection reaches {server.place.name}")


@pytest.mark.timeout(240)
def test_a_namespace_goes_from_plaintext_to_strict_under_traffic_and_no_connection_fails(shop: Shop) -> None:
    moving, strict = of_overlay("overlays/permissive-migration"), of_overlay("base")
    with ExitStack() as running:
        # 0: nobody has a sidecar
        old = [shop.join(name, None) for name in ("web-1", "web-2")]
        client, legacy = (shop.member(name, name, None) for name in ("client", "legacy"))
        everyone = list[Traffic]()

        def calls(one: Member) -> Traffic:
            everyone.append(made := Traffic(one.place))
            running.callback(made.stop)
            return made

        calling = {one.account: calls(one) for one in (client, legacy)}

        # 1: the overlay permissive-migration, the label, rollouts in any order: here one of web's, the caller's, web's
        first = shop.join("web-3", moving)
        shop.leave(old[0])
        calling["client"].stop()
        client = shop.member("client-2", "client", moving)
        knows(client, mixed=True, count=1)
        lasting = running.enter_context(lasting_to(first, client))
        calling["client"] = calls(client)
        second = shop.join("web-4", moving)
        shop.leave(old[1])
        knows(client, mixed=False, count=1)
        wait_for(lambda: "directory: service demo/web" in rules(client), 20, "mTLS begins by itself")
        assert is_alive(lasting)  # plaintext that began before is not cut
        assert rules(client)[:1] == [MIXED]

        # 2: who still talks plaintext to web?
        code, said = plaintext(first)
        assert (code, "demo/legacy" in said, "permissive" in said) == (1, True, True), said
        assert first.sidecar is not None
        metric = 'tproxy_plaintext_connections_total{direction="ingress",peer="demo/legacy"}'
        assert first.sidecar.metrics()[metric] > 0
        code, said = plaintext(client)
        assert (code, "demo/web" in said) == (0, True), said
        lasting.close()

        # 3: it gets its sidecar, and nobody is left
        calling["legacy"].stop()
        legacy = shop.member("legacy-2", "legacy", moving)
        knows(legacy, mixed=False, count=1)
        calls(legacy)
        time.sleep(1.5)
        for one in (first, second):
            assert plaintext(one, "--since", "1") == (
                0,
                "nobody calls this pod in plaintext\nnobody is called in plaintext\n",
            )

        # 4: strict, pod by pod
        for name, before in (("web-5", first), ("web-6", second)):
            last = shop.join(name, {**moving, "inbound": {"mode": "strict"}})  # as the annotation does
            shop.leave(before)
        time.sleep(0.5)
        for traffic in everyone:
            traffic.stop()

    _nobody_failed(everyone, client, legacy)
    stranger = shop.member("stranger", "stranger", None)
    assert answer(stranger.place, last.place.v4, PORT, b"plain") == b""  # strict it is

    # 5: base, where nobody reaches what is outside the mesh
    client = shop.member("client-3", "client", strict)
    knows(client, mixed=False, count=1)
    assert answer(client.place, VIP, PORT, b"strict") == b"strict"
    assert answer(client.place, stranger.place.v4, PORT, b"plain") == b""
    assert plaintext(client)[1].splitlines()[1] == "nobody is called in plaintext"


def _nobody_failed(everyone: list[Traffic], *callers: Member) -> None:
    failed = [line for traffic in everyone for line in traffic.failed]
    print(f"{sum(traffic.done for traffic in everyone)} rounds of connections, {len(failed)} failed")
    assert failed == []
    for one in callers:
        assert one.sidecar is not None
        assert {record["outcome"] for record in one.sidecar.records()} == {"closed"}
