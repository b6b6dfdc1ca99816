"""``tproxy gateway run --kubernetes``: a real gateway follows an API server, serves, and writes statuses back."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.echo_backend import EchoBackend
from tests.gateway import ENV, TPROXY, Gateway, Raw, free_port, listens
from tests.gateway_cluster import BUNDLE, GatewayCluster, path_of
from tests.test_gateway_policies import policy
from tests.web import curl, url
from tproxy.gateway import cluster as cluster_module
from tproxy.gateway.cluster import Cluster
from tproxy.gateway.gatewayapi.conditions import CONTROLLER, Conditions
from tproxy.gateway.gatewayapi.status_merge import merged
from tproxy.kube.where import Kubernetes, parse_api_server
from tproxy.world.process import Process, wait_for

API = "gateway.networking.k8s.io/v1"
CLASS = {
    "apiVersion": API,
    "kind": "GatewayClass",
    "metadata": {"name": "tproxy"},
    "spec": {"controllerName": CONTROLLER},
}
SELF = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "gateway", "namespace": "edge"},
    "spec": {"ports": [{"port": 443}], "clusterIP": "10.0.0.7"},
    "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}},
}


def gateway(port: int, name: str = "gw", klass: str = "tproxy", **listener: Any) -> dict[str, Any]:
    one = {"name": "tcp", "protocol": "TCP", "port": port, **listener}
    spec = {"gatewayClassName": klass, "listeners": [one]}
    return {"apiVersion": API, "kind": "Gateway", "metadata": {"name": name, "namespace": "shop"}, "spec": spec}


def route(name: str = "echo", to: str = "echo", **about: Any) -> dict[str, Any]:
    spec = {"parentRefs": [{"name": "gw"}], "rules": [{"backendRefs": [{"name": to, "port": 7}]}]}
    meta = {"name": name, "namespace": "shop", **about}
    return {"apiVersion": API, "kind": "TCPRoute", "metadata": meta, "spec": spec}


def service(port: int, name: str = "echo") -> list[dict[str, Any]]:
    meta = {"name": name, "namespace": "shop"}
    labels = {"labels": {"kubernetes.io/service-name": name}}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"name": "e", "port": 7}]}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**meta, **labels},
            "addressType": "IPv4",
            "ports": [{"name": "e", "port": port}],
            "endpoints": [{"addresses": ["127.0.0.1"]}],
        },
    ]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[GatewayCluster]:
    made = GatewayCluster(tmp_path, "grpcroutes.gateway.networking.k8s.io", "telemetries.telemetry.istio.io")
    made.apply(CLASS)
    made.apply(SELF)
    yield made
    made.stop()


@contextmanager
def following(cluster: GatewayCluster, folder: Path, *options: str, label: str = "one") -> Iterator[Gateway]:
    """A gateway, ended afterwards."""
    where = cluster.config
    argv = [TPROXY, "gateway", "run", "--kubernetes", "--log-format", "json", "--drain", "1", "--metrics-port", "0"]
    argv += ["--api-server", where["apiServer"], "--token-file", where["tokenFile"], "--ca-file", where["caFile"]]
    argv += [
        "--publish-service",
        "edge/gateway",
        "--ready-port",
        "0",
        "--admin-port",
        "0",
        "--stats-port",
        "0",
        *options,
    ]
    log = folder / f"{label}.log"
    with log.open("wb") as out:
        popen = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, env=ENV)
    made = Gateway(folder, Process(popen, argv, log, "this machine"))
    try:
        made.said("reloaded: ports")
        yield made
        assert made.process.stop() == 0, made.process.tail()
        assert "Traceback" not in log.read_text(), made.process.tail()
    finally:
        made.process.kill()


def soon(condition: Any, what: str, gate: Gateway) -> None:
    wait_for(condition, 15, what, gate.process)


def test_what_is_applied_is_served_and_its_status_written_and_what_is_deleted_is_closed(
    cluster: GatewayCluster, tmp_path: Path
) -> None:
    """003-01, 003-05 and 003-10."""
    port, backend = free_port(), Raw(echo=True)
    with following(cluster, tmp_path) as gate:
        gate.said("grpcroutes.gateway.networking.k8s.io: the cluster does not have this kind")
        for one in (gateway(port), route(), *service(backend.port)):
            cluster.apply(one)
        soon(lambda: cluster.condition("TCPRoute", "shop/echo", "Accepted") == "True:Accepted", "the route", gate)
        soon(lambda: cluster.condition("Gateway", "shop/gw", "Programmed") == "True:Programmed", "the Gateway", gate)
        status = cluster.status("Gateway", "shop/gw")
        assert status["addresses"] == [{"type": "IPAddress", "value": "203.0.113.7"}]
        assert cluster.condition("GatewayClass", "tproxy", "Accepted") == "True:Accepted"
        names = [each["name"] for each in cluster.status("GatewayClass", "tproxy")["supportedFeatures"]]
        assert names == sorted(names) and "HTTPRoute" in names
        soon(lambda: _echoed(port), "traffic", gate)
        second = free_port()
        both = gateway(port)
        both["spec"]["listeners"].append({"name": "more", "protocol": "TCP", "port": second})
        cluster.apply(both)
        soon(lambda: listens(second), "the second listener", gate)
        soon(lambda: len(cluster.status("Gateway", "shop/gw")["listeners"]) == 2, "its status", gate)
        for path, name in _paths(cluster, "services", "gateways", "tcproutes", "endpointslices"):
            cluster.delete(path, name)
        soon(lambda: not listens(port), "the port to be closed", gate)


def _paths(cluster: GatewayCluster, *plurals: str) -> list[tuple[str, str]]:
    return [
        (path, name)
        for plural in plurals
        for path, found in cluster.objects.items()
        if path.endswith(f"/{plural}")
        for name in list(found)
        if name.startswith("shop/")
    ]


def _echoed(port: int) -> bool:
    """Whether a word comes back; who is refused may be too early."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(b"hello")
        return sock.recv(5) == b"hello"
    return False


