"""The sidecars that the benchmark compares with do what ours do: captured, encrypted, both certificates required."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import DOMAIN, PAGE
from tproxy.bench import pairs
from tproxy.world import apps
from tproxy.world.envoy import Envoy
from tproxy.world.haproxy import HAProxy
from tproxy.world.nginx_stream import NginxStream
from tproxy.world.pods import Pod, World
from tproxy.world.sidecars import Authority

RIVALS: dict[str, Callable[[Pod, Authority], object]] = {
    "envoy": lambda pod, ca: Envoy(pod, ca.issue(pod.name), DOMAIN).up(),
    "haproxy": lambda pod, ca: HAProxy(pod, ca.issue(pod.name)).up(),
    "nginx": lambda pod, ca: NginxStream(pod, ca.folder, ca.issue(pod.name)).up(),
}


@pytest.fixture(scope="module")
def ca(world: World) -> Authority:
    return Authority(world, DOMAIN)


def curl(pod: Pod, url: str, *options: str) -> str:
    """The page, or nothing."""
    return pod.run(["curl", "-s", "-m", "5", *options, url]).stdout


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_pair_carries_the_page_over_mtls_and_refuses_the_rest(world: World, ca: Authority, name: str) -> None:
    if why := pairs.missing(name):
        pytest.skip(why)
    client, server, outsider = (world.pod(f"{name}-{role}") for role in ("client", "server", "outsider"))
    apps.nginx(server, {"index.html": PAGE})
    for pod in (client, server):
        RIVALS[name](pod, ca)
    wire = world.directory / f"{name}.pcap"
    with world.tcpdump(wire):
        assert curl(client, f"http://{server.v4}/").encode() == PAGE
    assert b"GET / HTTP" not in wire.read_bytes()
    assert curl(outsider, f"http://{server.v4}/") == ""
    assert curl(outsider, f"https://{server.v4}:80/", "-k") == ""
    assert (apps.nginx_folder(server) / "access.log").read_text().count("\n") == 1


def test_an_envoy_without_certificates_is_one_plain_hop(world: World) -> None:
    client, server = world.pod("hop-client"), world.pod("hop-server")
    apps.nginx(server, {"index.html": PAGE})
    envoy = Envoy(client, None, DOMAIN).up()
    assert curl(client, f"http://{server.v4}/").encode() == PAGE
    assert envoy.process is not None
    stats = curl(client, "http://127.0.0.1:15000/stats?filter=tcp.egress.downstream_cx_total")
    assert stats.strip() == "tcp.egress.downstream_cx_total: 1"
