"""``tproxy control`` as its callers meet it: a real server, real gRPC, join tokens for credentials."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.control import DOMAIN, WEB, Ca, csr, leaf, metric, started, unary, uris
from tests.kubernetes import ApiServer
from tproxy.cli import main
from tproxy.control import authority, rotation, tokens
from tproxy.control.record import Turned, as_json, text
from tproxy.control.refusal import Refused, Why
from tproxy.control.service import peer
from tproxy.wire import CREATE_CERTIFICATE
from tproxy.wire.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from tproxy.world.ports import free_port
from tproxy.world.process import wait_for


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ca]:
    yield from started(tmp_path_factory.mktemp("ca"), maxTtl="2h", limits={"deadline": 1, "concurrency": 40})


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Ca]:
    """For tests that change what the others rely on; started by them."""
    ca = Ca(tmp_path)
    yield ca
    ca.kill()


def fails(call: Any) -> str:
    """The code that a call fails with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return str(caught.value.code().name)


def test_the_chain_is_leaf_intermediate_and_all_roots_and_openssl_verifies_it(ca: Ca, tmp_path: Path) -> None:
    chain = ca.call(ca.token())
    for name, pem in zip(("leaf", "middle", "roots"), chain, strict=True):
        (tmp_path / name).write_text(pem)
    trust = ["-CAfile", tmp_path / "roots", "-untrusted", tmp_path / "middle", tmp_path / "leaf"]
    said = subprocess.run(["openssl", "verify", "-x509_strict", *trust], capture_output=True, text=True, check=False)
    assert said.stdout.endswith("OK\n"), said.stderr


def test_the_id_comes_from_the_token_and_whatever_the_request_says_is_ignored(ca: Ca) -> None:
    assert uris(leaf(ca.call(ca.token(), csr(uri=f"spiffe://{DOMAIN}/ns/kube-system/sa/admin")))) == [str(WEB)]


@pytest.mark.parametrize(("asked", "given"), [(0, 7200), (600, 600), (999_999, 7200), (-5, 7200)])
def test_a_lifetime_is_what_was_asked_for_up_to_max_ttl(ca: Ca, asked: int, given: int) -> None:
    made = leaf(ca.call(ca.token(), seconds=asked))
    assert made.not_valid_after_utc - made.not_valid_before_utc == timedelta(seconds=given) + authority.SKEW


@pytest.mark.parametrize("key", [ec.SECP256R1(), ec.SECP384R1(), 2048, 4096], ids=str)
def test_keys_of_every_good_kind_are_certified(ca: Ca, key: Any) -> None:
    made = rsa.generate_private_key(65537, key) if isinstance(key, int) else ec.generate_private_key(key)
    assert leaf(ca.call(ca.token(), csr(made))).public_key() == made.public_key()


def test_a_line_is_written_for_each_certificate_and_for_each_refusal(ca: Ca) -> None:
    token = ca.token()
    made = leaf(ca.call(token))
    line = next(line for line in ca.lines("issued") if line["serial"] == f"{made.serial_number:x}")
    assert line["id"] == str(WEB) and line["caller"] == "127.0.0.1" and line["how"] == "join token"
    assert line["token"] == token.split(".")[1] and "not_after" in line
    ca.refused("tproxy-join.none.none")
    assert ca.lines("refused")[-1]["reason"] == "join_token" and ca.lines("refused")[-1]["advice"]


def test_no_token_and_no_key_ever_stands_in_the_log_or_in_the_state(ca: Ca) -> None:
    token = ca.token()
    ca.call(token)
    ca.refused(token + "x")
    secret = token.split(".")[2]
    kept = b"".join(path.read_bytes() for path in ca.dir.glob("state.db*"))
    assert secret not in ca.running().log.read_text() and secret.encode() not in kept
    assert b"PRIVATE" not in kept and "PRIVATE" not in ca.running().log.read_text()
    assert {path.stat().st_mode & 0o777 for path in ca.dir.glob("state.db*")} == {0o600}


def test_a_token_may_be_bound_to_an_address_a_number_of_uses_and_a_time(ca: Ca) -> None:
    assert ca.refused(ca.token(address="10.1.2.3"))[0] == "PERMISSION_DENIED"
    assert ca.refused(ca.token(seconds=-1))[0] == "UNAUTHENTICATED"
    twice = ca.token(address="127.0.0.1", uses=2)
    assert [len(ca.call(twice)) for _ in range(2)] == [3, 3]
    code, details = ca.refused(twice)
    assert code == "UNAUTHENTICATED" and "used up" in details


