"""The SPIFFE Workload API from the client's side: each message is the whole truth, or is refused as a whole."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from tests import ca_server
from tests.certs import twisted
from tests.one_loop import run
from tests.workload_server import Stream, serve, svid, wait
from tproxy.control import authority, store
from tproxy.core.certificates.pem import certificates, encoded
from tproxy.core.identity import Snapshot
from tproxy.core.settings import WorkloadApi
from tproxy.identity.keeper import Keeper
from tproxy.identity.source import SourceError
from tproxy.identity.workload_api import PACE, WorkloadApiSource
from tproxy.wire import FETCH_X509_SVID
from tproxy.wire.ca_pb2 import IstioCertificateResponse
from tproxy.wire.workload_pb2 import X509SVID, X509SVIDResponse

DOMAIN = "test.local"
ID = f"spiffe://{DOMAIN}/ns/shop/sa/web"
BANK = f"spiffe://{DOMAIN}/ns/shop/sa/bank"


@dataclass
class Place:
    """An authority, and the socket of an agent."""

    ca: Path
    endpoint: str

    def svid(self, who: str = ID, hint: str = "", **how: Any) -> X509SVID:
        return svid(who, *twisted(self.ca, (who,), **how), self.bundle(), hint)

    def bundle(self) -> bytes:
        return (self.ca / "bundle.pem").read_bytes()

    def source(self, *federated: str, socket: str = "", deadline: float = 5.0, **chosen: str) -> WorkloadApiSource:
        return WorkloadApiSource(WorkloadApi(socket or self.endpoint, **chosen), DOMAIN, federated, deadline)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    store.create(tmp_path / "ca", DOMAIN, "ecdsa")
    return Place(tmp_path / "ca", f"unix://{tmp_path}/agent.sock")


def then_quiet(*messages: X509SVIDResponse | bytes) -> Stream:
    """These messages, and then nothing more."""

    def stream(context: grpc.ServicerContext) -> Any:
        yield from messages
        wait(context)

    return stream


def holding(*svids: X509SVID) -> Stream:
    return then_quiet(X509SVIDResponse(svids=svids))


async def several(source: WorkloadApiSource, count: int) -> list[Snapshot]:
    found: list[Snapshot] = []
    snapshots = source.snapshots()
    async with asyncio.timeout(20):
        async for one in snapshots:
            found.append(one)
            if len(found) == count:
                break
    await snapshots.aclose()  # type: ignore[attr-defined]  # it is a generator
    return found


def got(place: Place, stream: Stream, *federated: str, **chosen: str) -> Snapshot:
    """The snapshot that this stream begins with."""
    with serve(place.endpoint, stream):
        return run(several(place.source(*federated, **chosen), 1))[0]


def refusal(source: WorkloadApiSource) -> str:
    """Why there is no snapshot. The source is named; no key is."""
    with pytest.raises(SourceError) as caught:
        run(several(source, 1))
    text = str(caught.value)
    assert text.startswith(f"{source.name}: ") and "PRIVATE" not in text and len(text) < 4000
    return text.removeprefix(f"{source.name}: ")


def refused(place: Place, stream: Stream, **chosen: str) -> str:
    with serve(place.endpoint, stream):
        return refusal(place.source(**chosen))


# what is offered, and what is taken


def test_an_svid_is_taken_and_proven(place: Place) -> None:
    found = got(place, holding(place.svid()))
    assert str(found.svid.id) == ID and len(certificates(found.svid.chain_pem)) == 2
    assert found.svid.key_pem.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert found.bundles == {DOMAIN: place.bundle()} and not found.crls


def test_an_agent_may_listen_on_tcp(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serve(f"127.0.0.1:{port}", holding(place.svid())):
        (found,) = run(several(place.source(socket=f"tcp://127.0.0.1:{port}"), 1))
    assert str(found.svid.id) == ID


def test_the_unix_path_may_be_written_without_an_authority(place: Place) -> None:
    with serve(place.endpoint, holding(place.svid())):
        (found,) = run(several(place.source(socket=place.endpoint.replace("://", ":")), 1))
    assert str(found.svid.id) == ID


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, ID),
        ({"id": BANK}, BANK),
        ({"hint": "money"}, BANK),
        ({"id": ID, "hint": "money"}, ID),
    ],
)
def test_the_id_chooses_or_else_the_hint_or_else_the_order(place: Place, chosen: dict[str, str], expected: str) -> None:
    found = got(place, holding(place.svid(hint="shop"), place.svid(BANK, "money")), **chosen)
    assert str(found.svid.id) == expected


@pytest.mark.parametrize(
    ("chosen", "near"),
    [
        ({"id": f"{BANK}s"}, f"is '{BANK}' meant?"),
        ({"hint": "monet"}, "is 'money' meant?"),
        ({"hint": "xyz"}, "'money')"),
    ],
)
def test_a_choice_that_nothing_fits_names_what_was_offered(place: Place, chosen: dict[str, str], near: str) -> None:
    why = refused(place, holding(place.svid(hint="shop"), place.svid(BANK, "money")), **chosen)
    ((field, value),) = chosen.items()
    assert why.startswith(f"no SVID has identity.workloadApi.{field} {value}: it offers '{ID}' (hint 'shop'), '{BANK}'")
    assert why.endswith(near)


def test_hundreds_of_offers_are_not_all_named(place: Place) -> None:
    many = [X509SVID(spiffe_id=f"spiffe://{DOMAIN}/{index}", hint="x" * 10_000) for index in range(300)]
    assert "and 290 more" in refused(place, holding(*many), hint="mine")


def test_a_bad_bundle_of_another_trust_domain_costs_that_one_only_and_is_told_once(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    message = X509SVIDResponse(svids=[place.svid()], federated_bundles={"spiffe://bad.local": b"x"})
    with serve(place.endpoint, then_quiet(message, message)):
        _, found = run(several(place.source("bad.local"), 2))
    assert set(found.bundles) == {DOMAIN}
    (told,) = [record.message for record in caplog.records if record.name == "tproxy"]
    assert "nobody of trust domain bad.local is believed: the trust bundle has tag 0x78" in told


def test_only_the_federated_trust_domains_are_believed(place: Place) -> None:
    other = place.ca.parent / "other"
    store.create(other, "other.local", "ecdsa")
    bundle = place.svid().bundle
    bundles = {"spiffe://other.local": bundle, "spiffe://third.local": bundle}
    stream = then_quiet(X509SVIDResponse(svids=[place.svid()], federated_bundles=bundles))
    assert set(got(place, stream, "other.local", "absent.local").bundles) == {DOMAIN, "other.local"}


def test_revocation_lists_come_along(place: Place) -> None:
    issuer, now = store.signer(place.ca), authority.utc_now()
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject)
    made = builder.last_update(now).next_update(now + timedelta(days=1)).sign(issuer.key, hashes.SHA256())
    crl = made.public_bytes(Encoding.DER)
    assert got(place, then_quiet(X509SVIDResponse(svids=[place.svid()], crl=[crl]))).crls == (crl,)


# what changes


def test_each_message_replaces_all_that_came_before(place: Place) -> None:
    one = X509SVIDResponse(svids=[place.svid()], federated_bundles={"spiffe://other.local": place.svid().bundle})
    two = X509SVIDResponse(svids=[place.svid()])
    with serve(place.endpoint, then_quiet(one, two)):
        before, after = run(several(place.source("other.local"), 2))
    assert set(before.bundles) == {DOMAIN, "other.local"} and set(after.bundles) == {DOMAIN}
    assert before.svid.serial != after.svid.serial


def test_the_last_good_credentials_stay_and_the_agent_is_asked_again(place: Place) -> None:
    good, turns = place.svid(), iter(range(1000))

    def stream(context: grpc.ServicerContext) -> Any:
        if next(turns) % 2:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
        yield X509SVIDResponse(svids=[good])

    async def scenario() -> tuple[Keeper, list[str]]:
        keeper, errors = Keeper(place.source(), lambda _: None), list[str]()
        running = asyncio.create_task(keeper.run())
        async with asyncio.timeout(20):
            while keeper.status.renewals < 3:  # a Keeper tells of failures by its status only
                await asyncio.sleep(0.02)
                if keeper.status.error not in errors:
                    errors.append(keeper.status.error)
        running.cancel()
        return keeper, errors

    with serve(place.endpoint, stream):
        keeper, errors = run(scenario())
    assert keeper.current is not None and keeper.current.svid.key_pem
    ended, denied = (
        f"{keeper.source.name}: {why}" for why in ("it ended the stream", "it has no SVID for this workload")
    )
    assert ended in errors and any(error.startswith(denied) for error in errors)


def test_an_agent_that_starts_again_on_the_same_path_is_found(place: Place) -> None:
    async def scenario(source: WorkloadApiSource) -> None:
        snapshots = source.snapshots()
        with serve(place.endpoint, holding(place.svid())):
            await anext(snapshots)
        with pytest.raises(SourceError):
            await asyncio.wait_for(anext(snapshots), 10)
        with serve(place.endpoint, holding(place.svid())):
            await several(source, 1)

    run(scenario(place.source()))


def test_cancelling_ends_the_stream_at_the_agent(place: Place) -> None:
    gone = threading.Event()

    def stream(context: grpc.ServicerContext) -> Any:
        context.add_callback(gone.set)
        yield X509SVIDResponse(svids=[place.svid()])
        wait(context)

    async def scenario() -> None:
        first = asyncio.Event()
        keeper = Keeper(place.source(), lambda _: first.set())
        running = asyncio.create_task(keeper.run())
        await asyncio.wait_for(first.wait(), 10)
        await asyncio.sleep(2 * PACE)  # so that it waits for the next message
        running.cancel()
        assert await asyncio.to_thread(gone.wait, 10)

    with serve(place.endpoint, stream):
        run(scenario())


# lies


@pytest.mark.parametrize(
    ("who", "how", "why"),
    [
        ("spiffe://other.local/ns/a/sa/b", {}, "of another trust domain than test.local"),
        (ID, {"end": timedelta(seconds=-5)}, "expired"),
        (ID, {"begin": timedelta(hours=1), "end": timedelta(hours=2)}, "compare clocks"),
        (ID, {"ca": True}, "a CA's"),
        (ID, {"self_signed": True}, "does not verify against our own trust bundle"),
    ],
)
def test_an_svid_that_is_none_is_refused(place: Place, who: str, how: dict[str, Any], why: str) -> None:
    found = refused(place, holding(place.svid(who, **how)))
    assert found.startswith(f"'{who}': the certificate chain ") and why in found


def changed(**fields: Any) -> Callable[[X509SVID], None]:
    def change(one: X509SVID) -> None:
        for name, value in fields.items():
            setattr(one, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (changed(spiffe_id=BANK), f"the SVID '{BANK}' holds a certificate of {ID}"),
        (changed(x509_svid=b""), "the certificate chain holds no PEM certificate"),
        (changed(x509_svid=b"\x30\x80"), "the certificate chain has a length at byte 1 that DER forbids"),
        (changed(x509_svid=b"\x30\x05x"), "the certificate chain ends within an element"),
        (changed(x509_svid=b"\x30\x00" * 5000), "the certificate chain has more than 16 elements"),
        (changed(x509_svid=b"\x30\x00"), "the certificate chain is damaged"),
        (changed(x509_svid_key=b""), "the private key is damaged"),
        (changed(x509_svid_key=b"\x30\x00"), "the private key is damaged"),
        (changed(bundle=b""), "the trust bundle holds no PEM certificate, so it trusts nobody"),
        (changed(bundle=b"\x30\x00" * 5000), "the trust bundle has more than 1000 elements"),
        (changed(bundle=b"-----BEGIN CERTIFICATE-----"), "the trust bundle has tag 0x2d at byte 0"),
    ],
)
def test_a_damaged_svid_is_refused_by_the_part_that_is_damaged(
    place: Place, change: Callable[[X509SVID], None], why: str
) -> None:
    one = place.svid()
    change(one)
    assert why in refused(place, holding(one))


def test_another_one_s_key_is_refused(place: Place) -> None:
    one = place.svid()
    one.x509_svid_key = place.svid().x509_svid_key
    assert "the key is another certificate's" in refused(place, holding(one))


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (X509SVIDResponse(), "it offers no SVID"),
        (X509SVIDResponse(svids=[X509SVID()]), "'': the certificate chain holds no PEM certificate"),
        (b"\x0a\x05x", "its message ends within a field"),
        (b"\x0a\x01x", "its message Error parsing message"),
        (b"\x0a\x00" * 2_000_000, "its message has more than 1000 fields"),
        (b"\x0a\x00" * 2_100_000, "the answer is larger than 4194304 bytes"),
    ],
    ids=["no svid", "empty svid", "cut", "garbage", "two million svids", "oversized"],
)
def test_a_message_that_is_none_is_refused(place: Place, message: X509SVIDResponse | bytes, why: str) -> None:
    assert refused(place, then_quiet(message)).startswith(why)


@pytest.mark.parametrize("crl", [b"", b"x", b"\x30\x00\x30\x00"])
def test_a_revocation_list_that_is_none_is_refused_and_never_left_out(place: Place, crl: bytes) -> None:
    assert "its CRL " in refused(place, then_quiet(X509SVIDResponse(svids=[place.svid()], crl=[crl])))


# no answer


def test_no_entry_yet_is_told_with_advice(place: Place) -> None:
    found = refused(place, lambda context: context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued"))
    assert found == (
        "it has no SVID for this workload yet: is it registered, with selectors that fit it? (no identity issued)"
    )


def test_an_agent_that_is_not_there_is_named_by_its_socket(place: Place) -> None:
    assert refusal(place.source()).startswith("nobody answers")


def test_an_agent_that_accepts_and_never_answers_is_given_up(place: Place) -> None:
    with serve(place.endpoint, then_quiet()):
        assert refusal(place.source(deadline=0.5)) == "no answer within 0.5 s"


def test_a_socket_on_which_nobody_speaks_http_2_is_given_up(place: Place) -> None:
    path = place.endpoint.removeprefix("unix://")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        assert refusal(place.source(deadline=0.5)) == "no answer within 0.5 s"


def test_a_stream_that_ends_at_once_is_an_error(place: Place) -> None:
    assert refused(place, lambda _: []) == "it ended the stream"


# cost, and the right to be called a Workload API


def client(**want: object) -> dict[str, Any]:
    """A process of its own that follows a source as the sidecar does."""
    argv = [sys.executable, "-m", "tests.source_client", json.dumps(want)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def endless(message: X509SVIDResponse) -> Stream:
    raw = message.SerializeToString()

    def stream(context: grpc.ServicerContext) -> Any:
        while context.is_active():
            yield raw

    return stream


@pytest.mark.parametrize(("junk", "allowed"), [(0, 5), (4_000_000, 40)], ids=["small", "huge"])
def test_an_endless_stream_costs_neither_memory_nor_time(place: Place, junk: int, allowed: float) -> None:
    message = X509SVIDResponse(svids=[place.svid()], federated_bundles={"spiffe://other.local": bytes(junk)})
    with serve(place.endpoint, endless(message)) as asked:
        found = client(kind="workload", socket=place.endpoint, seconds=4)
    assert found["growth"] < allowed and found["cpu"] < 0.5
    assert 3 <= found["renewals"] <= 25 and asked.sent < 500


@pytest.fixture
def public() -> Iterator[Place]:
    """An authority that any user can read; pytest's own folders are root's."""
    with TemporaryDirectory() as folder:
        made, token = Path(folder), Path(folder, "token")
        store.create(made / "ca", DOMAIN, "ecdsa")
        token.write_text("a-token-of-the-tests")
        for path in (made, made / "ca", token):
            path.chmod(0o755)
        yield Place(made / "ca", f"unix://{folder}/agent.sock")


@pytest.mark.parametrize("kind", ["workload", "istio"])
def test_a_sidecar_with_a_source_that_speaks_grpc_stays_under_60_mib(public: Place, kind: str) -> None:
    """Under uvloop, as the user of a sidecar; nobody else has our packages mapped."""
    place, token = public, public.ca.parent / "token"
    uid = 1337 if os.geteuid() == 0 else os.geteuid()

    def answer(request: Any, _: grpc.ServicerContext) -> IstioCertificateResponse:
        return IstioCertificateResponse(cert_chain=ca_server.issue(place.ca, request, ID, 4))

    with serve(place.endpoint, holding(place.svid())), ca_server.serve(place.ca, answer) as asked:
        Path(place.endpoint.removeprefix("unix://")).chmod(0o777)
        istio = {"address": f"127.0.0.1:{asked.port}", "token": str(token), "roots": str(place.ca / "bundle.pem")}
        where = istio if kind == "istio" else {"socket": place.endpoint}
        found = client(kind=kind, seconds=3, uid=uid, **where)
    assert found["id"] == ID and found["loop"] == "uvloop" and found["uid"] == uid and not found["error"]
    assert found["renewals"] >= (2 if kind == "istio" else 1)
    assert found["alone"] < 60


PUBLIC = """
import json, sys
from spiffe import WorkloadApiClient
with WorkloadApiClient(sys.argv[1]) as agent:
    context, bundles = agent.fetch_x509_context(), agent.fetch_x509_bundles()
    svid = context.default_svid
    print(json.dumps([str(svid.spiffe_id), len(svid.cert_chain), [str(one.trust_domain) for one in bundles.bundles]]))
