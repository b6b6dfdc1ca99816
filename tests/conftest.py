"""Real namespaces for tests. In CI a world that cannot be made is a failure; elsewhere it is a visible skip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tproxy import native
from tproxy.world import apps
from tproxy.world.pods import Pod, World, sweep
from tproxy.world.sidecars import Authority, Sidecar

DOMAIN = "test.local"
PAGE = b"the page of web\n"
LIMITS = {"peek": 1.0, "handshake": 1.0, "silence": 0.2, "connect": 2.0, "drain": 3.0}
SERVER = {
    "inbound": {
        "ports": {8081: "permissive", 2525: "permissive", 8082: "disable"},
        "rules": [{"name": "only-client", "ports": [80], "ids": ["ns/demo/sa/client"]}],
    },
    "limits": LIMITS,
}


def pytest_report_header() -> str:
    """What these tests run."""
    return f"HTTP: {native.FINDER.why_not or 'compiled'}"


def pytest_sessionstart() -> None:
    """What tests left that were killed: namespaces, processes, control groups, directories."""
    if os.geteuid() == 0:
        sweep()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """An empty world, gone when the module's tests are over."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("the tests of the data path need root, and CI must run them")
        pytest.skip("needs root to make network namespaces")
    with World() as made:
        yield made


@dataclass(frozen=True, slots=True)
class Mesh:
    """Two pods with sidecars and applications, and one pod without."""

    ca: Authority
    web: Pod
    client: Pod
    outsider: Pod
    server: Sidecar
    caller: Sidecar


@pytest.fixture(scope="module")
def mesh(world: World) -> Mesh:
    """web: nginx on 80 (only client may), echo on 7; permissive: banner 2525, echo 8081; disable: echo 8082."""
    ca = Authority(world, DOMAIN)
    web, client, outsider = (world.pod(name) for name in ("web", "client", "outsider"))
    apps.nginx(web, {"index.html": PAGE})
    for port, mode in ((7, "echo"), (8081, "echo"), (8082, "echo"), (2525, "banner"), (9, "sink")):
        apps.peer(web, port, mode)
    server = Sidecar(web, ca.issue("web"), DOMAIN, **SERVER).up()
    caller = Sidecar(client, ca.issue("client"), DOMAIN, limits=LIMITS).up()
    return Mesh(ca, web, client, outsider, server, caller)
