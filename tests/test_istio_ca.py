"""Istio's CA API from the client's side: who lies, dawdles or breaks is named, and the last good credentials stay."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.ca_server import Answer, Asked, issue, serve, server_pair
from tests.certs import twisted
from tests.one_loop import run
from tproxy.control import store
from tproxy.core.certificates.pem import certificates
from tproxy.core.identity import Snapshot
from tproxy.core.settings import IstioCa, KeyType
from tproxy.identity.istio_ca import IstioCaSource, new_request, sleep_until
from tproxy.identity.keeper import Keeper
from tproxy.identity.source import SourceError
from tproxy.wire.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse

DOMAIN = "test.local"
ID = f"spiffe://{DOMAIN}/ns/shop/sa/web"


def jwt(claims: object) -> str:
    """Looks like a service account's token; nobody here checks its signature."""
    parts = (json.dumps({"alg": "RS256"}), json.dumps(claims), "a signature that is long enough to be secret")
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)


TOKEN = jwt({"sub": "system:serviceaccount:shop:web", "aud": ["istio-ca"]})


@dataclass
class Place:
    """An authority, and the files that a pod would have mounted."""

    ca: Path
    settings: IstioCa

    def honest(self, life: float = 3600) -> Answer:
        """An answer that gives everyone our id."""
        return lambda request, _: IstioCertificateResponse(cert_chain=issue(self.ca, request, ID, life))

    def source(self, port: int, deadline: float = 5.0, **changes: str) -> IstioCaSource:
        settings = replace(self.settings, address=f"127.0.0.1:{port}", **changes)
        return IstioCaSource(settings, DOMAIN, deadline)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    ca, token = tmp_path / "ca", tmp_path / "token"
    store.create(ca, DOMAIN, "ecdsa")
    token.write_text(TOKEN)
    return Place(ca, IstioCa("", str(token), str(ca / "bundle.pem")))


async def first(source: IstioCaSource) -> Snapshot:
    snapshots = source.snapshots()
    try:
        return await asyncio.wait_for(anext(snapshots), 20)
    finally:
        await snapshots.aclose()


def got(place: Place, answer: Answer) -> tuple[Snapshot, Asked]:
    """The snapshot that this answer makes."""
    with serve(place.ca, answer) as asked:
        return run(first(place.source(asked.port))), asked


def refusal(source: IstioCaSource) -> str:
    """Why there is no snapshot. The source is named; neither key nor token is."""
    with pytest.raises(SourceError) as caught:
        run(first(source))
    text = str(caught.value)
    assert text.startswith(f"{source.name}: ")
    assert "PRIVATE" not in text and not any(part in text for part in TOKEN.split("."))
    return text.removeprefix(f"{source.name}: ")


def refused(place: Place, answer: Answer, **changes: str) -> str:
    """Why this answer makes no snapshot."""
    with serve(place.ca, answer) as asked:
        return refusal(place.source(asked.port, **changes))


def says(*entries: bytes) -> Answer:
    """The same answer to everyone."""
    return lambda _request, _context: IstioCertificateResponse(cert_chain=[entry.decode() for entry in entries])


def root(ca: Path) -> bytes:
    return (ca / "bundle.pem").read_bytes()


def other_authority(place: Place, domain: str = DOMAIN) -> Path:
    """Another one, as any thief can make it."""
    folder = place.ca.parent / "other"
    store.create(folder, domain, "ecdsa")
    return folder


# what is asked, and what comes of it


def test_a_certificate_is_asked_for_and_proven(place: Place) -> None:
    found, asked = got(place, place.honest())
    assert str(found.svid.id) == ID and list(found.bundles) == [DOMAIN]
    assert len(certificates(found.svid.chain_pem)) == 2 and found.svid.key_pem.startswith(b"-----BEGIN PRIVATE KEY")
    assert found.bundles[DOMAIN] == root(place.ca)
    assert asked.requests[0].validity_duration == 86400
    assert asked.headers[0]["authorization"] == f"Bearer {TOKEN}" and asked.headers[0]["clusterid"] == "Kubernetes"


