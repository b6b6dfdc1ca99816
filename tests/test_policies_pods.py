"""Policies through the Kubernetes API in real namespaces: a real ``tproxy control`` follows an API of the tests' own
(tests/cluster.py), and sidecars take up what it tells without a restart."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import Cluster
from tests.istio import auth, peer
from tests.telling import status
from tests.test_rotation import is_alive, is_cut
from tests.test_sidecar import answer, connect
from tproxy.core.workloads import name_of
from tproxy.world import apps
from tproxy.world.control import Control
from tproxy.world.pods import Pod, World, wait_for
from tproxy.world.sidecars import TPROXY, Sidecar

DOMAIN = "test.local"
LIMITS = {"peek": 1.0, "handshake": 1.0, "silence": 0.2, "connect": 2.0, "drain": 1.0}
CLIENT = f"{DOMAIN}/ns/demo/sa/client"
DENY_CLIENT = f"action: DENY\nrules: [{{from: [{{source: {{principals: [{CLIENT}]}}}}]}}]"
HTTP = "action: DENY\nrules: [{to: [{operation: {methods: [GET]}}]}]"
SELECT = "selector: {matchLabels: {app: web}}\n"
VERSIONS = ("v1", "v1beta1")


class Cast:
    """Control with its cluster; a server with labels that a kubelet would write; callers of two namespaces."""

    def __init__(self, world: World) -> None:
        self.world = world
        place = world.pod("control")
        with place.inside():  # the API server listens there
            self.cluster = Cluster(world.directory)
        self.control = Control(place, DOMAIN, kubernetes=self.cluster.config, directory={}, policies={})
        self.control.start()
        self.web, self.client, self.data, self.bare = (world.pod(name) for name in ("web", "client", "data", "bare"))
        for one in (self.web, self.data):
            for port in (7, 8):
                apps.peer(one, port, "echo")
        self.labels = world.directory / "labels"
        self.label(app="web")
        self.server = self.sidecar(self.web, "web", workload={"labelsFile": str(self.labels)}).up()
        self.caller = self.sidecar(self.client, "client").up()
        self.other = self.sidecar(self.data, "client", "data").up()

    def sidecar(self, place: Pod, account: str, namespace: str = "demo", **config: object) -> Sidecar:
        """A sidecar that has its policies from control."""
        made = Sidecar(place, self.control.identity(account, namespace), DOMAIN)
        made.base = {
            **made.base,
            "directory": {**self.control.directory, "timeout": 0},
            "policies": {"control": True},
            "limits": LIMITS,
        }
        made.write(**config)
        return made

    def label(self, **labels: str) -> None:
        """As the kubelet writes them."""
        new = self.labels.with_name("labels.new")
        new.write_text("".join(f'{key}="{value}"\n' for key, value in sorted(labels.items())))
        new.chmod(0o644)
        new.rename(self.labels)

    def only(self, *objects: dict[str, Any]) -> None:
        """The cluster has exactly these."""
        wanted = {(one["kind"], name_of(one)) for one in objects}
        there = [path for path in self.cluster.objects if "istio" in path]
        for path in there:
            for name, one in list(self.cluster.objects[path].items()):
                if (one["kind"], name) not in wanted:
                    self.cluster.delete(path, name)
        for one in objects:
            self.cluster.apply(one)

    def apply(self, *objects: dict[str, Any]) -> None:
        """The cluster has exactly these, and those for the server are in force there."""
        self.only(*objects)
        ours = [one for one in objects if one["metadata"]["namespace"] in ("demo", "istio-system")]
        wanted = {(one["kind"], name_of(one)): json.loads(json.dumps(one["spec"])) for one in ours}
        wait_for(lambda: held(self.server) == wanted, 10, "they are in force")

    def says(self, pod: Pod, port: int = 7) -> bool:
        """Whether the echo answers a new connection."""
        return answer(pod, self.web.v4, port, b"hello") == b"hello"

    def refusal(self, pod: Pod, port: int = 7) -> dict[str, Any]:
        """A connection that must be refused; the server's record of it."""
        before = len(self.server.records())
        assert not self.says(pod, port)
        return self.server.wait_record(lambda r: r["outcome"] == "refused", after=before)


def held(sidecar: Sidecar) -> dict[tuple[str, str], Any]:
    """The specs of the set that is in force."""
    found = json.loads(sidecar.page(15000, "/policies")).get("held", {"objects": []})
    return {(one["kind"], name_of(one)): one["spec"] for one in found["objects"]}


