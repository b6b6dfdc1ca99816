"""The sidecar in a real pod: what it carries, what it refuses, and what it says about it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import struct
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.certs import twisted, usage
from tests.conftest import DOMAIN, LIMITS, PAGE, SERVER, Mesh
from tproxy.world.pods import Pod, wait_for
from tproxy.world.sidecars import Record, Sidecar

ID = f"spiffe://{DOMAIN}/ns/demo/sa/client"


def connect(pod: Pod, host: str, port: int, seconds: float = 10) -> socket.socket:
    """A connection made by an application in a pod."""
    with pod.inside():
        return socket.create_connection((host, port), timeout=seconds)


def answer(pod: Pod, host: str, port: int, data: bytes) -> bytes:
    """What comes back; nothing if the connection is refused, which may be seen as early as in connect(2)."""
    try:
        return exchange(connect(pod, host, port), data)
    except ConnectionResetError:
        return b""


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Send, half-close, read to the end; what came before a reset counts."""
    got = b""
    try:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while part := sock.recv(65536):
            got += part
    except OSError:
        pass
    finally:
        sock.close()
    return got


def refusal(mesh: Mesh, before: int) -> Record:
    """The next refusal that web records."""
    return mesh.server.wait_record(lambda record: record["outcome"] == "refused", after=before)


@pytest.mark.parametrize("version", [4, 6])
def test_an_application_gets_the_page_and_both_records_agree(mesh: Mesh, version: int) -> None:
    host = mesh.web.v4 if version == 4 else f"[{mesh.web.v6}]"
    marks = len(mesh.server.records()), len(mesh.caller.records())
    assert mesh.client.run(["curl", "-sS", "-m", "5", f"http://{host}/"]).stdout.encode() == PAGE
    ours = mesh.caller.wait_record(lambda record: True, after=marks[1])
    theirs = mesh.server.wait_record(lambda record: True, after=marks[0])
    assert (ours["outcome"], theirs["outcome"]) == ("closed", "closed")
    assert (ours["peer"], ours["self"]) == (theirs["self"], theirs["peer"])
    assert (ours["sent"], ours["received"]) == (theirs["sent"], theirs["received"])
    assert ours["tls"] == theirs["tls"] == "TLSv1.3"
    assert ours["group"] == theirs["group"] != ""
    assert theirs["rule"] == "only-client"


def test_the_application_sees_the_clients_address(mesh: Mesh) -> None:
    mesh.client.run(["curl", "-sS", "-m", "5", f"http://{mesh.web.v4}/"], check=True)
    log = mesh.web.world.directory / "nginx-web" / "access.log"
    assert log.read_text().splitlines()[-1].startswith(f"{mesh.client.v4} ")


def test_half_close_first_by_the_client_loses_nothing(mesh: Mesh) -> None:
    data = os.urandom(3_000_000)
    assert exchange(connect(mesh.client, mesh.web.v4, 7, 30), b"") == b""
    sock = connect(mesh.client, mesh.web.v4, 9, 30)
    assert f'"received": {len(data)}'.encode() in exchange(sock, data)


def test_a_server_that_speaks_first_is_heard_on_a_permissive_port_by_a_plaintext_caller(mesh: Mesh) -> None:
    with connect(mesh.outsider, mesh.web.v4, 2525) as sock:
        assert sock.recv(100).startswith(b"220 ")


def test_a_server_that_speaks_first_is_heard_through_mtls(mesh: Mesh) -> None:
    with connect(mesh.client, mesh.web.v4, 2525) as sock:
        assert sock.recv(100).startswith(b"220 ")


def test_a_permissive_port_takes_plaintext_and_mtls(mesh: Mesh) -> None:
    assert exchange(connect(mesh.outsider, mesh.web.v4, 8081), b"plain") == b"plain"
    assert exchange(connect(mesh.client, mesh.web.v4, 8081), b"mtls") == b"mtls"
    record = mesh.server.wait_record(lambda r: r["destination"].endswith(":8081") and r["tls"] == "plaintext")
    assert record["source"].startswith(mesh.outsider.v4)


def test_a_permissive_port_hands_tls_of_the_application_through(mesh: Mesh) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="own.example.org")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    assert exchange(connect(mesh.outsider, mesh.web.v4, 8081), hello) == hello


def test_a_disabled_port_takes_plaintext(mesh: Mesh) -> None:
    assert exchange(connect(mesh.outsider, mesh.web.v4, 8082), b"plain") == b"plain"


HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(32)
GARBAGE = {
    "plaintext": (b"GET / HTTP/1.0\r\n\r\n", "plaintext"),
    "zeros": (bytes(5000), "plaintext"),
    "a hello cut off": (HELLO, "hello_closed"),
    "a hello with a lying length": (bytes.fromhex("160301002001ffffff0303") + bytes(64), "hello_malformed"),
    "a record of 65535 bytes": (bytes.fromhex("160301ffff010000c40303") + bytes(64), "hello_malformed"),
    "an alert": (bytes.fromhex("15030300020228"), "plaintext"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_on_a_strict_port_is_refused_and_recorded(mesh: Mesh, name: str) -> None:
    data, reason = GARBAGE[name]
    before = len(mesh.server.records())
    assert answer(mesh.outsider, mesh.web.v4, 7, data) == b""
    record = refusal(mesh, before)
    assert record["reason"] == reason, record
    assert record["advice"]
    assert record["sent"] == record["received"] == 0


def test_a_caller_that_says_nothing_is_refused_after_the_deadline(mesh: Mesh) -> None:
    before = len(mesh.server.records())
    with connect(mesh.outsider, mesh.web.v4, 7) as sock, pytest.raises(ConnectionResetError):
        sock.recv(1)
    assert refusal(mesh, before)["reason"] == "hello_timeout"


def test_a_hello_that_drips_is_refused_after_the_deadline(mesh: Mesh) -> None:
    before = len(mesh.server.records())
    with connect(mesh.outsider, mesh.web.v4, 7) as sock:
        sock.sendall(HELLO)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert refusal(mesh, before)["reason"] == "hello_timeout"


def test_a_handshake_that_stalls_is_refused_after_the_deadline(mesh: Mesh) -> None:
    before = len(mesh.server.records())
    with connect(mesh.outsider, mesh.web.v4, 7) as sock:
        sock.sendall(client_hello())
        with pytest.raises(ConnectionResetError):
            while sock.recv(65536):
                pass
    assert refusal(mesh, before)["reason"] == "handshake_timeout"


def tls_call(mesh: Mesh, chain: bytes, key: bytes, data: bytes = b"secret") -> bytes:
    """What the echo server of web answers to a caller with this certificate."""
    folder = mesh.web.world.directory
    (folder / "evil.pem").write_bytes(chain + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(folder / "evil.pem")
    got = b""
    with connect(mesh.outsider, mesh.web.v4, 7) as raw:
        try:
            with context.wrap_socket(raw) as sock:
                sock.sendall(data)
                got = sock.recv(100)
        except (ssl.SSLError, ConnectionError):
            pass
    return got


OTHER = "spiffe://other.local/ns/demo/sa/client"
TWISTS: dict[str, tuple[dict[str, object], str]] = {
    "expired": ({"begin": timedelta(hours=-2), "end": timedelta(hours=-1)}, "peer_expired"),
    "not yet valid": ({"begin": timedelta(hours=1), "end": timedelta(hours=2)}, "peer_not_yet_valid"),
    "for servers only": ({"eku": (ExtendedKeyUsageOID.SERVER_AUTH,)}, "peer_wrong_usage"),
    "without digitalSignature": ({"keys": usage(digital=False, sign=True)}, "peer_wrong_usage"),
    "without a SAN": ({"uris": ()}, "peer_no_id"),
    "with two URI SANs": ({"uris": (ID, ID + "2")}, "peer_many_ids"),
    "of a CA": ({"ca": True}, "peer_is_ca"),
    "that may sign": ({"keys": usage(sign=True)}, "peer_is_ca"),
    "with an id that is none": ({"uris": ("https://example.org/",)}, "peer_bad_id"),
    "of another trust domain": ({"uris": (OTHER,)}, "peer_foreign"),
    "signed by itself": ({"self_signed": True}, "peer_untrusted"),
}


@pytest.mark.parametrize("name", TWISTS)
def test_a_callers_certificate_is_refused(mesh: Mesh, name: str) -> None:
    twists, reason = TWISTS[name]
    before = len(mesh.server.records())
    chain, key = twisted(mesh.ca.folder, **{"uris": (ID,), **twists})  # type: ignore[arg-type]
    assert tls_call(mesh, chain, key) == b""
    record = refusal(mesh, before)
    assert record["reason"] == reason, record


def test_a_good_certificate_from_the_same_factory_is_accepted(mesh: Mesh) -> None:
    assert tls_call(mesh, *twisted(mesh.ca.folder, (ID,))) == b"secret"


def test_an_identity_that_no_rule_allows_is_refused_and_the_rule_is_named(mesh: Mesh) -> None:
    before = len(mesh.server.records())
    chain, key = twisted(mesh.ca.folder, (f"spiffe://{DOMAIN}/ns/demo/sa/intruder",))
    folder = mesh.web.world.directory
    (folder / "intruder.pem").write_bytes(chain + key)
    argv = ["openssl", "s_client", "-connect", f"{mesh.web.v4}:80", "-quiet", "-cert", str(folder / "intruder.pem")]
    done = mesh.outsider.run(
        [*argv, "-key", str(folder / "intruder.pem"), "-cert_chain", str(folder / "intruder.pem")],
        stdin="GET / HTTP/1.0\r\n\r\n",
    )
    assert PAGE.decode() not in done.stdout
    record = refusal(mesh, before)
    assert (record["reason"], record.get("rule")) == ("policy", "only-client"), record


def test_the_caller_learns_that_its_peer_turned_it_away(mesh: Mesh) -> None:
    before = len(mesh.caller.records())
    mesh.server.write(inbound={"rules": [{"name": "nobody", "ids": ["ns/demo/sa/nobody"]}]})
    wait_for(lambda: '"nobody"' in mesh.server.page(15000, "/config_dump"), 5, "the new rule is in force")
    assert answer(mesh.client, mesh.web.v4, 7, b"let me in") == b""
    record = mesh.caller.wait_record(lambda r: r["destination"].endswith(":7"), after=before)
    assert (record["outcome"], record["reason"]) == ("reset", "refused_by_peer")
    assert record["self"].endswith("/sa/client")
    mesh.server.write(**SERVER)
    wait_for(lambda: '"nobody"' not in mesh.server.page(15000, "/config_dump"), 5, "the old rules are in force")


def test_half_open_handshakes_have_a_cap(mesh: Mesh) -> None:
    mesh.server.write(**{**SERVER, "limits": {**LIMITS, "handshakes": 2}})
    wait_for(lambda: '"handshakes": 2' in mesh.server.page(15000, "/config_dump"), 5, "the cap is in force")
    before = len(mesh.server.records())
    held = [connect(mesh.outsider, mesh.web.v4, 7) for _ in range(3)]
    for sock in held:
        sock.sendall(client_hello())
    record = refusal(mesh, before)
    assert record["reason"] == "handshake_limit"
    for sock in held:
        sock.close()
    wait_for(lambda: mesh.server.metrics()["tproxy_connections_open"] == 0, 5, "the others have ended")
    assert exchange(connect(mesh.client, mesh.web.v4, 7), b"now") == b"now"
    mesh.server.write(**SERVER)
    wait_for(lambda: '"handshakes": 2' not in mesh.server.page(15000, "/config_dump"), 5, "the cap is gone")


def client_hello() -> bytes:
    """A good ClientHello, and nothing after it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def test_a_destination_that_speaks_plaintext_is_refused(mesh: Mesh) -> None:
    with mesh.outsider.inside():
        server = socket.create_server(("", 4321))
    before = len(mesh.caller.records())
    sock = connect(mesh.client, mesh.outsider.v4, 4321)
    with server, server.accept()[0] as peer, sock:
        peer.sendall(b"220 I greet in plaintext\r\n")
        with pytest.raises(ConnectionResetError):
            sock.recv(10)
    record = mesh.caller.wait_record(lambda r: r["outcome"] == "refused", after=before)
    assert record["reason"] == "peer_not_tls"


def test_a_destination_with_another_identity_is_refused_before_a_byte_leaves(mesh: Mesh) -> None:
    before = len(mesh.caller.records())
    mesh.caller.write(mesh=[{"cidr": "10.77.0.0/24", "ids": ["ns/demo/sa/other"]}])
    wait_for(lambda: "sa/other" in mesh.caller.page(15000, "/config_dump"), 5, "the new mesh entry is in force")
    answered = len(mesh.server.records())
    assert answer(mesh.client, mesh.web.v4, 7, b"secret") == b""
    record = mesh.caller.wait_record(lambda r: r["outcome"] == "refused", after=before)
    assert record["reason"] == "peer_unexpected"
    assert "sa/web" in record["why"]
    assert mesh.server.wait_record(lambda r: True, after=answered)["sent"] == 0
    mesh.caller.write()
    wait_for(lambda: "sa/other" not in mesh.caller.page(15000, "/config_dump"), 5, "the old mesh entry is in force")


def test_nothing_listening_is_a_failed_connection_with_a_record(mesh: Mesh) -> None:
    before = len(mesh.server.records())
    assert answer(mesh.client, mesh.web.v4, 4444, b"hello") == b""
    record = mesh.server.wait_record(lambda r: r["outcome"] == "failed", after=before)
    assert record["reason"] == "connect_refused"


def test_a_reset_by_the_caller_reaches_the_application_as_a_reset(mesh: Mesh) -> None:
    before = len(mesh.server.records())
    sock = connect(mesh.client, mesh.web.v4, 7)
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    record = mesh.server.wait_record(lambda r: r["destination"].endswith(":7"), after=before)
    assert (record["outcome"], record["ended_by"]) == ("reset", "source")


def test_bytes_before_a_reset_of_the_server_arrive(mesh: Mesh) -> None:
    with mesh.web.inside():
        server = socket.create_server(("", 4545))
    sock = connect(mesh.client, mesh.web.v4, 4545)
    sock.sendall(b"x")
    with server, sock:
        peer, _ = server.accept()
        assert peer.recv(1) == b"x"
        peer.sendall(b"y" * 100_000)
        time.sleep(0)  # the reset follows at once
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_for(lambda: _unsent(peer) == 0, 5, "web's kernel has delivered the answer to the sidecar")
        peer.close()
        got = 0
        with pytest.raises(ConnectionResetError):
            while part := sock.recv(65536):
                got += len(part)
        assert got == 100_000


def _unsent(sock: socket.socket) -> int:
    from tproxy.kernel.sock import unacknowledged

    return unacknowledged(sock)


def socket_memory(sidecar: Sidecar) -> int:
    """Kernel memory of the sidecar's sockets, from ss(8): received, reserved, queued to send."""
    rows = [
        row for row in sidecar.pod.run(["ss", "-tnmpHO"]).stdout.splitlines() if f"pid={sidecar.running().pid}," in row
    ]
    found = [re.search(r"skmem:\(r(\d+),rb\d+,t\d+,tb\d+,f(\d+),w(\d+)", row) for row in rows]
    assert found
    return sum(int(number) for one in found if one for number in one.groups())


def test_a_stalled_reader_with_a_fast_sender_costs_at_most_8_mib(mesh: Mesh) -> None:
    """Also one that first read fast, so that the kernel has grown its buffers."""
    with mesh.web.inside():
        server = socket.create_server(("", 4646))
    idle = mesh.server.pss(), mesh.caller.pss()
    sock = connect(mesh.client, mesh.web.v4, 4646)
    sender = threading.Thread(target=_send_until_stalled, args=(sock,))
    sender.start()
    with server, server.accept()[0] as peer, sock:
        read = 0
        while read < 300 << 20:
            read += len(peer.recv(1 << 20))
        sender.join()  # it ends when nothing has moved for a second
        for sidecar, before in zip((mesh.server, mesh.caller), idle, strict=True):
            user, kernel = sidecar.pss() - before, socket_memory(sidecar)
            assert user + kernel < 8 << 20, (sidecar.pod.name, user, kernel)


def _send_until_stalled(sock: socket.socket) -> None:
    sock.settimeout(1.0)
    with contextlib.suppress(TimeoutError):
        while True:
            sock.sendall(bytes(1 << 20))


def test_files_run_out_and_accepting_recovers(mesh: Mesh) -> None:
    server = mesh.server
    server.stop()
    server.start("prlimit", "--nofile=48:48")
    held = [connect(mesh.outsider, mesh.web.v4, 7) for _ in range(60)]
    wait_for(lambda: any("accepting pauses" in str(line) for line in server.lines()), 5, "accepting pauses")
    for sock in held:
        sock.close()
    assert exchange(connect(mesh.client, mesh.web.v4, 7, 20), b"after") == b"after"
    server.stop()
    server.start()


def test_a_broken_certificate_keeps_the_last_good_one_and_says_so(mesh: Mesh) -> None:
    cert = Path(mesh.server.base["identity"]["cert"]).resolve()
    good = cert.read_bytes()
    cert.write_bytes(b"-----BEGIN CERTIFICATE-----\nbroken\n-----END CERTIFICATE-----\n")
    wait_for(lambda: any("no new credentials" in str(line) for line in mesh.server.lines()), 5, "the refusal is logged")
    assert exchange(connect(mesh.client, mesh.web.v4, 7), b"still") == b"still"
    assert mesh.server.metrics()['tproxy_reloads_total{result="refused"}'] >= 1
    taken = len([line for line in mesh.server.lines() if "reloaded" in str(line)])
    cert.write_bytes(good)
    mesh.server.reload()
    wait_for(lambda: len([x for x in mesh.server.lines() if "reloaded" in str(x)]) > taken, 5, "the good one is back")


def test_a_broken_configuration_keeps_the_last_good_one_and_names_the_field(mesh: Mesh) -> None:
    good = mesh.server.path.read_text()
    mesh.server.path.write_text(good + "\negres: deny\n")
    wait_for(
        lambda: any("egres: unknown field; did you mean 'egress'" in str(line) for line in mesh.server.lines()),
        5,
        "the refusal is logged",
    )
    mesh.server.path.write_text(good)
    assert exchange(connect(mesh.client, mesh.web.v4, 7), b"still") == b"still"


def test_no_file_and_no_task_is_left_behind(mesh: Mesh) -> None:
    def settled() -> bool:
        return mesh.server.metrics()["tproxy_connections_open"] == 0 and mesh.server.files() < 30

    wait_for(settled, 20, "all connections of web's sidecar have ended")


def test_metrics_count_what_the_records_say(mesh: Mesh) -> None:
    began = next(i for i, line in reversed([*enumerate(mesh.server.lines())]) if "ready:" in str(line.get("message")))
    records = [line for line in mesh.server.lines()[began:] if "direction" in line]
    counted = mesh.server.metrics()
    total = sum(value for name, value in counted.items() if name.startswith("tproxy_connections_total"))
    assert total == len(records)
    assert sum(record["sent"] for record in records) == counted['tproxy_bytes_total{direction="ingress",way="sent"}']


def test_the_dump_shows_the_configuration_and_never_a_key(mesh: Mesh) -> None:
    dump = mesh.server.page(15000, "/config_dump")
    assert "only-client" in dump
    assert f"spiffe://{DOMAIN}/ns/demo/sa/web" in dump
    assert "PRIVATE" not in dump


def test_the_admin_port_is_not_reachable_from_outside(mesh: Mesh) -> None:
    for port in (15000, 15001, 15006):
        for host in (mesh.web.v4, mesh.web.v6):
            with pytest.raises(ConnectionRefusedError):
                connect(mesh.outsider, host, port)
    assert mesh.outsider.run(["curl", "-s", "-m", "5", f"http://{mesh.web.v4}:15021/healthz/ready"]).stdout == "ready\n"


def test_the_sidecars_own_ports_are_refused_from_inside_too(mesh: Mesh) -> None:
    before = len(mesh.server.records())
    for host in (mesh.web.v4, "127.0.0.1"):
        for port in (15001, 15006):
            with contextlib.suppress(ConnectionResetError):  # the reset may come before connect returns
                assert answer(mesh.web, host, port, b"loop") == b""
    wait_for(lambda: len(mesh.server.records()) >= before + 4, 5, "four refusals")
    assert {record["reason"] for record in mesh.server.records()[before:]} == {"own_port"}


def test_the_sidecar_runs_as_1337_with_one_capability(mesh: Mesh) -> None:
    status = Path(f"/proc/{mesh.server.running().pid}/status").read_text()
    assert "Uid:\t1337\t1337\t1337\t1337" in status
    assert f"CapEff:\t{1 << 13:016x}" in status
    assert "NoNewPrivs:\t1" in status


def test_an_idle_sidecar_needs_at_most_40_mib(mesh: Mesh) -> None:
    assert mesh.caller.pss() < 40 << 20


def test_sigterm_lets_running_connections_finish_and_refuses_new_ones(mesh: Mesh) -> None:
    finishing, late = connect(mesh.client, mesh.web.v4, 7), connect(mesh.client, mesh.web.v4, 7)
    for sock in (finishing, late):
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
    began = time.monotonic()
    mesh.server.running().send(15)
    wait_for(lambda: not mesh.web.listens(15006, 6), 5, "the listener is closed")
    with pytest.raises(OSError), connect(mesh.outsider, mesh.web.v4, 7):
        pass
    finishing.sendall(b"b")
    assert finishing.recv(1) == b"b"
    assert exchange(finishing, b"") == b""
    with late, pytest.raises(ConnectionResetError):
        late.recv(1)
    assert mesh.server.running().wait(10) == 0
    assert time.monotonic() - began >= 2.5
    assert any(record.get("reason") == "cut_by_drain" for record in mesh.server.records())
    mesh.server.start()
    assert exchange(connect(mesh.client, mesh.web.v4, 7), b"again") == b"again"
