"""The webhook as API servers meet it: a real ``tproxy control``, real HTTPS, the pods of the golden files."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.control import DOMAIN, Ca, metric
from tests.pods import pod
from tests.test_admission import asked
from tests.webhook import NAME, UID, Caller, caller, golden, injecting, patched, percentile, port, timed
from tproxy.control import admission, authority, rotation
from tproxy.control.webhook import LARGE, MANY, OF_ONE
from tproxy.control.webhook_config import WebhookConfig
from tproxy.core.inject.injection import Injection
from tproxy.core.inject.pod import Patch, Refusal, inject
from tproxy.world.process import wait_for

REVIEW = asked(pod(), uid=UID)
SETTINGS = WebhookConfig(Injection(image="registry.example/tproxy:1"), True, 0, "", "", "").settled(DOMAIN, True)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ca]:
    made = injecting(tmp_path_factory.mktemp("webhook"), limits={"drain": 3})
    try:
        yield made.start()
    finally:
        made.kill()


@pytest.fixture
def api(ca: Ca) -> Iterator[Caller]:
    with caller(ca) as made:
        yield made


def last(ca: Ca) -> dict[str, str]:
    return ca.lines("review")[-1]


@pytest.mark.parametrize(("name", "obj"), list(golden()))
def test_every_golden_pod_becomes_what_the_command_line_makes_of_it(
    name: str, obj: dict[str, Any], api: Caller
) -> None:
    where = f"pod shop/{obj.get('metadata', {}).get('name') or '*'}"
    found = api.review(asked(obj, uid=UID))
    assert found["uid"] == UID
    match inject(obj, Injection(**{**_fields(SETTINGS), "key": UID}), where):
        case Patch(pod=wanted):
            assert patched(obj, json.loads(base64.b64decode(found["patch"]))) == wanted
        case Refusal(reason):
            assert (found["allowed"], found["status"]["code"]) == (False, 422)
            assert found["status"]["message"].partition(": ")[2] == reason.partition(": ")[2]
        case _:
            assert found["allowed"] and "patch" not in found


def _fields(settings: Injection) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in Injection.__slots__}


def test_200_reviews_on_one_connection_are_answered_and_their_p99_is_told(api: Caller) -> None:
    seconds = [timed(api, REVIEW) for _ in range(200)]
    print(f"200 reviews: p50 {percentile(seconds, 0.5):.2f} ms, p99 {percentile(seconds, 0.99):.2f} ms")
    assert len(seconds) == 200


@pytest.mark.parametrize("size", [2_000, 8_000, 20_000])
def test_8_callers_with_ordinary_pods_wait_less_than_50_ms(size: int, ca: Ca) -> None:
    """Half of them: a busy machine is no fault. The p99 is told."""
    env = [{"name": f"A{number}", "value": "b" * 500} for number in range(size // 700)]
    body, seconds = asked(pod({"name": "web", "env": env})), list[float]()
    assert size / 2 < len(body) < size * 2

    def calls() -> None:
        with caller(ca) as one:
            seconds.extend([timed(one, body) for _ in range(50)])

    threads = [threading.Thread(target=calls) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seconds) == 400
    shown = ", ".join(f"p{share:g} {percentile(seconds, share / 100):.1f} ms" for share in (50, 99))
    print(f"8 callers, {len(body)} bytes: {shown}")
    assert percentile(seconds, 0.5) < 50, shown


def test_each_review_is_one_line_that_says_what_was_done_and_why(ca: Ca, api: Caller) -> None:
    api.review(REVIEW)
    line = last(ca)
    assert (line["outcome"], line["pod"], line["caller"], line["status"]) == (
        "injected",
        "shop/web",
        "127.0.0.1",
        "200",
    )
    assert float(line["ms"]) >= 0 and "why" not in line
    api.review(asked(pod(hostNetwork=True), uid=UID))
    assert last(ca)["outcome"] == "left alone" and last(ca)["why"].startswith("hostNetwork")
    api.review(asked(pod({"name": "a", "securityContext": {"runAsUser": 1337}}), uid=UID))
    assert last(ca)["outcome"] == "refused" and "runAsUser" in last(ca)["why"]
    api.ask("POST", "/inject", b"{}")
    assert last(ca)["outcome"] == "unreadable" and last(ca)["status"] == "400" and "AdmissionReview" in last(ca)["why"]


def test_the_key_of_a_pods_hooks_stands_in_no_line(ca: Ca, api: Caller) -> None:
    api.review(REVIEW)
    assert last(ca)["uid"] == UID[:8]
    assert UID not in ca.running().log.read_text()


def test_a_strangers_words_are_cut_and_stay_one_line(ca: Ca, api: Caller) -> None:
    api.review(asked(pod(), uid=UID, name="x\n" * 5000))
    assert len(last(ca)["pod"]) == 400
    assert (ca.running().log.read_text()).count('"shop/x\\n') == 1


def test_reviews_are_counted_by_what_was_done(ca: Ca, api: Caller) -> None:
    name = 'tproxy_webhook_reviews_total{outcome="injected"}'
    before = metric(ca.page("/metrics")[1], name)
    api.review(REVIEW)
    assert metric(ca.page("/metrics")[1], name) == before + 1
    assert metric(ca.page("/metrics")[1], "tproxy_webhook_seconds_count") > 0


def test_an_answer_holds_nothing_of_the_authority(ca: Ca, api: Caller) -> None:
    """Whoever reaches the port may ask; what he hears is the pod and the settings that stand in every injected pod."""
    said = api.review(REVIEW)
    answer = json.dumps(said) + base64.b64decode(said["patch"]).decode()
    assert not [word for word in ("PRIVATE KEY", "CERTIFICATE", str(ca.dir)) if word in answer]
    assert said == api.review(REVIEW)


@pytest.mark.parametrize(
    ("method", "path", "kind", "status"),
    [
        ("POST", "/inject", "text/plain", 415),
        ("POST", "/inject", "", 415),
        ("POST", "/inject", "application/json; charset=utf-8", 200),
        ("PUT", "/inject", "application/json", 405),
        ("POST", "/healthz", "application/json", 405),
        ("POST", "/mutate", "application/json", 404),
        ("POST", "*", "application/json", 404),
    ],
)
def test_what_is_asked_elsewhere_or_otherwise_is_told_and_the_connection_stays(
    api: Caller, method: str, path: str, kind: str, status: int
) -> None:
    assert api.ask(method, path, REVIEW, kind)[0] == status
    assert api.ask("GET", "/healthz") == (200, "ok\n")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "is not JSON"),
        (b"not json", "is not JSON"),
        (b"[" * 90_000, "is not JSON"),
        (b"\xff" * 100, "is not JSON"),
        (b'{"kind": "Pod"}', "expected AdmissionReview"),
        (asked(pod(), uid=None), "request.uid: expected text"),
        (asked(pod(), uid=7), "request.uid: 7: expected text"),
    ],
)
def test_what_is_no_review_is_400_with_a_sentence_and_the_connection_stays(api: Caller, body: bytes, said: str) -> None:
    status, text = api.ask("POST", "/inject", body)
    assert status == 400 and said in text
    assert api.review(REVIEW)["allowed"]


def test_a_huge_body_is_413_and_the_connection_stays(api: Caller) -> None:
    status, said = api.ask("POST", "/inject", b" " * (admission.LIMIT + 100_000))
    assert status == 413 and str(admission.LIMIT) in said
    assert api.review(REVIEW)["allowed"]


def test_a_chunked_body_is_read_like_any_other(api: Caller) -> None:
    middle = len(REVIEW) // 2
    assert api.ask("POST", "/inject", iter([REVIEW[:middle], REVIEW[middle:]]))[0] == 200


def test_a_client_that_waits_for_100_continue_is_told_to_go_on(api: Caller) -> None:
    head = f"POST /inject HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(REVIEW)}\r\n"
    api.sock.sendall(f"{head}content-type: application/json\r\nexpect: 100-continue\r\n\r\n".encode())
    assert api.sock.recv(100).startswith(b"HTTP/1.1 100 ")
    assert api.raw(REVIEW).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01 nonsense\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",  # no host
        b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"x" * 100_000,
        b"POST /inject HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    ],
)
def test_what_is_not_http_is_400_and_hung_up_on(api: Caller, data: bytes) -> None:
    assert api.raw(data).startswith(b"HTTP/1.1 400 ")


def test_a_body_that_does_not_come_is_408_and_hung_up_on_after_five_seconds(ca: Ca, api: Caller) -> None:
    head = b"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
    began = time.monotonic()
    assert api.raw(head + b"{").startswith(b"HTTP/1.1 408 ")
    assert 4 < time.monotonic() - began < 12
    assert last(ca)["status"] == "408"


def test_slow_senders_of_large_bodies_do_not_keep_small_reviews_out(ca: Ca, api: Caller) -> None:
    slow = [caller(ca) for _ in range(MANY + 4)]
    for one in slow:
        one.sock.sendall(b"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999\r\n\r\n" + b" " * (LARGE + 9))
    assert timed(api, REVIEW) < 4
    for one in slow:
        assert one.raw(b"").startswith(b"HTTP/1.1 408 ")
        one.__exit__()
    assert api.review(asked(pod(annotations={"x": "y" * LARGE}), uid=UID))["allowed"]


def test_one_address_has_so_many_connections_and_no_more(ca: Ca) -> None:
    held: list[Caller] = []
    try:
        with pytest.raises(OSError):  # a reset, or an end of file in the middle of TLS
            for _ in range(OF_ONE + 1):
                held.append(caller(ca))
                assert held[-1].ask("GET", "/healthz")[0] == 200
        assert len(held) >= OF_ONE
        assert held[0].review(REVIEW)["allowed"]
    finally:
        for one in held:
            one.__exit__()
    wait_for(lambda: _lives(ca), 10, "connections are taken again", ca.running())


def _lives(ca: Ca) -> bool:
    try:
        with caller(ca) as one:
            return one.ask("GET", "/healthz")[0] == 200
    except OSError:
        return False


def test_the_certificate_is_of_the_services_name_and_of_no_other(ca: Ca) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        caller(ca, name="tproxy-control.elsewhere.svc")
    other = authority.new_root(DOMAIN, "ecdsa", authority.utc_now()).certificate_pem().decode()  # of the same name
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        Caller(port(ca), other)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken(ca: Ca, version: ssl.TLSVersion) -> None:
    with caller(ca, minimum_version=version, maximum_version=version) as one:
        assert one.review(REVIEW)["allowed"]


def test_who_speaks_no_tls_or_no_more_hears_nothing_and_holds_nobody_up(ca: Ca, api: Caller) -> None:
    with socket.create_connection(("127.0.0.1", port(ca))) as plain, socket.create_connection(("127.0.0.1", port(ca))):
        plain.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"HTTP" not in plain.recv(100)
        assert api.review(REVIEW)["allowed"]


def test_the_serving_certificate_changes_under_load_without_an_error(tmp_path: Path) -> None:
    ca = injecting(tmp_path).start()
    try:
        rotation.add(ca.dir, state := ca.state(), DOMAIN, "ecdsa", int(time.time()))
        with caller(ca) as kept:
            old, stop, wrong, count = issuer(kept), threading.Event(), list[str](), [0]

            def load(reviews: int) -> None:
                while not stop.is_set():
                    try:
                        with caller(ca) as one:
                            for _ in range(reviews):
                                assert one.review(REVIEW)["allowed"]
                                count[0] += 1
                    except Exception as error:  # whatever it is, it is what must not happen
                        wrong.append(repr(error))

            threads = [threading.Thread(target=load, args=(reviews,)) for reviews in (1, 1, 100)]
            for thread in threads:
                thread.start()
            rotation.switch(ca.dir, state, int(time.time()), force=True)
            wait_for(lambda: new(ca) != old, 10, "the certificate is another one", ca.running())
            stop.set()
            for thread in threads:
                thread.join()
            assert not wrong and count[0] > 10
            assert kept.review(REVIEW)["allowed"] and issuer(kept) == old
        state.close()
    finally:
        ca.kill()


def issuer(one: Caller) -> bytes:
    """Which key signed the server's certificate."""
    der = one.sock.getpeercert(binary_form=True)
    assert der is not None
    found = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    return found.value.key_identifier or b""