def uris(csr: bytes) -> list[str]:
    """All that a CSR asks to be called; nothing else may be in it."""
    found = x509.load_pem_x509_csr(csr)
    assert found.is_signature_valid and not list(found.subject)
    if not list(found.extensions):
        return []
    (only,) = found.extensions
    assert isinstance(only.value, x509.SubjectAlternativeName)
    return [name.value for name in only.value]


def test_the_csr_names_the_service_account_of_the_token_as_istio_csr_wants_it(place: Place) -> None:
    _, asked = got(place, place.honest())
    assert uris(asked.requests[0].csr.encode()) == [ID]


def test_a_token_that_is_no_service_account_s_leaves_the_csr_without_a_name(place: Place) -> None:
    Path(place.settings.token).write_text("a-join-token-of-some-length\n")
    _, asked = got(place, place.honest())
    assert uris(asked.requests[0].csr.encode()) == []
    assert asked.headers[0]["authorization"] == "Bearer a-join-token-of-some-length"


@pytest.mark.parametrize(
    ("kind", "expected"), [(KeyType.ECDSA, ec.EllipticCurvePublicKey), (KeyType.RSA, rsa.RSAPublicKey)]
)
def test_the_key_is_of_the_kind_that_was_chosen(place: Place, kind: KeyType, expected: type) -> None:
    place.settings = replace(place.settings, key_type=kind)
    _, asked = got(place, place.honest())
    assert isinstance(x509.load_pem_x509_csr(asked.requests[0].csr.encode()).public_key(), expected)


def test_intermediates_may_share_the_leaf_s_entry_and_roots_the_last(place: Place) -> None:
    other = other_authority(place)

    def answer(request: IstioCertificateRequest, _: grpc.ServicerContext) -> IstioCertificateResponse:
        leaf, middle, own = issue(place.ca, request, ID)
        return IstioCertificateResponse(cert_chain=[leaf + middle, own + root(other).decode()])

    found, _ = got(place, answer)
    assert len(certificates(found.svid.chain_pem)) == 2 and len(certificates(found.bundles[DOMAIN])) == 2


