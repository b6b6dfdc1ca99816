"""Without a sidecar no application byte moves by TCP: not in, not out, not by IPv4, not by IPv6, not with tricks."""

from __future__ import annotations

import itertools
import socket
import sys
from collections.abc import Callable

import pytest

from tests.conftest import Mesh
from tproxy.world.pods import Pod, wait_for

MARKED = """
import os, socket, sys
sock = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
if sys.argv[3] == "mark":
    sock.setsockopt(socket.SOL_SOCKET, 36, 2)
sock.settimeout(3)
try:
    sock.connect((sys.argv[1], int(sys.argv[2])))
    sock.sendall(b"secret"); sock.shutdown(socket.SHUT_WR)
    print("GOT", sock.recv(100))
except OSError as error:
    print("REFUSED", error)
"""


@pytest.fixture(params=["killed", "stopped", "killed and rules installed again"])
def dead(mesh: Mesh, request: pytest.FixtureRequest) -> Mesh:
    """The mesh with web's and client's sidecars gone; they are back after the test."""
    for sidecar in (mesh.server, mesh.caller):
        sidecar.stop() if request.param == "stopped" else sidecar.kill()
        if "rules" in request.param:
            sidecar.init()
    request.addfinalizer(lambda: [sidecar.start() for sidecar in (mesh.server, mesh.caller)])
    return mesh


def moves(pod: Pod, host: str, port: int) -> bool:
    """Whether a byte comes back from an echo server."""
    with pod.inside():
        try:
            with socket.create_connection((host, port), timeout=1) as sock:
                sock.sendall(b"secret")
                return bool(sock.recv(10))
        except OSError:
            return False


@pytest.fixture(scope="module")
def echo(mesh: Mesh) -> Pod:
    """An echo server on every kind of address of the outsider, for traffic that leaves."""
    from tproxy.world import apps

    apps.peer(mesh.outsider, 7, "echo")
    mesh.outsider.add_address("198.51.100.10/24")
    return mesh.outsider


def test_nothing_enters(dead: Mesh, echo: Pod) -> None:
    for caller, host, port in itertools.product(
        (dead.outsider, dead.client), (dead.web.v4, dead.web.v6), (7, 80, 8081, 8082)
    ):
        assert not moves(caller, host, port), (caller.name, host, port)


def test_nothing_leaves(dead: Mesh, echo: Pod) -> None:
    for host in (echo.v4, echo.v6, "198.51.100.10", dead.web.v4):
        assert not moves(dead.client, host, 7), host


def test_the_application_still_reaches_itself(dead: Mesh) -> None:
    for host in ("127.0.0.1", "::1", dead.web.v4, dead.web.v6):
        assert moves(dead.web, host, 7), host


def test_a_link_local_address_is_no_way_out(dead: Mesh, echo: Pod) -> None:
    """Its route ignores marks, so that the packet would leave by the device that the scope names."""
    text = echo.run(["ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", "link"]).stdout
    address = text.split()[3].partition("/")[0]
    assert moves(dead.outsider, f"{address}%eth0", 7)
    assert not moves(dead.client, f"{address}%eth0", 7)


def trick(pod: Pod, host: str, port: int, mark: str, *prefix: str) -> str:
    """What a program with other rights than usual gets."""
    return pod.run([*prefix, sys.executable, "-c", MARKED, host, str(port), mark]).stdout


def test_an_application_with_net_raw_that_marks_its_packets_is_captured_all_the_same(dead: Mesh, echo: Pod) -> None:
    """SO_MARK is allowed with NET_RAW, which container runtimes give to everyone: the mark alone must not suffice."""
    for host in (echo.v4, echo.v6):
        assert "REFUSED" in trick(dead.client, host, 7, "mark")


def test_an_application_with_the_sidecars_uid_and_no_mark_is_captured_all_the_same(dead: Mesh, echo: Pod) -> None:
    script = MARKED.replace("sock = ", "os.setgid(1337); os.setuid(1337)\nsock = ", 1)
    for host in (echo.v4, echo.v6):
        done = dead.client.run([sys.executable, "-c", script, host, "7", "plain"])
        assert "REFUSED" in done.stdout, done


def test_connections_that_ran_end_when_the_sidecar_dies(mesh: Mesh) -> None:
    with mesh.client.inside():
        sock = socket.create_connection((mesh.web.v4, 7), timeout=5)
    with sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        mesh.server.kill()
        with pytest.raises(OSError):
            while True:
                sock.sendall(b"b")
                if not sock.recv(1):
                    raise ConnectionResetError
    mesh.server.start()
    wait_for(lambda: moves(mesh.client, mesh.web.v4, 7), 5, "traffic flows again")


def test_a_crash_of_the_caller_never_reaches_the_application_in_plaintext(mesh: Mesh) -> None:
    """The outer connection is open when the caller's sidecar dies; its kernel must not hand the bytes to web."""
    before = len(mesh.server.records())
    with mesh.client.inside():
        sock = socket.create_connection((mesh.web.v4, 7), timeout=5)
    with sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        mesh.caller.kill()
        record = mesh.server.wait_record(lambda r: r["sent"] == 1, after=before)
        assert record["outcome"] in ("truncated", "reset")
    mesh.caller.start()


def test_rules_are_removed_by_cleanup_and_then_plaintext_flows(mesh: Mesh, echo: Pod) -> None:
    """The opposite of all that is above, to show that the tests above could fail."""
    from tproxy.world.sidecars import TPROXY

    def open_again() -> Callable[[], bool]:
        return lambda: moves(mesh.outsider, mesh.web.v4, 7) and moves(mesh.web, echo.v4, 7)

    mesh.server.kill()
    assert "removed" in mesh.web.run([*TPROXY, "cleanup"]).stdout
    wait_for(open_again(), 5, "plaintext flows")
    mesh.server.up()
    assert not moves(mesh.outsider, mesh.web.v4, 7)
