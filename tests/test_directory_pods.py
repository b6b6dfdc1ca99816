"""The directory in real namespaces: a real ``tproxy control`` follows an API of the tests' own (tests/cluster.py), and
sidecars let traffic flow by what it says."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from signal import SIGCONT, SIGSTOP

import pytest

from tests.cluster import PODS, SERVICES, SLICES, Cluster, endpoints, pod, service
from tests.telling import status
from tests.test_rotation import is_alive, is_cut
from tests.test_sidecar import answer, connect
from tproxy.control import store
from tproxy.core.identity import SpiffeId
from tproxy.world import apps
from tproxy.world.control import Control
from tproxy.world.pods import Pod, World, wait_for
from tproxy.world.sidecars import TPROXY, Sidecar

DOMAIN = "test.local"
LIMITS = {"peek": 1.0, "handshake": 1.0, "silence": 0.2, "connect": 2.0, "drain": 1.0}
VIP = "10.96.0.10"
RESTARTS = int(os.environ.get("TPROXY_RESTARTS", "10"))
NOWHERE: list[object] = []  # no mesh rules: the directory alone says what is in the mesh


class Cast:
    """Control with its cluster, a server and a caller, each with a sidecar, and a pod without one."""

    def __init__(self, world: World) -> None:
        self.world = world
        place = world.pod("control")
        with place.inside():  # the API server listens there
            self.cluster = Cluster(world.directory)
        self.control = Control(place, DOMAIN, kubernetes=self.cluster.config, directory={})
        self.control.start()
        self.web, self.client, self.bare = (world.pod(name) for name in ("web", "client", "bare"))
        for one in (self.web, self.bare):
            apps.peer(one, 7, "echo")
        self.server = self.sidecar(self.web, "web").up()
        self.caller = self.sidecar(self.client, "client").up()
        self.here()

    def sidecar(self, place: Pod, account: str, **config: object) -> Sidecar:
        """A sidecar that knows no mesh but the directory's."""
        made = Sidecar(place, self.control.identity(account), DOMAIN)
        made.base = {**made.base, "directory": self.control.directory, "mesh": NOWHERE, "limits": LIMITS}
        made.write(**config)
        return made

    def here(self) -> None:
        """The objects as they should be for these pods."""
        self.cluster.put(PODS, pod("web-0", "web", self.web.v4, self.web.v6))
        self.cluster.put(PODS, pod("client-0", "client", self.client.v4))
        self.cluster.put(PODS, pod("bare-0", "bare", self.bare.v4, meshed=False))
        self.knows(self.web.v4, "ns/demo/sa/web")

    def knows(self, address: str, *ids: str, who: Sidecar | None = None) -> None:
        """Wait until a sidecar's directory expects these at the address; no ids: that it knows nothing of it."""

        def look() -> bool:
            entry = entries(who or self.caller).get(address)
            return (entry is None and not ids) or (entry is not None and entry["ids"] == list(ids))

        wait_for(look, 30, f"{address} is known as {ids}")


def entries(sidecar: Sidecar) -> dict[str, dict[str, object]]:
    """What it knows, by address."""
    found: dict[str, dict[str, object]] = json.loads(sidecar.page(15000, "/directory"))["entries"]
    return found


@pytest.fixture(scope="module")
def cast(world: World) -> Iterator[Cast]:
    made = Cast(world)
    yield made
    made.cluster.stop()


def test_traffic_flows_by_what_the_directory_says_and_the_record_names_the_entry(cast: Cast) -> None:
    for address in (cast.web.v4, cast.web.v6):
        before = len(cast.caller.records())
        assert answer(cast.client, address, 7, b"hello") == b"hello"
        record = cast.caller.wait_record(lambda r: r["direction"] == "egress", after=before)
        assert (record["rule"], record["outcome"]) == ("directory: demo/web-0", "closed")
        assert record["peer"] == f"spiffe://{DOMAIN}/ns/demo/sa/web"


def test_a_pod_outside_the_mesh_is_refused_unless_the_policy_passes_plaintext(cast: Cast) -> None:
    before = len(cast.caller.records())
    assert answer(cast.client, cast.bare.v4, 7, b"plain") == b""
    record = cast.caller.wait_record(lambda r: r["direction"] == "egress", after=before)
    assert (record["reason"], record["rule"]) == ("egress_denied", "egress: deny")
    assert "demo/bare-0" in record["why"]
    cast.caller.write(egress="passthrough")
    try:
        wait_for(lambda: '"passthrough"' in cast.caller.page(15000, "/config_dump"), 10, "the policy is in force")
        assert answer(cast.client, cast.bare.v4, 7, b"plain") == b"plain"
        record = cast.caller.wait_record(lambda r: "passthrough" in r.get("rule", ""), after=before)
        assert record["rule"] == "egress: passthrough (directory: demo/bare-0)"
    finally:
        cast.caller.write()
        wait_for(lambda: '"passthrough"' not in cast.caller.page(15000, "/config_dump"), 10, "the old policy")


