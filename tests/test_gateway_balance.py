"""DestinationRule's simple load balancers, with real backends behind a running gateway."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.echo_backend import EchoBackend
from tests.gateway import entry, free_port, gateway_yaml, running, server, virtual, write
from tests.test_gateway_istio import load, said
from tests.test_gateway_istio_http import ROUTE, WORLD
from tests.test_gateway_istio_http import virtual as rules
from tproxy.core.routes import Balance, HttpListener


def rule(**balancer: Any) -> dict[str, Any]:
    spec = {"host": "web.test", "trafficPolicy": {"loadBalancer": balancer}}
    meta = {"name": "web", "namespace": "shop"}
    return {"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": meta, "spec": spec}


@pytest.mark.parametrize("simple", ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"])
def test_requests_are_shared_among_endpoints(tmp_path: Path, simple: str) -> None:
    port, folder = free_port(), tmp_path / "conf"
    with ExitStack() as stack:
        pods = [stack.enter_context(EchoBackend(f"web-{number}")) for number in range(3)]
        routes = [{"route": [{"destination": {"host": "web.test"}}]}]
        things = gateway_yaml(server(port, "HTTP", "*")), virtual("web", ["a.example"], http=routes)
        write(folder / "a.yaml", *things, entry("web.test", *(pod.port for pod in pods)), rule(simple=simple))
        stack.enter_context(running(folder))
        client = stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)))
        found = Counter(asked(client) for _ in range(60))
    assert set(found) == {"web-0", "web-1", "web-2"}
    if simple == "ROUND_ROBIN":
        assert set(found.values()) == {20}


def asked(client: http.client.HTTPConnection) -> str:
    client.request("GET", "/", headers={"host": "a.example"})
    return str(json.loads(client.getresponse().read())["pod"])


@pytest.mark.parametrize(
    ("balancer", "made", "why"),
    [
        ("{simple: ROUND_ROBIN}", Balance.ROUND_ROBIN, ""),
        ("{simple: LEAST_CONN}", Balance.LEAST_REQUEST, ""),
        ("{consistentHash: {useSourceIp: true}}", Balance.LEAST_REQUEST, ""),
        ("{localityLbSetting: {enabled: true}}", Balance.LEAST_REQUEST, "localityLbSetting: DestinationRule shop/web"),
        ("{simple: PASSTHROUGH}", Balance.LEAST_REQUEST, "a gateway's clients call the gateway"),
        ("{simpel: RANDOM}", None, "unknown field; did you mean 'simple'?"),
    ],
)
def test_simple_balancers_are_read_and_others_are_said(balancer: str, made: Balance | None, why: str) -> None:
    destination = f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web, namespace: shop}}
spec: {{host: web, trafficPolicy: {{loadBalancer: {balancer}}}}}
"""
    loaded = load(WORLD, destination, rules(ROUTE))
    assert (why in said(loaded)) if why else not loaded.findings, said(loaded)
    if made is not None:
        found = loaded.table.listeners["", 80]
        assert isinstance(found, HttpListener)
        (_, entries) = next(found.table.hosts.items())
        assert entries[0].rule.backends[0].balance is made