@pytest.fixture(scope="module")
def cast(world: World) -> Iterator[Cast]:
    made = Cast(world)
    yield made
    made.cluster.stop()


def test_a_cluster_without_istio_s_definitions_has_no_policies_and_control_looks_again(cast: Cast) -> None:
    assert cast.control.log.read_text().count("does not have this kind") == 2
    assert cast.says(cast.client) and cast.says(cast.data)
    cast.cluster.define("v1beta1")
    cast.cluster.apply(auth("{}", "demo/nobody"), "v1beta1")
    wait_for(lambda: not cast.says(cast.client), 30, "the object is in force")
    cast.cluster.define(*VERSIONS)
    wait_for(lambda: cast.control.log.read_text().count("version v1 is followed") == 2, 30, "the newer one is followed")
    assert cast.says(cast.client)  # there is no object in it
    assert cast.control.log.read_text().count("does not have this kind") == 2


def test_a_deny_cuts_what_runs_and_refuses_what_comes_and_its_end_opens(cast: Cast) -> None:
    with connect(cast.client, cast.web.v4, 7) as cut, connect(cast.data, cast.web.v4, 7) as spared:
        assert is_alive(cut) and is_alive(spared)
        before, began = len(cast.server.records()), time.monotonic()
        cast.cluster.apply(auth(DENY_CLIENT, "demo/no-client"))
        assert is_cut(cut, 5)
        print(f"cut {time.monotonic() - began:.2f} s after the object was applied")
        assert is_alive(spared)
    record = cast.server.wait_record(lambda r: r["outcome"] == "cut", after=before)
    assert (record["reason"], record["rule"]) == ("cut_by_policy", "demo/no-client[0]")
    refused = cast.refusal(cast.client)
    assert (refused["reason"], refused["rule"]) == ("policy", "demo/no-client[0]")
    assert cast.says(cast.data)
    cast.cluster.remove("AuthorizationPolicy", "demo/no-client")
    wait_for(lambda: cast.says(cast.client), 5, "it is let in again")


def test_the_mode_follows_peer_authentication_for_the_mesh_the_workload_and_a_port(cast: Cast) -> None:
    assert cast.refusal(cast.bare)["rule"] == "mode strict"
    cast.apply(peer("mtls: {mode: PERMISSIVE}", "istio-system/default"))
    assert cast.says(cast.bare) and cast.says(cast.client)
    cast.apply(
        peer("mtls: {mode: PERMISSIVE}", "istio-system/default"),
        peer(f"{SELECT}mtls: {{mode: STRICT}}\nportLevelMtls: {{8: {{mode: PERMISSIVE}}}}", "demo/web"),
    )
    assert cast.says(cast.bare, 8)
    assert cast.refusal(cast.bare)["rule"] == "mode strict of PeerAuthentication demo/web"
    cast.apply()
    assert cast.refusal(cast.bare, 8)["rule"] == "mode strict"


def test_labels_that_change_select_other_policies_also_while_control_is_away(cast: Cast) -> None:
    cast.apply(auth(f"selector: {{matchLabels: {{app: db}}}}\n{DENY_CLIENT}", "demo/db-only"))
    assert cast.says(cast.client)
    cast.control.kill()
    try:
        cast.label(app="db")
        wait_for(lambda: not cast.says(cast.client), 10, "it is the database now")
        cast.label(app="web")
        wait_for(lambda: cast.says(cast.client), 10, "and no longer")
    finally:
        cast.control.start()


def test_a_sidecar_hears_of_its_own_namespace_and_the_root_only(cast: Cast) -> None:
    mine, everyone = auth(DENY_CLIENT, "demo/mine"), peer("mtls: {mode: STRICT}", "istio-system/default")
    theirs = auth(HTTP, "data/theirs")
    cast.apply(mine, everyone, theirs)
    wait_for(lambda: status(cast.other, "policies")["refused"], 10, "the other namespace has heard of its own")
    assert set(held(cast.server)) == {
        ("AuthorizationPolicy", "demo/mine"),
        ("PeerAuthentication", "istio-system/default"),
    }
    assert "demo/mine" not in cast.other.page(15000, "/config_dump")