def test_a_token_of_one_use_gives_one_certificate_however_many_ask_at_once(ca: Ca) -> None:
    once, message = ca.token(uses=1), IstioCertificateRequest(csr=csr())
    with ca.channel() as channel:
        metadata = (("authorization", f"Bearer {once}"),)
        calls = [unary(channel).future(message, metadata=metadata, timeout=10) for _ in range(20)]
        codes = [call.code().name for call in calls]
    assert sorted(codes) == ["OK", *["UNAUTHENTICATED"] * 19]


def test_a_revoked_token_opens_nothing(ca: Ca) -> None:
    token, state = ca.token(), ca.state()
    ca.call(token)
    assert tokens.revoke(state, token.split(".")[1]) and not tokens.revoke(state, "none")
    state.close()
    code, details = ca.refused(token)
    assert code == "UNAUTHENTICATED" and "revoked" in details


@pytest.mark.parametrize(("scheme", "times"), [("Bearer", 0), ("Basic", 1), ("Bearer", 2)])
def test_a_call_without_exactly_one_bearer_token_is_unauthenticated(ca: Ca, scheme: str, times: int) -> None:
    metadata = (("authorization", f"{scheme} {ca.token()}"),) * times
    with ca.channel() as channel:
        assert fails(lambda: unary(channel)(IstioCertificateRequest(csr=csr()), metadata=metadata)) == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    "request_", ["", "garbage", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", csr()[:-60], "é" * 9]
)
def test_a_request_that_is_none_is_an_invalid_argument(ca: Ca, request_: str) -> None:
    assert ca.refused(ca.token(), request_ or " ")[0] == "INVALID_ARGUMENT"


def test_a_huge_request_and_an_oversized_message_are_refused_and_the_next_call_is_served(ca: Ca) -> None:
    token = ca.token()
    assert ca.refused(token, csr() + "x" * 20_000)[0] == "INVALID_ARGUMENT"
    assert ca.refused(token, csr() + "x" * 200_000)[0] == "RESOURCE_EXHAUSTED"
    assert len(ca.call(token)) == 3


def test_a_message_that_is_not_protobuf_is_an_invalid_argument(ca: Ca) -> None:
    with ca.channel() as channel:
        assert fails(lambda: channel.unary_unary(CREATE_CERTIFICATE)(b"\xff\xff\xff")) == "INVALID_ARGUMENT"


def test_an_old_agents_request_with_the_subject_id_of_its_proto_is_served(ca: Ca) -> None:
    """Field 2 of the published proto was ``subject_id``; field 1 is the CSR, field 3 the seconds as a varint."""
    pem = csr().encode()
    length = bytes((len(pem) & 0x7F | 0x80, len(pem) >> 7))
    message = b"\x0a" + length + pem + b"\x12\x05admin" + b"\x18\xd8\x04"
    metadata = (("authorization", f"Bearer {ca.token()}"),)
    with ca.channel() as channel:
        answer = channel.unary_unary(CREATE_CERTIFICATE)(message, metadata=metadata)
    made = leaf(list(IstioCertificateResponse.FromString(answer).cert_chain))
    assert uris(made) == [str(WEB)]
    assert made.not_valid_after_utc - made.not_valid_before_utc == timedelta(seconds=600) + authority.SKEW


def test_nobody_may_be_somebody_else(ca: Ca) -> None:
    token = ca.token()
    assert ca.refused(token, ImpersonatedIdentity=f"spiffe://{DOMAIN}/ns/a/sa/b")[0] == "PERMISSION_DENIED"
    assert ca.lines("refused")[-1]["who"] == str(WEB)


def test_a_caller_who_opens_a_call_and_sends_nothing_is_cut_at_the_deadline(ca: Ca) -> None:
    never = threading.Event()

    def silent() -> Iterator[bytes]:
        never.wait(30)
        yield from ()

    try:
        with ca.channel() as channel:
            call = channel.stream_unary(CREATE_CERTIFICATE).future(silent(), timeout=10)
            assert call.code().name == "DEADLINE_EXCEEDED" and "no whole request within 1 s" in call.details()
    finally:
        never.set()