def test_policies_come_and_go_and_one_that_cannot_be_read_shuts_its_ports(
    cluster: GatewayCluster, tmp_path: Path
) -> None:
    port, backend = free_port(), Raw(echo=True)
    aim = {"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gw"}]}
    jwt = {"rules": [{"from": [{"source": {"requestPrincipals": ["*"]}}]}]}
    for one in (gateway(port), route(), *service(backend.port), policy("no", "shop", **aim)):
        cluster.apply(one)
    with following(cluster, tmp_path) as gate:
        assert not _echoed(port)
        assert gate.record(outcome="refused")["reason"] == "policy"
        cluster.delete("/apis/security.istio.io/v1/authorizationpolicies", "shop/no")
        soon(lambda: _echoed(port), "everybody to be let in", gate)
        cluster.apply(policy("jwt", "shop", **aim, **jwt))
        soon(lambda: not _echoed(port), "nobody to be let in", gate)
        gate.said("requestPrincipals")


def test_one_object_that_cannot_be_read_keeps_no_other_from_being_served(
    cluster: GatewayCluster, tmp_path: Path
) -> None:
    port, backend = free_port(), Raw(echo=True)
    broken = route("broken")
    broken["spec"]["rules"] = []
    with following(cluster, tmp_path) as gate:
        for one in (gateway(port), route(), broken, gateway(1, "bad", hostname="-"), *service(backend.port)):
            cluster.apply(one)
        soon(
            lambda: cluster.condition("TCPRoute", "shop/broken", "Accepted") == "False:UnsupportedValue",
            "the refusal",
            gate,
        )
        soon(lambda: cluster.condition("Gateway", "shop/bad", "Accepted") == "False:Invalid", "the other's", gate)
        soon(lambda: _echoed(port), "the good one", gate)


def test_a_port_that_somebody_else_has_is_unavailable_and_the_others_are_served(
    cluster: GatewayCluster, tmp_path: Path
) -> None:
    taken, port, backend = Raw(), free_port(), Raw(echo=True)
    both = gateway(port)
    both["spec"]["listeners"].append({"name": "taken", "protocol": "TCP", "port": taken.port})
    for one in (both, route(), *service(backend.port)):
        cluster.apply(one)
    with following(cluster, tmp_path, "--listen", "127.0.0.1") as gate:
        soon(lambda: len(cluster.status("Gateway", "shop/gw").get("listeners", ())) == 2, "a status", gate)
        one = cluster.status("Gateway", "shop/gw")["listeners"][1]
        assert {each["type"]: each["reason"] for each in one["conditions"]}["Accepted"] == "PortUnavailable"
        soon(lambda: _echoed(port), "the other port", gate)


