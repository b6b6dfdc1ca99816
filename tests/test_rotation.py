"""Credentials come, rotate and go while connections run: two pods, a CA, and what stays up."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from tests.test_sidecar import answer, connect
from tproxy.control import authority, store
from tproxy.world import apps
from tproxy.world.control import Control
from tproxy.world.pods import Pod, World, wait_for
from tproxy.world.sidecars import TPROXY, Authority, Sidecar

DOMAIN = "test.local"


class Pair:
    """An echo server and a caller, each with a sidecar of its own."""

    def __init__(self, world: World, name: str, server: object, caller: object, **config: object) -> None:
        self.web, self.client = world.pod(f"{name}-web"), world.pod(f"{name}-client")
        apps.peer(self.web, 7, "echo")
        self.server = Sidecar(self.web, server, DOMAIN, **config).up()  # type: ignore[arg-type]
        self.caller = Sidecar(self.client, caller, DOMAIN, **config).up()  # type: ignore[arg-type]

    def open(self) -> socket.socket:
        """A connection that has carried a byte."""
        sock = connect(self.client, self.web.v4, 7)
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        return sock

    def works(self) -> bool:
        """Whether a new connection is carried."""
        return answer(self.client, self.web.v4, 7, b"new") == b"new"


def is_cut(sock: socket.socket, seconds: float) -> bool:
    """Whether the connection is reset within so many seconds."""
    sock.settimeout(seconds)
    try:
        return sock.recv(1) == b"never"
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def is_alive(sock: socket.socket) -> bool:
    """Whether a byte still goes there and back."""
    sock.settimeout(5)
    with suppress(OSError):
        sock.sendall(b"b")
        return sock.recv(1) == b"b"
    return False


@pytest.fixture(scope="module")
def control(world: World) -> Control:
    """A CA in a pod."""
    return Control(world.pod("control"), DOMAIN).start()


@pytest.fixture(scope="module")
def short(world: World, control: Control) -> Pair:
    """Certificates live 4 s; connections are cut 1 s after."""
    ids = (control.identity(who, ttl="4s") for who in ("web", "client"))
    return Pair(world, "short", *ids, limits={"grace": 1})


@pytest.fixture(scope="module")
def ca(world: World) -> Authority:
    """An authority of files."""
    return Authority(world, DOMAIN)


@pytest.fixture
def filed(world: World, ca: Authority) -> Iterator[Pair]:
    """Certificates from files that live long."""
    count = len(list(world.directory.glob("svid-*")))
    pair = Pair(world, f"filed{count}", ca.issue(f"web{count}"), ca.issue(f"client{count}"))
    yield pair
    for sidecar in (pair.server, pair.caller):
        sidecar.kill()


def test_a_connection_is_cut_when_its_certificates_have_expired_and_new_ones_go_on(short: Pair) -> None:
    with short.open() as sock:
        began = time.monotonic()
        assert is_alive(sock)
        assert is_cut(sock, 12)
        assert 1.5 < time.monotonic() - began < 12  # the certificate may be in the middle of its life
    cuts = wait_for(
        lambda: [r for s in (short.server, short.caller) for r in s.records() if r["outcome"] == "cut"], 5, "a cut"
    )
    record = cuts[0]  # of whoever was first; the other one sees a reset
    assert record["reason"] == "cut_by_expiry"
    assert record["sent"] >= 2  # what was carried is known
    assert "grace" in record["advice"]
    assert short.works()


def test_without_its_ca_a_sidecar_serves_until_its_certificate_ends_and_recovers(
    world: World, control: Control, short: Pair
) -> None:
    control.kill()
    try:
        assert short.works()
        wait_for(lambda: any("is not renewed" in str(line) for line in short.server.lines()), 10, "it shouts before")
        wait_for(lambda: not short.works(), 15, "the certificates end")
        code, said = _identity(short.web)
        assert code == 1
        assert "nobody answers (Connection refused)" in said
        assert short.server.metrics()["tproxy_credential_failures"] > 0
    finally:
        control.start()
    wait_for(short.works, 70, "new certificates are there")
    wait_for(lambda: _identity(short.web)[0] == 0, 10, "all is well again")


def _identity(pod: Pod) -> tuple[int, str]:
    done = pod.run([*TPROXY, "identity"])
    return done.returncode, done.stdout + done.stderr


def test_a_sidecar_with_file_certificates_imports_no_grpc(filed: Pair) -> None:
    assert "cygrpc" not in Path(f"/proc/{filed.server.running().pid}/maps").read_text()


def test_a_sidecar_with_certificates_from_a_ca_is_smaller_than_60_mib(short: Pair) -> None:
    assert "cygrpc" in Path(f"/proc/{short.server.running().pid}/maps").read_text()
    assert short.server.pss() < 60 << 20


def test_neither_sidecar_nor_ca_leaves_a_core_dump_with_its_keys(control: Control, short: Pair) -> None:
    assert control.process is not None
    for pid in (control.process.pid, short.server.running().pid):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits)
    status = Path(f"/proc/{short.server.running().pid}/status").read_text()
    assert "Uid:\t1337" in status
    assert Path(f"/proc/{short.server.running().pid}/mem").stat().st_uid == 0  # proc(5): of a process not dumpable


def test_a_running_connection_is_cut_when_the_policy_no_longer_allows_it(filed: Pair) -> None:
    with filed.open() as sock:
        filed.server.write(inbound={"rules": [{"name": "other", "ports": [7], "ids": ["ns/demo/sa/other"]}]})
        assert is_cut(sock, 10)
    record = filed.server.wait_record(lambda r: r["outcome"] == "cut")
    assert (record["reason"], record["rule"]) == ("cut_by_policy", "other")


def test_a_running_connection_is_cut_when_the_caller_s_mesh_expects_another_identity(filed: Pair) -> None:
    with filed.open() as sock:
        filed.caller.write(mesh=[{"cidr": "10.77.0.0/24", "ids": ["ns/demo/sa/other"]}])
        assert is_cut(sock, 10)
    assert filed.caller.wait_record(lambda r: r["outcome"] == "cut")["reason"] == "cut_by_policy"


def test_plaintext_that_was_permitted_is_cut_when_the_port_becomes_strict(world: World, filed: Pair) -> None:
    filed.server.write(inbound={"mode": "permissive"})
    outsider = world.pod(f"{filed.web.name}-out")
    wait_for(lambda: answer(outsider, filed.web.v4, 7, b"plain") == b"plain", 10, "plaintext is permitted")
    with connect(outsider, filed.web.v4, 7) as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        filed.server.write()
        assert is_cut(sock, 10)
    assert filed.server.wait_record(lambda r: r["outcome"] == "cut")["reason"] == "cut_by_policy"


def test_a_reload_that_changes_nothing_for_a_connection_leaves_it_alone(filed: Pair) -> None:
    with filed.open() as sock:
        filed.server.write(inbound={"rules": [{"name": "all", "ports": [7], "namespaces": ["demo"]}]})
        wait_for(lambda: '"all"' in filed.server.page(15000, "/config_dump"), 10, "the new policy is in force")
        assert is_alive(sock)


def test_a_revoked_certificate_cuts_its_connections_and_is_refused(ca: Authority, filed: Pair) -> None:
    serial = int(filed.caller.wait_record(lambda r: True)["self_serial"], 16) if filed.works() else 0
    crl = ca.world.directory / f"crl-{filed.web.name}.pem"
    crl.write_bytes(revoking(ca.folder, 1))
    filed.server.write(trust={"crl": str(crl)})
    wait_for(lambda: str(crl) in filed.server.page(15000, "/config_dump"), 10, "the list is in force")
    with filed.open() as sock:
        crl.write_bytes(revoking(ca.folder, serial))
        assert is_cut(sock, 10)
    assert filed.server.wait_record(lambda r: r["outcome"] == "cut")["reason"] == "cut_by_revocation"
    before = len(filed.server.records())
    assert not filed.works()
    refused = filed.server.wait_record(lambda r: r["outcome"] == "refused", after=before)
    assert refused["reason"] == "peer_revoked"
    assert f"{serial:x}" in refused["why"]


def revoking(folder: Path, serial: int) -> bytes:
    """A CRL of the authority's intermediate with one entry."""
    middle, now = store.signer(folder), authority.utc_now()
    entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
    builder = x509.CertificateRevocationListBuilder().issuer_name(middle.certificate.subject).last_update(now)
    made = builder.next_update(now + timedelta(hours=1)).add_revoked_certificate(entry)
    return made.sign(middle.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_a_dropped_root_cuts_the_connections_that_stood_on_it(world: World, ca: Authority, filed: Pair) -> None:
    """The server gets an identity of another authority of its trust domain, and its bundle holds that root alone."""
    other = world.directory / f"other-{filed.web.name}"
    store.create(other, DOMAIN, "ecdsa")
    out = world.directory / f"svid-other-{filed.web.name}"
    from tproxy.core.identity import SpiffeId

    who = SpiffeId.parse(f"spiffe://{DOMAIN}/ns/demo/sa/web")
    store.issue(other, who, out, timedelta(hours=1), "ecdsa", False, (1337, 1337))
    with filed.open() as sock:
        filed.server.write(identity={name: str(out / f"{name}.pem") for name in ("cert", "key", "ca")})
        assert is_cut(sock, 10)
    assert filed.server.wait_record(lambda r: r["outcome"] == "cut")["reason"] == "cut_by_trust"


def test_credentials_from_another_source_are_taken_without_a_restart(
    world: World, ca: Authority, control: Control
) -> None:
    pair = Pair(world, "moving", control.identity("moving-web"), control.identity("moving-client"))
    with pair.open() as sock:
        for sidecar, name in ((pair.server, "web"), (pair.caller, "client")):
            svid = ca.issue(f"moved-{name}")
            sidecar.write(identity={part: str(svid / f"{part}.pem") for part in ("cert", "key", "ca")})
            wait_for(lambda s=sidecar: "files" in s.page(15000, "/identity"), 10, "the source is another one")  # type: ignore[misc]
        assert is_cut(sock, 10)  # its peer's root is trusted no more
    assert pair.works()


def test_a_federated_trust_domain_is_spoken_to_only_where_it_is_listed(world: World, filed: Pair) -> None:
    partner = Authority(world, "partner.example")
    pod = world.pod(f"{filed.web.name}-partner")
    ours = filed.server.base["identity"]["ca"]
    theirs = partner.issue("friend")
    friend = Sidecar(pod, theirs, "partner.example")
    friend.write(
        mesh=[{"cidr": "10.77.0.0/24", "ids": [f"spiffe://{DOMAIN}/ns/demo/sa/*"]}],
        trust={"federated": [{"trustDomain": DOMAIN, "bundle": ours}]},
    )
    friend.up()
    assert answer(pod, filed.web.v4, 7, b"stranger") == b""
    rules = [{"name": "friends", "ports": [7], "ids": ["spiffe://partner.example/ns/demo/sa/friend"]}]
    filed.server.write(
        inbound={"rules": rules},
        trust={"federated": [{"trustDomain": "partner.example", "bundle": str(theirs / "ca.pem")}]},
    )
    wait_for(lambda: answer(pod, filed.web.v4, 7, b"friend") == b"friend", 10, "the friend is let in")
    record = filed.server.wait_record(lambda r: r.get("rule") == "friends" and r["outcome"] == "closed")
    assert record["peer"] == "spiffe://partner.example/ns/demo/sa/friend"
    friend.kill()