def test_an_endless_stream_of_requests_gets_one_answer(ca: Ca) -> None:
    data, token, stop = IstioCertificateRequest(csr=csr()).SerializeToString(), ca.token(), threading.Event()

    def endless() -> Iterator[bytes]:
        while not stop.wait(0.001):
            yield data

    try:
        with ca.channel() as channel:
            metadata = (("authorization", f"Bearer {token}"),)
            before = len(ca.lines("issued"))
            call = channel.stream_unary(CREATE_CERTIFICATE).future(endless(), metadata=metadata, timeout=10)
            assert call.code().name == "OK" and len(ca.lines("issued")) == before + 1
    finally:
        stop.set()


def test_more_calls_than_the_limit_are_refused_with_a_record(ca: Ca) -> None:
    never = threading.Event()

    def silent() -> Iterator[bytes]:
        never.wait(30)
        yield from ()

    with ca.channel() as channel:
        calls = [channel.stream_unary(CREATE_CERTIFICATE).future(silent(), timeout=10) for _ in range(60)]
        codes = {call.code().name for call in calls}
        never.set()
    assert codes == {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
    assert len(ca.call(ca.token())) == 3


@pytest.mark.parametrize(("version", "works"), [("-tls1_2", False), ("-tls1_3", True)])
def test_tls_is_1_3_and_the_certificate_is_for_the_names_of_the_configuration(
    ca: Ca, version: str, works: bool
) -> None:
    target = ["-connect", f"127.0.0.1:{ca.port}", "-alpn", "h2", version]
    trust = ["-CAfile", ca.dir / "bundle.pem", "-verify_return_error", "-verify_hostname", "istiod.istio-system.svc"]
    said = subprocess.run(
        ["openssl", "s_client", *target, *trust], capture_output=True, check=False, stdin=subprocess.DEVNULL
    ).stdout
    assert (b"Verify return code: 0 (ok)" in said and b"New, TLSv1." in said) == works


def test_a_connection_that_says_nothing_is_cut_before_and_after_its_handshake(ca: Ca) -> None:
    context = ssl.create_default_context(cafile=ca.dir / "bundle.pem")
    context.set_alpn_protocols(["h2"])
    where = ("127.0.0.1", ca.port)
    with (
        socket.create_connection(where) as tcp,
        context.wrap_socket(socket.create_connection(where), server_hostname="localhost") as tls,
    ):
        for sock in (tcp, tls):
            sock.settimeout(20)
            while sock.recv(4096):
                pass


def test_health_and_metrics_tell_what_goes_on(ca: Ca) -> None:
    before = metric(ca.page("/metrics")[1], 'tproxy_ca_issued_total{how="join token"}')
    ca.call(ca.token())
    page = ca.page("/metrics")[1]
    assert metric(page, 'tproxy_ca_issued_total{how="join token"}') == before + 1
    assert metric(page, 'tproxy_ca_expiry_timestamp_seconds{certificate="serving"}') > 1e9
    assert ca.page("/healthz/ready") == (200, "ready\n")


def test_a_rotation_is_noticed_while_a_connection_lives_and_new_handshakes_see_the_new_root(own: Ca) -> None:
    own.start()
    token, state = own.token(), own.state()
    now = int(authority.utc_now().timestamp())
    old = own.call(token)
    added = rotation.add(own.dir, state, DOMAIN, "ecdsa", now)
    assert not isinstance(added, rotation.NotYet)
    both = own.call(token)  # on the same connection, at once
    assert both[2].count("BEGIN") == 2 and both[2].startswith(old[2]) and both[1] == old[1]
    assert rotation.switch(own.dir, state, now) == []
    new = own.call(token)
    assert new[1] != old[1] and new[2] == both[2]
    state.close()
    wait_for(lambda: metric(own.page("/metrics")[1], "tproxy_ca_generation") == 2, 5, "the server saw it")
    (own.dir / "bundle.pem").write_text(added.bundle)  # trusts the new root alone
    own.hang_up()
    wait_for(lambda: _serves(own, token), 5, "its own certificate is of the new root")


def _serves(ca: Ca, token: str) -> bool:
    try:
        return len(ca.call(token)) == 3
    except grpc.RpcError:
        ca.hang_up()
        return False


def test_with_the_root_away_the_intermediate_of_the_folder_signs(own: Ca) -> None:
    (own.dir / "root.key").unlink()
    own.start()
    assert own.call(own.token())[1] == (own.dir / "intermediate.crt").read_text()


def test_an_intermediate_that_is_replaced_signs_at_once_and_the_root_may_go_again(own: Ca, tmp_path: Path) -> None:
    key = (own.dir / "root.key").rename(tmp_path / "offline.key")
    own.start()
    token = own.token()
    before = own.call(token)[1]
    key.rename(own.dir / "root.key")
    assert main(["ca", "intermediate", "--dir", str(own.dir)]) == 0
    (own.dir / "root.key").unlink()
    assert own.call(token)[1] != before  # the file's, or one in memory if it saw the root key just then
    assert main(["ca", "intermediate", "--dir", str(own.dir)]) == 2


def test_while_the_state_cannot_be_written_calls_are_unavailable_and_afterwards_served_again(own: Ca) -> None:
    own.start()
    token, state = own.token(), own.state()
    with state.writing():  # as a disk that hangs; the ledger waits five seconds
        code, details = own.refused(token)
        assert code == "UNAVAILABLE" and str(own.dir) not in details
        assert own.page("/healthz/ready")[0] == 200
    state.close()
    assert len(own.call(token)) == 3


def test_with_the_root_there_the_intermediate_that_signs_is_nowhere_on_disk(ca: Ca) -> None:
    middle = ca.call(ca.token())[1]
    assert middle not in [path.read_text() for path in ca.dir.glob("*.crt")]


def test_its_own_certificate_is_renewed_at_half_of_its_life(own: Ca) -> None:
    own.config["maxTtl"] = "2s"
    own.start()

    def renewals() -> int:
        return sum(line["how"] == "self" for line in own.lines("issued"))

    wait_for(lambda: renewals() >= 3, 10, "it renews itself")
    assert len(own.call(own.token())) == 3


def test_sigterm_ends_it_with_nothing_lost(own: Ca) -> None:
    own.start()
    token = own.token()
    serials = {f"{leaf(own.call(token)).serial_number:x}" for _ in range(5)}
    own.hang_up()
    assert own.running().stop(10, signal.SIGTERM) == 0
    state = own.state()
    assert serials <= {str(row[0]) for row in state.rows("SELECT serial FROM issued")}
    state.close()


@pytest.mark.parametrize(("config", "wanted"), [({}, "listen.port: "), ({"trustDomain": "other"}, "'other': ")])
def test_a_port_that_is_taken_and_a_foreign_trust_domain_are_said_in_one_line(
    ca: Ca, own: Ca, config: dict[str, str], wanted: str
) -> None:
    own.config |= {**config, "listen": {"address": "127.0.0.1", "port": ca.port, "health": own.health}}
    with pytest.raises(TimeoutError, match="has ended"):
        own.start()
    assert own.running().wait() == 2
    last = own.running().tail(1)
    assert last.startswith("tproxy control: ") and wanted in last


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("ipv4:10.0.0.7:5000", "10.0.0.7"),
        ("ipv6:%5Bfd00::7%5D:5000", "fd00::7"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:5000", "10.0.0.7"),
        ("unix:/run/socket", "None"),
        ("", "None"),
    ],
)
def test_the_callers_address_is_read_from_grpcs_name_of_it(name: str, address: str) -> None:
    assert str(peer(name)) == address