def test_other_controllers_classes_are_let_alone(cluster: GatewayCluster, tmp_path: Path) -> None:
    other = {**CLASS, "metadata": {"name": "other"}, "spec": {"controllerName": "example.com/other"}}
    for one in (other, gateway(free_port(), klass="other"), route()):
        cluster.apply(one)
    with following(cluster, tmp_path) as gate:
        soon(lambda: cluster.condition("GatewayClass", "tproxy", "Accepted"), "our class", gate)
        assert not cluster.status("Gateway", "shop/gw")
        assert not cluster.status("TCPRoute", "shop/echo")
        assert not cluster.status("GatewayClass", "other")


def test_what_others_said_in_a_route_s_status_stays_and_what_we_said_goes_with_its_parent(
    cluster: GatewayCluster, tmp_path: Path
) -> None:
    theirs = {"parentRef": {"name": "x"}, "controllerName": "example.com/other", "conditions": []}
    made = route()
    made["status"] = {"parents": [theirs]}
    cluster.apply(gateway(free_port()))
    cluster.apply(made)
    with following(cluster, tmp_path) as gate:
        soon(lambda: len(cluster.status("TCPRoute", "shop/echo")["parents"]) == 2, "ours beside theirs", gate)
        assert cluster.status("TCPRoute", "shop/echo")["parents"][0] == theirs
        other = route()
        other["spec"]["parentRefs"] = [{"name": "elsewhere"}]
        cluster.apply(other)
        soon(lambda: cluster.status("TCPRoute", "shop/echo")["parents"] == [theirs], "ours to go", gate)


def test_what_happened_while_the_watch_was_cut_or_too_old_is_caught_up_with(
    cluster: GatewayCluster, tmp_path: Path
) -> None:
    port, backend = free_port(), Raw(echo=True)
    with following(cluster, tmp_path) as gate:
        cluster.apply(gateway(port))
        cluster.down = True
        cluster.cut()
        for one in (route(), *service(backend.port)):
            cluster.apply(one)
        cluster.forget()
        cluster.down = False
        soon(lambda: cluster.condition("TCPRoute", "shop/echo", "ResolvedRefs") == "True:ResolvedRefs", "it", gate)
        soon(lambda: _echoed(port), "traffic", gate)


def test_a_status_that_is_refused_keeps_no_other_from_being_written(cluster: GatewayCluster, tmp_path: Path) -> None:
    cluster.unwritable.add("shop/gw")
    with following(cluster, tmp_path) as gate:
        for one in (gateway(free_port()), gateway(free_port(), "other"), route()):
            cluster.apply(one)
        soon(lambda: cluster.condition("Gateway", "shop/other", "Programmed") == "True:Programmed", "the other", gate)
        soon(lambda: cluster.condition("TCPRoute", "shop/echo", "Accepted") == "True:Accepted", "the route", gate)
        gate.said("statuses are not written")
        gate.said("status 422 (status.conditions: Too many)")


def test_what_others_overwrite_is_said_again(cluster: GatewayCluster, tmp_path: Path) -> None:
    async def repaired() -> list[int]:
        where = cluster.config
        host, port = parse_api_server(where["apiServer"])
        following = Cluster(Kubernetes(host, port, where["tokenFile"], where["caFile"]))
        running = asyncio.create_task(following.run())
        await following.change()
        conditions = Conditions(1)
        conditions.set("Accepted", True, "Accepted")
        said = {"GatewayClass tproxy": {"conditions": conditions.plain()}}
        written = [await following.publish(said)]
        cluster.put(path_of(CLASS), {**deepcopy(CLASS), "status": {"conditions": []}})
        await asyncio.sleep(0.3)  # for the event
        written.append(await following.publish(said))  # not at once: replicas would fight
        monkey.setattr(cluster_module, "REPAIR", 0.0)
        written.append(await following.publish(said))
        running.cancel()
        return written

    with pytest.MonkeyPatch.context() as monkey:
        assert asyncio.run(repaired()) == [1, 0, 1]
    assert cluster.condition("GatewayClass", "tproxy", "Accepted") == "True:Accepted"