def test_no_proxy_of_the_environment_stands_between(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "http_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    found, _ = got(place, place.honest())
    assert str(found.svid.id) == ID


# renewal


async def several(source: IstioCaSource, count: int, between: Callable[[int], object]) -> list[Snapshot]:
    """So many snapshots; ``between`` is called after each."""
    found: list[Snapshot] = []
    snapshots = source.snapshots()
    async with asyncio.timeout(30):
        async for one in snapshots:
            found.append(one)
            if len(found) == count:
                break
            between(len(found))
    await snapshots.aclose()
    return found


def test_the_next_certificate_comes_in_the_middle_of_life_with_another_key_and_today_s_token(place: Place) -> None:
    def rotate(_: int) -> None:
        Path(place.settings.token).write_text("tomorrow-s-token")

    with serve(place.ca, place.honest(4)) as asked:
        one, two = run(several(place.source(asked.port), 2, rotate))
    assert one.svid.key_pem != two.svid.key_pem and one.svid.serial != two.svid.serial
    assert asked.headers[1]["authorization"] == "Bearer tomorrow-s-token"
    assert 1 <= two.svid.not_before - one.svid.not_before <= 4


def test_the_ca_s_own_certificate_and_its_root_may_change_between_two_calls(place: Place) -> None:
    other = other_authority(place)
    with ExitStack() as stack:
        asked = stack.enter_context(serve(place.ca, place.honest(4)))

        def rotate(_: int) -> None:
            stack.close()
            stack.enter_context(serve(other, place.honest(), port=asked.port))
            Path(place.settings.roots).write_bytes(root(other) + root(place.ca))

        _, two = run(several(place.source(asked.port), 2, rotate))
    assert len(certificates(two.bundles[DOMAIN])) == 2


def test_the_last_good_credentials_stay_while_the_ca_lies(place: Place) -> None:
    honest, calls = place.honest(3), iter(range(100))

    def answer(request: IstioCertificateRequest, context: grpc.ServicerContext) -> IstioCertificateResponse | bytes:
        return honest(request, context) if next(calls) == 0 else b""

    async def scenario(port: int) -> tuple[Keeper, list[Snapshot]]:
        taken: list[Snapshot] = []
        keeper = Keeper(place.source(port), taken.append)
        running = asyncio.create_task(keeper.run())
        async with asyncio.timeout(20):
            while keeper.status.failures < 2:  # noqa: ASYNC110  # a Keeper tells of failures by its status only
                await asyncio.sleep(0.05)
        running.cancel()
        return keeper, taken

    with serve(place.ca, answer) as asked:
        keeper, taken = run(scenario(asked.port))
    assert len(taken) == 1 and keeper.current is taken[0]
    assert keeper.status.error == f"Istio CA 127.0.0.1:{asked.port}: its answer has 0 entries: no leaf and roots"


@pytest.mark.parametrize("clock", [[0, 1000], [0, 1, 2, 10], [0, -3600, 10]], ids=["forward", "steady", "backward"])
def test_renewal_waits_by_the_clock_on_the_wall_even_when_it_jumps(clock: list[float]) -> None:
    times = iter(clock)
    run(asyncio.wait_for(sleep_until(10, lambda: next(times), look=0.01), 5))
    assert not list(times)


# lies


def test_a_ca_that_calls_us_otherwise_than_before_is_not_believed(place: Place) -> None:
    ids = iter((ID, ID.replace("web", "bank")))
    with serve(place.ca, lambda request, _: chain_for(place, request, next(ids), 2)) as asked:
        source = place.source(asked.port)
        with pytest.raises(SourceError, match=r"the CA calls us spiffe://\S+bank, but we are spiffe://\S+web"):
            run(several(source, 2, lambda _: None))


def chain_for(place: Place, request: IstioCertificateRequest, who: str, life: float) -> IstioCertificateResponse:
    return IstioCertificateResponse(cert_chain=issue(place.ca, request, who, life))


@pytest.mark.parametrize(
    ("uri", "how", "why"),
    [
        ("spiffe://other.local/ns/a/sa/b", {}, "is spiffe://other.local/ns/a/sa/b, of another trust domain"),
        (ID, {}, "the CA signed another key than ours"),
        (ID, {"end": timedelta(seconds=-5)}, "expired"),
        (ID, {"begin": timedelta(hours=1), "end": timedelta(hours=2)}, "compare clocks"),
        (ID, {"ca": True}, "a CA's"),
        (ID, {"self_signed": True}, "the CA signed another key than ours"),
        ("https://test.local/web", {}, "does not start with spiffe://"),
    ],
)
def test_a_leaf_that_is_not_our_svid_is_refused(place: Place, uri: str, how: dict[str, Any], why: str) -> None:
    chain, _ = twisted(place.ca, (uri,), **how)
    assert why in refused(place, says(chain, root(place.ca)))


def test_a_chain_that_does_not_lead_to_the_roots_beside_it_is_refused(place: Place) -> None:
    other = other_authority(place)

    def answer(request: IstioCertificateRequest, _: grpc.ServicerContext) -> IstioCertificateResponse:
        return IstioCertificateResponse(cert_chain=[*issue(place.ca, request, ID)[:2], root(other).decode()])

    assert "does not verify against our own trust bundle" in refused(place, answer)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "its answer has 0 entries: no leaf and roots"),
        (b"\xff" * 30, "its answer is not Istio's"),
        (IstioCertificateResponse(cert_chain=["one"]).SerializeToString(), "its answer has 1 entries"),
        (IstioCertificateResponse(cert_chain=["", ""]).SerializeToString(), "holds no PEM certificate"),
        (IstioCertificateResponse(cert_chain=["\ud7ff", "ä"]).SerializeToString(), "holds no PEM certificate"),
        (b"\n\x00" * 500_000, "holds no PEM certificate"),
        (b"\n\x00" * 600_000, "the answer is larger than 1048576 bytes"),
    ],
    ids=["nothing", "garbage", "one entry", "empty entries", "no ASCII", "many entries", "oversized"],
)
def test_an_answer_that_holds_no_chain_is_named_for_what_it_is(place: Place, answer: bytes, why: str) -> None:
    assert refused(place, lambda _request, _context: answer).startswith(
        ("in its answer the certificate chain " + why, why)
    )