def test_a_line_is_one_line_whatever_stands_in_it() -> None:
    line = Turned(0, "10.0.0.1", Refused(Why.BAD_CSR, 'a "b"\nc\x7f é', "x=y"))
    assert "\n" not in text(line) and text(line).isascii() and text(line).isprintable()
    assert json.loads(as_json(line))["why"] == 'a "b"\nc\x7f é'


@pytest.mark.parametrize("which", ["health", "ca", "directory", "webhook"])
def test_a_port_that_is_taken_is_named_and_nothing_is_served(which: str, tmp_path: Path, api: Any) -> None:
    free = {name: free_port() for name in ("directory", "webhook")}
    more = {"directory": {"port": free["directory"]}, "webhook": {"port": free["webhook"]}, "kubernetes": api.config}
    own = Ca(tmp_path, injection={"image": "registry.example/tproxy:1"}, **more)
    ports = {"health": own.health, "ca": own.port, **free}
    with socket.create_server(("127.0.0.1", ports[which])):
        process = own.spawn()
        assert process.popen.wait(20) in (2, 3)
    said = process.log.read_text()
    lines = [line for line in said.splitlines() if line.startswith("tproxy control: ")]  # gRPC has a word of its own
    assert len(lines) == 1 and str(ports[which]) in lines[0] and "is another" in lines[0]
    assert "ready: CA" not in said and "Traceback" not in said


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    made = ApiServer(tmp_path)
    yield made
    made.stop()