def test_an_annotation_of_a_config_map_is_no_change(cluster: GatewayCluster, tmp_path: Path) -> None:
    """Some programs elect their leader so, every two seconds."""

    def lock(text: str) -> dict[str, Any]:
        about = {"name": "leader", "namespace": "shop", "annotations": {"leader": text}}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": {"x": text}}

    async def changes() -> bool:
        where = cluster.config
        host, port = parse_api_server(where["apiServer"])
        following = Cluster(Kubernetes(host, port, where["tokenFile"], where["caFile"]))
        running = asyncio.create_task(following.run())
        cluster.apply(lock("one"))
        await following.change()
        cluster.apply(lock("two"))
        try:
            async with asyncio.timeout(1):
                await following.change()
            return True
        except TimeoutError:
            return False
        finally:
            running.cancel()

    assert asyncio.run(changes()) is False


def test_two_replicas_agree_and_stop_writing(cluster: GatewayCluster, tmp_path: Path) -> None:
    backend = Raw(echo=True)
    ports = [free_port() for _ in range(6)]
    with (
        following(cluster, tmp_path, "--listen", "127.0.0.1") as gate,
        following(cluster, tmp_path, "--listen", "127.0.0.2", label="two") as other,
    ):
        for one in service(backend.port):
            cluster.apply(one)
        for index, port in enumerate(ports):
            cluster.apply(gateway(port, f"gw-{index}"))
            made = route(f"r-{index}")
            made["spec"]["parentRefs"] = [{"name": f"gw-{index}"}]
            cluster.apply(made)
        for index in range(len(ports)):
            name = f"shop/r-{index}"
            soon(lambda name=name: cluster.condition("TCPRoute", name, "Accepted") == "True:Accepted", name, gate)
            name = f"shop/gw-{index}"
            soon(lambda name=name: cluster.condition("Gateway", name, "Programmed") == "True:Programmed", name, other)
        before = _settled(cluster)
        cluster.apply(gateway(ports[0], "gw-0", hostname="a.example.com"))  # a new generation
        soon(
            lambda: cluster.status("Gateway", "shop/gw-0")["conditions"][0]["observedGeneration"] == 2,
            "the new generation",
            gate,
        )
        after = _settled(cluster)
        assert len(after) - len(before) <= 4  # each has a say, none has two
        assert {said for said, _ in after[len(before) :]} <= {"gateways shop/gw-0", "tcproutes shop/r-0"}


def test_several_workers_serve_what_the_cluster_says_and_one_of_them_writes_statuses(
    cluster: GatewayCluster, tmp_path: Path
) -> None:
    port, backend, taken = free_port(), Raw(echo=True), Raw()
    with following(cluster, tmp_path, "--workers", "2", "--listen", "127.0.0.1") as gate:
        both = gateway(port)
        both["spec"]["listeners"].append({"name": "taken", "protocol": "TCP", "port": taken.port})
        for one in (both, route(), *service(backend.port)):
            cluster.apply(one)
        soon(lambda: cluster.condition("TCPRoute", "shop/echo", "Accepted") == "True:Accepted", "the route", gate)
        gate.said(f"reloaded: ports {port}", 2)
        for _ in range(40):
            assert _echoed(port)
        assert {line.count(str(taken.port)) for line in gate.process.log.read_text().split("\n") if "already?" in line}
        wrote = _settled(cluster)
        assert cluster.conflicts == 0
        one = cluster.status("Gateway", "shop/gw")["listeners"][1]
        assert {each["type"]: each["reason"] for each in one["conditions"]}["Accepted"] == "PortUnavailable"
        cluster.delete(path_of(route()), "shop/echo")
        soon(lambda: cluster.status("Gateway", "shop/gw")["listeners"][0]["attachedRoutes"] == 0, "its end", gate)
        assert {said for said, _ in _settled(cluster)[len(wrote) :]} == {"gateways shop/gw"}
        assert len(cluster.wrote) == len(wrote) + 1


def test_a_class_says_whether_the_clusters_definitions_are_of_a_version_that_is_known(
    cluster: GatewayCluster, tmp_path: Path
) -> None:
    with following(cluster, tmp_path) as gate:
        told = lambda: cluster.condition("GatewayClass", "tproxy", "SupportedVersion")  # noqa: E731
        soon(lambda: told() == "True:SupportedVersion", "that they are known", gate)
        cluster.notes["gateways.gateway.networking.k8s.io"] = {BUNDLE: "v1.7.0"}
        del cluster.notes["httproutes.gateway.networking.k8s.io"]  # perhaps seen one after the other
        what = "not of the Gateway API v1.0 to v1.6: gateways: v1.7.0; httproutes: no version"
        said = lambda: [each["message"] for each in cluster.status("GatewayClass", "tproxy")["conditions"]]  # noqa: E731
        soon(lambda: any(each.endswith(what) for each in said()), "that they are not", gate)
        assert told() == "False:UnsupportedVersion"
        assert cluster.condition("GatewayClass", "tproxy", "Accepted") == "True:Accepted"  # served all the same