def test_an_empty_bundle_is_refused(place: Place) -> None:
    def answer(request: IstioCertificateRequest, _: grpc.ServicerContext) -> IstioCertificateResponse:
        return IstioCertificateResponse(cert_chain=[*issue(place.ca, request, ID)[:2], "\n"])

    assert "trust bundle holds no PEM certificate, so it trusts nobody" in refused(place, answer)


def test_a_chain_of_a_thousand_certificates_is_refused(place: Place) -> None:
    def answer(request: IstioCertificateRequest, _: grpc.ServicerContext) -> IstioCertificateResponse:
        leaf, middle, own = issue(place.ca, request, ID)
        return IstioCertificateResponse(cert_chain=[leaf, *[middle] * 1000, own])

    assert "has 1001 certificates, more than 16" in refused(place, answer)


# refusals in gRPC's words


def aborts(code: grpc.StatusCode, words: str) -> Answer:
    def answer(_: IstioCertificateRequest, context: grpc.ServicerContext) -> NoReturn:
        context.abort(code, words)

    return answer


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "the CA refuses the token in {token}: expired, or for another audience?"),
        (grpc.StatusCode.PERMISSION_DENIED, "the CA knows the token in {token} but gives it no certificate"),
        (grpc.StatusCode.UNAVAILABLE, "nobody answers, or the connection broke"),
        (grpc.StatusCode.UNIMPLEMENTED, "the server does not offer this call: is it the right address?"),
        (grpc.StatusCode.INTERNAL, "failed with INTERNAL"),
    ],
)
def test_a_refusal_says_what_an_operator_can_mend(place: Place, code: grpc.StatusCode, why: str) -> None:
    found = refused(place, aborts(code, "some\nwords"))
    assert found == f"{why.format(token=place.settings.token)} (some words)"


def test_a_server_that_repeats_the_token_does_not_bring_it_into_our_words(place: Place) -> None:
    found = refused(place, aborts(grpc.StatusCode.UNAUTHENTICATED, f"Bearer {TOKEN} has {TOKEN.split('.')[1]}"))
    assert found.endswith("(Bearer [token] has [token])")


def test_a_server_s_words_are_cut(place: Place) -> None:
    assert len(refused(place, aborts(grpc.StatusCode.INTERNAL, "no " * 1000))) < 300


def test_headers_without_end_are_refused(place: Place) -> None:
    def answer(_: IstioCertificateRequest, context: grpc.ServicerContext) -> IstioCertificateResponse:
        context.send_initial_metadata([(f"x-{index}", "x" * 1000) for index in range(100)])
        return IstioCertificateResponse()

    assert refused(place, answer).startswith("the answer is larger than 1048576 bytes, or the CA is overloaded (")


def test_a_ca_that_never_answers_is_given_up(place: Place) -> None:
    stop = threading.Event()

    def answer(*_: object) -> bytes:
        stop.wait(20)
        return b""

    with serve(place.ca, answer) as asked:
        why = refusal(place.source(asked.port, deadline=0.5))
        stop.set()
    assert why.startswith("no answer within 0.5 s")


# the connection


def test_a_certificate_of_another_authority_is_not_trusted(place: Place) -> None:
    stranger = server_pair(other_authority(place, "other.local"))
    with serve(place.ca, place.honest(), stranger) as asked:
        why = refusal(place.source(asked.port))
    assert why.startswith("the server's certificate is not trusted: ") and "identity.istioCa.roots" in why
    assert not asked.requests