def test_a_field_that_a_sidecar_does_not_have_refuses_the_whole_set_loudly_until_it_is_mended(cast: Cast) -> None:
    cast.apply()
    refused = cast.server.metrics().get('tproxy_reloads_total{result="refused"}', 0)
    cast.cluster.apply(auth(HTTP, "demo/http"))
    wait_for(lambda: status(cast.server, "policies")["refused"], 10, "the set is refused")
    why = "control (AuthorizationPolicy demo/http): spec.rules[0].to[0].operation.methods: ['GET']"
    assert why in status(cast.server, "policies")["refused"]
    assert cast.server.metrics()["tproxy_policies_refused"] == 1
    assert cast.server.metrics()['tproxy_reloads_total{result="refused"}'] > refused
    assert any(why in str(line) and line.get("level") == "error" for line in cast.server.lines())
    shown = cast.web.run([*TPROXY, "identity"])
    assert shown.returncode == 1 and why in shown.stdout
    assert "AuthorizationPolicy demo/http): spec.rules[0].to[0].operation.methods" in cast.control.log.read_text()
    cast.cluster.apply(auth(DENY_CLIENT, "demo/no-client"))  # in the same set: not in force, either
    wait_for(lambda: status(cast.server, "policies")["updates"] > 1, 10, "it has been told")
    assert cast.says(cast.client)
    cast.cluster.remove("AuthorizationPolicy", "demo/http")
    wait_for(lambda: not cast.says(cast.client), 10, "the rest is in force")
    assert cast.server.metrics()["tproxy_policies_refused"] == 0
    assert cast.web.run([*TPROXY, "identity"]).returncode == 0


def test_a_sidecar_without_a_first_set_is_not_ready_and_lets_nobody_in(cast: Cast) -> None:
    place = cast.world.pod("early")
    apps.peer(place, 7, "echo")
    cast.only(auth(HTTP, "demo/http"))  # at first one that cannot be used
    early = cast.sidecar(place, "early", mesh=[{"cidr": "10.77.0.0/24"}])
    early.init()
    argv = [*TPROXY, "sidecar", "--config", str(early.path), "--log-format", "json"]
    process = early.process = place.start(argv, log=early.log)
    wait_for(lambda: "spec.rules[0]" in early.page(15021, "/healthz/ready"), 20, "it says what it waits for", process)
    assert not early.ready()
    assert answer(cast.client, place.v4, 7, b"in") == b""
    record = early.wait_record(lambda r: r["direction"] == "ingress")
    assert (record["reason"], record["rule"]) == ("policies_away", "policies.control")
    assert answer(place, cast.data.v4, 7, b"out") == b"out"
    cast.cluster.remove("AuthorizationPolicy", "demo/http")
    wait_for(early.ready, 10, "it is ready", process)
    assert answer(cast.client, place.v4, 7, b"in") == b"in"
    early.kill()


def test_explain_asks_the_running_sidecar_which_object_decides(cast: Cast) -> None:
    cast.apply(auth(DENY_CLIENT, "demo/no-client"), auth("selector: {matchLabels: {app: db}}", "demo/db-only"))
    ask = [*TPROXY, "policy", "explain", "--config", str(cast.server.path), "--port", "7", "--from"]
    denied = cast.web.run([*ask, f"spiffe://{CLIENT}"])
    assert denied.stdout, denied.stderr
    assert (denied.returncode, denied.stdout.splitlines()[0]) == (1, "deny     demo/no-client[0]")
    assert "not for this workload: AuthorizationPolicy demo/db-only selects app=db" in denied.stdout
    assert cast.web.run([*ask, f"spiffe://{DOMAIN}/ns/data/sa/client"]).returncode == 0
    elsewhere = cast.bare.run([*ask, f"spiffe://{CLIENT}"])
    assert elsewhere.returncode == 2 and "no sidecar answers" in elsewhere.stderr


def test_no_connection_fails_while_control_is_killed_and_comes_back_and_what_changed_is_taken_up(cast: Cast) -> None:
    cast.apply()
    stop, failed, done = threading.Event(), list[str](), [0]

    def traffic() -> None:
        with connect(cast.data, cast.web.v4, 7) as lasting:
            while not stop.is_set():
                if answer(cast.data, cast.web.v4, 7, b"on") != b"on" or not is_alive(lasting):
                    failed.append(time.ctime())
                done[0] += 1

    runner = threading.Thread(target=traffic)
    runner.start()
    try:
        for turn in range(5):
            cast.control.kill()
            cast.cluster.apply(
                auth(f"action: DENY\nrules: [{{to: [{{operation: {{ports: ['{turn + 9}']}}}}]}}]", "demo/turn")
            )
            cast.control.start()
            wait_for(lambda: f'"{turn + 9}"' in cast.server.page(15000, "/policies"), 60, "the change is in force")  # noqa: B023
    finally:
        stop.set()
        runner.join()
    print(f"control was killed 5 times; {done[0]} connections, {len(failed)} failed")
    assert done[0] > 20
    assert failed == []