def new(ca: Ca) -> bytes:
    with caller(ca) as one:
        return issuer(one)


def test_sigterm_answers_what_is_under_way_and_closes_what_is_idle(tmp_path: Path) -> None:
    ca = injecting(tmp_path).start()
    try:
        with caller(ca) as idle, caller(ca) as busy:
            assert idle.review(REVIEW)["allowed"]
            head = (
                f"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(REVIEW)}"
            )
            busy.sock.sendall(head.encode() + b"\r\n\r\n" + REVIEW[:10])
            assert idle.ask("GET", "/healthz")[0] == 200
            ca.running().popen.send_signal(signal.SIGTERM)
            assert idle.raw(b"") == b""
            answer = busy.raw(REVIEW[10:])
            assert answer.startswith(b"HTTP/1.1 200 ") and re.search(rb"(?i)connection: close", answer)
        assert ca.running().popen.wait(10) == 0
    finally:
        ca.kill()


def test_kill_9_and_a_restart_change_nothing_for_who_believes_the_root(tmp_path: Path) -> None:
    ca = injecting(tmp_path).start()
    try:
        before = (ca.dir / "bundle.pem").read_text()
        for _ in range(2):
            with Caller(port(ca), before) as one:
                assert one.review(REVIEW)["allowed"]
            ca.kill()
            with pytest.raises(OSError):
                Caller(port(ca), before)
            ca.start()
        assert NAME in ca.running().log.read_text()
    finally:
        ca.kill()