def test_of_a_route_with_a_rule_that_cannot_be_the_others_are_served_and_it_says_which(
    cluster: GatewayCluster, tmp_path: Path
) -> None:
    """PartiallyInvalid. What the rule matches is not left to a wider one."""
    port = free_port()
    with EchoBackend() as pod:
        backends = [{"name": "echo", "port": 7}]
        odd = {"type": "URLRewrite", "urlRewrite": {"hostname": "-"}}
        spec = {
            "parentRefs": [{"name": "gw"}],
            "rules": [
                {"matches": [{"path": {"value": "/admin"}}], "filters": [odd], "backendRefs": backends},
                {"matches": [{"path": {"type": "Odd", "value": "/x"}}], "backendRefs": backends},
                {"backendRefs": backends},
            ],
        }
        meta = {"name": "web", "namespace": "shop"}
        made = {"apiVersion": API, "kind": "HTTPRoute", "metadata": meta, "spec": spec}
        with following(cluster, tmp_path) as gate:
            for one in (gateway(port, protocol="HTTP"), made, *service(pod.port)):
                cluster.apply(one)
            soon(
                lambda: cluster.condition("HTTPRoute", "shop/web", "PartiallyInvalid") == "True:UnsupportedValue",
                "the condition",
                gate,
            )
            assert cluster.condition("HTTPRoute", "shop/web", "Accepted") == "True:Accepted"
            [said] = [
                each
                for each in cluster.status("HTTPRoute", "shop/web")["parents"][0]["conditions"]
                if each["type"] == "PartiallyInvalid"
            ]
            assert said["message"].startswith("Dropped Rule")
            assert "spec.rules[0].filters[0].urlRewrite.hostname" in said["message"]
            assert "spec.rules[1].matches[0].path.type" in said["message"]
            soon(lambda: listens(port), "the port", gate)
            codes = [curl(url(port, path)).status for path in ("/admin/x", "/x", "/")]
            assert codes == [500, 200, 200]
            spec["rules"] = spec["rules"][2:]  # type: ignore[assignment, index]
            cluster.apply(made)
            soon(lambda: not cluster.condition("HTTPRoute", "shop/web", "PartiallyInvalid"), "its end", gate)


def _settled(cluster: GatewayCluster) -> list[tuple[str, dict[str, Any]]]:
    """Writes until there are none for a second: nobody may fight."""
    count, since = len(cluster.wrote), time.monotonic()
    while time.monotonic() - since < 1.0:
        time.sleep(0.05)
        if len(cluster.wrote) != count:
            count, since = len(cluster.wrote), time.monotonic()
        assert count < 500
    return list(cluster.wrote)


# what of a status is written, as a pure function

KINDS = st.sampled_from(["Accepted", "Programmed", "ResolvedRefs"])
SAID = st.lists(st.tuples(KINDS, st.booleans()), max_size=4)


def _ours(said: list[tuple[str, bool]]) -> dict[str, Any]:
    conditions = Conditions(1)
    for kind, good in said:
        conditions.set(kind, good, "Because")
    return {"conditions": conditions.plain()}


@given(SAID, SAID)
def test_writing_twice_writes_once_and_a_time_changes_with_its_status_only(
    first: list[tuple[str, bool]], second: list[tuple[str, bool]]
) -> None:
    foreign = {"type": "example.com/Mine", "status": "True", "reason": "x", "lastTransitionTime": "long ago"}
    there = merged(_ours(first), {"conditions": [foreign]}, "then") or {"conditions": [foreign]}
    assert merged(_ours(first), there, "later") is None
    made = merged(_ours(second), there, "later") or there
    assert foreign in made["conditions"]
    before, now = (dict(said) for said in (first, second))
    for condition in made["conditions"]:
        if (kind := condition["type"]) in now:
            same = before.get(kind) is now[kind]
            assert condition["lastTransitionTime"] == ("then" if same else "later")