"""


def test_the_public_client_library_understands_this_server(place: Place) -> None:
    """In a process of its own: the protos of the two clash by name."""
    with serve(place.endpoint, holding(place.svid(hint="shop"))):
        argv = [sys.executable, "-c", PUBLIC, place.endpoint]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    who, length, bundles = json.loads(done.stdout)
    assert who == ID and length == 2 and bundles == [DOMAIN]


def test_this_server_refuses_whoever_leaves_the_header_out(place: Place) -> None:
    with serve(place.endpoint, holding(place.svid())) as asked, grpc.insecure_channel(place.endpoint) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            next(channel.unary_stream(FETCH_X509_SVID)(b"", timeout=5))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert len(asked.headers) == 1


def test_our_calls_carry_the_header(place: Place) -> None:
    with serve(place.endpoint, holding(place.svid())) as asked:
        run(several(place.source(), 1))
    assert asked.headers[0]["workload.spiffe.io"] == "true"


# secrets


def test_no_key_is_in_a_log_or_a_repr(
    place: Place, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with serve(place.endpoint, holding(place.svid())):
        source = place.source()
        keeper = Keeper(source, lambda _: None)
        (made,) = run(several(source, 1))
    refusal(source)
    shown = caplog.text + repr([source, vars(source), keeper, vars(keeper), made]) + "".join(capfd.readouterr())
    lines = made.svid.key_pem.decode().splitlines()
    assert len(lines) == 5 and "Workload API" in shown and not [line for line in lines if line in shown]


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_no_part_of_a_refused_key_is_in_the_error(place: Place, cut: int) -> None:
    """Another one's key whole, and cut keys."""
    one = place.svid()
    one.x509_svid_key = place.svid().x509_svid_key[: -cut or None]
    found = refused(place, holding(one))
    key = one.x509_svid_key
    assert not [form for form in (key.hex(), repr(key)[2:-1]) if form[20:40] in found]
    assert not [line for line in encoded("PRIVATE KEY", key).decode().splitlines() if line in found]