def test_a_certificate_of_another_name_is_refused_and_the_name_can_be_given(place: Place) -> None:
    pair = server_pair(place.ca, x509.DNSName("istiod.istio-system.svc"))
    with serve(place.ca, place.honest(), pair) as asked:
        assert "identity.istioCa.serverName" in refusal(place.source(asked.port))
        assert "identity.istioCa.serverName" in refusal(place.source(asked.port, server_name="istiod.other.svc"))
        assert not asked.requests
        found = run(first(place.source(asked.port, server_name="istiod.istio-system.svc")))
    assert str(found.svid.id) == ID


@contextmanager
def plain(data: bytes, stays: bool) -> Iterator[int]:
    """A server without TLS or sense: its port."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):  # the listener is shut down
                while True:
                    taken.append(listener.accept()[0])
                    taken[-1].sendall(data)
                    if not stays:
                        taken[-1].close()

        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for one in taken:
        one.close()


@pytest.mark.parametrize(
    ("data", "stays", "why"),
    [
        (b"", False, "nobody answers, or the connection broke"),
        (b"", True, "no answer within 1 s"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, "the server does not speak TLS as we do"),
        (bytes(100_000), True, "the server does not speak TLS as we do"),
    ],
    ids=["closes at once", "silent", "HTTP", "zeros"],
)
def test_a_server_that_speaks_no_tls_is_told_from_one_that_is_not_there(
    place: Place, data: bytes, stays: bool, why: str
) -> None:
    with plain(data, stays) as port:
        assert refusal(place.source(port, deadline=1)).startswith(why)


def test_nobody_at_the_address(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    why = refusal(place.source(port))
    assert why.startswith("nobody answers") and "Connection refused" in why


# files


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "is empty"),
        (" \n", "is empty"),
        ("two\nlines", "holds more than one word of printable ASCII"),
        ("two words", "holds more than one word of printable ASCII"),
        ("tökén", "holds more than one word of printable ASCII"),
        ("x\0y", "holds more than one word of printable ASCII"),
        ("x" * 13_000, "has 13000 bytes, more than 12288"),
        ("x" * 2_000_000, "is larger than 1048576 bytes"),
    ],
)
def test_a_token_file_that_holds_no_token_is_named(place: Place, content: str | None, why: str) -> None:
    path = Path(place.settings.token)
    path.unlink()
    if content is not None:
        path.write_text(content)
    found = refusal(place.source(1))
    assert str(path) in found and found.endswith(why)
    assert not content or content.strip() not in found or not content.strip()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read"),
        ("", "is empty"),
        ("x", "holds no PEM certificate, so it trusts nobody"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "is damaged: "),
    ],
)
def test_a_roots_file_that_holds_no_roots_is_named(place: Place, content: str | None, why: str) -> None:
    path = Path(place.settings.roots).rename(place.ca / "roots.pem")
    place.settings = replace(place.settings, roots=str(path))
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert refusal(place.source(1)).startswith(f"{path}: identity.istioCa.roots: {why}")


# secrets


def test_neither_key_nor_token_is_in_a_log_or_a_repr(
    place: Place, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with serve(place.ca, place.honest()) as asked:
        source = place.source(asked.port)
        keeper = Keeper(source, lambda _: None)
        made = run(first(source))
    refusal(source)  # gRPC writes to the standard error by itself
    request = new_request(KeyType.ECDSA, made.svid.id)
    shown = (
        caplog.text + repr([source, vars(source), keeper, vars(keeper), made, request]) + "".join(capfd.readouterr())
    )
    lines = (made.svid.key_pem + request.key_pem).decode().splitlines()
    assert len(lines) == 10 and "Istio CA" in shown
    assert not [secret for secret in (*TOKEN.split("."), *lines) if secret in shown]