def test_a_service_address_expects_whoever_stands_behind_it(cast: Cast) -> None:
    """kube-proxy translates on the node, behind our capture: here the address is simply one more of the pod's."""
    cast.web.add_address(f"{VIP}/32")
    cast.cluster.put(SLICES, endpoints("web", cast.web.v4))
    cast.cluster.put(SERVICES, service("web", VIP))
    cast.knows(VIP, "ns/demo/sa/web")
    before = len(cast.caller.records())
    assert answer(cast.client, VIP, 7, b"vip") == b"vip"
    record = cast.caller.wait_record(lambda r: r["direction"] == "egress", after=before)
    assert (record["rule"], record["peer"]) == ("directory: service demo/web", f"spiffe://{DOMAIN}/ns/demo/sa/web")


def test_a_service_with_an_endpoint_outside_the_mesh_is_spoken_to_in_tls_alone(cast: Cast) -> None:
    mixed = "10.96.0.11"
    cast.bare.add_address(f"{mixed}/32")  # kube-proxy has chosen the one without a sidecar
    cast.cluster.put(SLICES, endpoints("mixed", cast.web.v4, cast.bare.v4))
    cast.cluster.put(SERVICES, service("mixed", mixed))
    cast.knows(mixed, "ns/demo/sa/web")
    cast.caller.write(egress="passthrough")
    try:
        wait_for(lambda: '"passthrough"' in cast.caller.page(15000, "/config_dump"), 10, "the policy is in force")
        before = len(cast.caller.records())
        assert answer(cast.client, mixed, 7, b"secret") != b"secret"
        record = cast.caller.wait_record(lambda r: r["direction"] == "egress", after=before)
        assert (record["outcome"], record["sent"]) == ("refused", 0)
        assert record["rule"] == "directory: service demo/mixed (mixed: not every endpoint is in the mesh)"
    finally:
        cast.caller.write()


def test_a_live_connection_is_cut_when_its_address_belongs_to_another_service_account(cast: Cast) -> None:
    with connect(cast.client, cast.web.v4, 7) as sock:
        sock.sendall(b"b")
        assert sock.recv(1) == b"b"
        cast.cluster.put(PODS, pod("neighbour-0", "neighbour", "10.77.9.9"))
        cast.knows("10.77.9.9", "ns/demo/sa/neighbour")
        assert is_alive(sock)
        cast.cluster.put(PODS, pod("web-0", "other", cast.web.v4, cast.web.v6))
        assert is_cut(sock, 10)
    record = cast.caller.wait_record(lambda r: r["outcome"] == "cut")
    assert (record["reason"], record["rule"]) == ("cut_by_policy", "directory: demo/web-0")
    assert "expected" in record["why"]
    cast.here()


def test_a_pod_that_ends_serves_its_last_requests(cast: Cast) -> None:
    with connect(cast.client, cast.web.v4, 7) as sock:
        sock.sendall(b"b")
        assert sock.recv(1) == b"b"
        leaving = pod("web-0", "web", cast.web.v4, cast.web.v6, deletionTimestamp="2026-01-02T00:00:00Z")
        cast.cluster.put(PODS, leaving)
        assert answer(cast.client, cast.web.v4, 7, b"late") == b"late"
        cast.cluster.delete(PODS, "demo/web-0")
        cast.knows(cast.web.v4)
        assert is_alive(sock)
        assert answer(cast.client, cast.web.v4, 7, b"gone") == b""
    cast.here()


def test_an_address_that_is_used_again_is_never_trusted_under_the_old_id(cast: Cast) -> None:
    place = cast.world.pod("worn")
    apps.peer(place, 7, "echo")
    old = _filed(cast, place, "old")
    cast.cluster.put(PODS, pod("old-0", "old", place.v4))
    cast.knows(place.v4, "ns/demo/sa/old")
    assert _refusal(cast, place) == ""
    old.kill()

    process = cast.control.process
    assert process is not None
    process.send(SIGSTOP)  # the directory is late: it still says that the old one is there
    new = _filed(cast, place, "new")
    assert _refusal(cast, place) == "peer_unexpected"
    process.send(SIGCONT)
    cast.cluster.put(PODS, pod("new-0", "new", place.v4, created=60))  # the old one is not deleted yet
    cast.knows(place.v4, "ns/demo/sa/new")
    assert _refusal(cast, place) == ""
    new.kill()

    impostor = _filed(cast, place, "old")  # who stole the old one's key takes the address
    assert _refusal(cast, place) == "peer_unexpected"
    cast.cluster.delete(PODS, "demo/old-0")
    cast.cluster.put(PODS, pod("third-0", "third", "10.77.9.8"))
    cast.knows("10.77.9.8", "ns/demo/sa/third")
    assert _refusal(cast, place) == "peer_unexpected"
    impostor.kill()


def _filed(cast: Cast, place: Pod, account: str) -> Sidecar:
    """A running sidecar whose certificate is in files, of the same authority: control may sleep."""
    out = cast.world.directory / f"filed-{account}-{time.monotonic_ns()}"
    who = SpiffeId.workload(DOMAIN, "demo", account)
    store.issue(cast.control.folder, who, out, timedelta(hours=1), "ecdsa", False, (1337, 1337))
    made = Sidecar(place, out, DOMAIN, limits=LIMITS)
    return made.up()


def _refusal(cast: Cast, place: Pod) -> str:
    """Why the caller refuses to speak to the pod, empty if it speaks."""
    before = len(cast.caller.records())
    spoken = answer(cast.client, place.v4, 7, b"who")
    record = cast.caller.wait_record(lambda r: r["direction"] == "egress", after=before)
    assert (spoken == b"who") == (record["outcome"] == "closed")
    return str(record.get("reason") or "")


def test_a_sidecar_that_starts_while_control_is_away_refuses_what_nobody_vouches_for(cast: Cast) -> None:
    place = cast.world.pod("early")
    cast.control.kill()
    early = _filed(cast, place, "early")
    early.kill()
    early.write(directory={**cast.control.directory, "timeout": 2}, mesh=NOWHERE, egress="passthrough", limits=LIMITS)
    assert early.process is not None
    early.process = place.start(
        [*TPROXY, "sidecar", "--config", str(early.path), "--log-format", "json"], log=early.log
    )
    began = time.monotonic()
    wait_for(
        lambda: "waiting for the directory" in early.page(15021, "/healthz/ready"), 10, "it says what it waits for"
    )
    wait_for(early.ready, 10, "it is ready without", early.process)
    assert time.monotonic() - began > 1
    assert answer(place, cast.web.v4, 7, b"early") == b""
    record = early.wait_record(lambda r: r["direction"] == "egress")
    assert (record["outcome"], record["reason"]) == ("refused", "directory_away")
    cast.control.start()
    cast.knows(cast.web.v4, "ns/demo/sa/web", who=early)
    assert answer(place, cast.web.v4, 7, b"early") == b"early"
    early.kill()


def test_a_new_certificate_opens_a_new_stream_that_goes_on_where_the_old_one_stopped(cast: Cast) -> None:
    place = cast.world.pod("renewing")
    sidecar = Sidecar(place, cast.control.identity("renewing", ttl="6s"), DOMAIN)
    sidecar.base = {**sidecar.base, "directory": cast.control.directory, "mesh": NOWHERE}
    sidecar.write(limits={"grace": 60})
    sidecar.up()
    cast.knows(cast.web.v4, "ns/demo/sa/web", who=sidecar)
    begun = status(sidecar, "directory")
    wait_for(lambda: sidecar.log.read_text().count("connected, version") > 2, 20, "it comes back with new certificates")
    cast.cluster.put(PODS, pod("late-0", "late", "10.77.9.7"))
    cast.knows("10.77.9.7", "ns/demo/sa/late", who=sidecar)
    assert status(sidecar, "directory")["snapshots"] == begun["snapshots"] == 1
    assert sidecar.metrics()["tproxy_directory_entries"] == len(entries(sidecar))
    sidecar.kill()


@pytest.mark.timeout(120 + 10 * RESTARTS)
def test_no_connection_fails_while_control_is_killed_and_comes_back_again_and_again(cast: Cast) -> None:
    stop, failed, done = threading.Event(), list[str](), [0]

    def traffic() -> None:
        with connect(cast.client, cast.web.v4, 7) as lasting:
            while not stop.is_set():
                if answer(cast.client, cast.web.v4, 7, b"on") != b"on" or not is_alive(lasting):
                    failed.append(time.ctime())
                done[0] += 1

    runner = threading.Thread(target=traffic)
    runner.start()
    try:
        for turn in range(RESTARTS):
            cast.control.kill()
            cast.cluster.put(PODS, pod("turning-0", f"turn-{turn}", "10.77.9.6"))
            cast.control.start()
            if turn % 10 == 9:
                cast.knows("10.77.9.6", f"ns/demo/sa/turn-{turn}")
    finally:
        stop.set()
        runner.join()
    print(f"control was killed {RESTARTS} times; {done[0]} connections, {len(failed)} failed")
    assert done[0] > RESTARTS
    assert failed == []
    cast.knows("10.77.9.6", f"ns/demo/sa/turn-{RESTARTS - 1}")
