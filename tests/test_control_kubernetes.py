"""Service account tokens: a real server asks an HTTPS server that answers as the Kubernetes API server does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control import DOMAIN, Ca, leaf, started, uris
from tests.kubernetes import ApiServer
from tproxy.control import pods
from tproxy.control.refusal import Refused, Why

ZTUNNEL = f"spiffe://{DOMAIN}/ns/shop/sa/ztunnel"
WEB = f"spiffe://{DOMAIN}/ns/shop/sa/web"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiServer, Ca]]:
    folder = tmp_path_factory.mktemp("kubernetes")
    api = ApiServer(folder)
    try:
        for ca in started(folder, kubernetes=api.config, impersonators=[ZTUNNEL], limits={"deadline": 8}):
            yield api, ca
    finally:
        api.stop()


@pytest.fixture
def api(both: tuple[ApiServer, Ca]) -> Iterator[ApiServer]:
    yield both[0]
    both[0].pods.clear()
    both[0].twist, both[0].lags = None, False


@pytest.fixture
def ca(both: tuple[ApiServer, Ca]) -> Ca:
    return both[1]


def reason(ca: Ca, token: str, code: str, **more: Any) -> str:
    """Refused with this code; the reason in the record, which repeats no token."""
    assert ca.refused(token, **more)[0] == code
    line = ca.lines("refused")[-1]
    assert token not in str(line) and line["caller"] == "127.0.0.1"
    return line["reason"]


def test_a_pod_gets_the_id_of_its_namespace_and_service_account(api: ApiServer, ca: Ca) -> None:
    uid = api.pod("web-1", "web")
    made = leaf(ca.call(api.token("web-1")))
    assert uris(made) == [WEB]
    line = ca.lines("issued")[-1]
    assert (line["pod"], line["how"], line["serial"]) == ("shop/web-1", "kubernetes", f"{made.serial_number:x}")
    state = ca.state()
    assert state.rows("SELECT holder FROM issued WHERE serial = ?", line["serial"]) == [(uid,)]
    state.close()


def test_a_pod_on_the_host_network_has_the_nodes_address(api: ApiServer, ca: Ca) -> None:
    api.pod("host-1", "web", hostNetwork=True)
    assert len(ca.call(api.token("host-1"))) == 3


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": 1}, "token_expired"),
        ({"aud": ["vault"]}, "wrong_audience"),
        ({"iss": "https://elsewhere"}, "not_authenticated"),
        ({"exp": "soon"}, "not_a_token"),
    ],
)
def test_a_token_that_is_expired_or_for_others_or_of_others_is_refused(
    api: ApiServer, ca: Ca, claims: dict[str, Any], why: str
) -> None:
    api.pod("web-1", "web")
    assert reason(ca, api.token("web-1", **claims), "UNAUTHENTICATED") == why


@pytest.mark.parametrize("token", ["!!", "a.b.c", "e30.e30.e30", "e30.bm8.e30", "." * 50, "aa.W10.aa", "x" * 7000])
def test_garbage_for_a_token_is_refused(api: ApiServer, ca: Ca, token: str) -> None:
    assert reason(ca, token, "UNAUTHENTICATED") in ("not_a_token", "not_authenticated", "wrong_audience")


def test_the_api_server_is_not_asked_about_tokens_that_speak_against_themselves(api: ApiServer, ca: Ca) -> None:
    before = len(api.seen)
    for token in ("x", api.token(exp=1), api.token(aud=["vault"])):
        ca.refused(token)
    assert len(api.seen) == before


def test_a_forged_signature_is_refused(api: ApiServer, ca: Ca) -> None:
    api.pod("web-1", "web")
    head, _, signature = api.token("web-1").rpartition(".")
    assert reason(ca, f"{head}.{signature[::-1]}", "UNAUTHENTICATED") == "not_authenticated"


def test_a_token_replayed_from_another_address_is_refused_and_the_record_names_both(api: ApiServer, ca: Ca) -> None:
    api.pod("web-1", "web", ip="10.1.2.3")
    assert reason(ca, api.token("web-1"), "PERMISSION_DENIED") == "replayed"
    line = ca.lines("refused")[-1]
    assert "127.0.0.1" in line["why"] and "10.1.2.3" in line["why"] and line["who"] == "shop/web-1"


def test_a_pod_without_an_address_yet_is_asked_to_come_again(api: ApiServer, ca: Ca) -> None:
    api.pod("web-1", "web", ip="")
    assert reason(ca, api.token("web-1"), "UNAVAILABLE") == "no_address_yet"


def test_a_token_of_a_deleted_pod_is_refused_even_if_the_review_does_not_know_yet(api: ApiServer, ca: Ca) -> None:
    api.pod("web-1", "web")
    token = api.token("web-1")
    api.pods.clear()
    assert reason(ca, token, "UNAUTHENTICATED") == "not_authenticated"
    api.lags = True
    assert reason(ca, token, "PERMISSION_DENIED") == "pod_gone"
    api.pod("web-1", "web")  # its successor, of the same name
    assert reason(ca, token, "PERMISSION_DENIED") == "pod_gone"


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_gets_nothing(api: ApiServer, ca: Ca, phase: str) -> None:
    api.pod("web-1", "web")
    api.pods["shop", "web-1"]["status"]["phase"] = phase
    assert reason(ca, api.token("web-1"), "PERMISSION_DENIED") == "pod_gone"


def test_a_token_that_is_bound_to_no_pod_is_refused(api: ApiServer, ca: Ca) -> None:
    assert reason(ca, api.token(), "PERMISSION_DENIED") == "not_a_pod"


def test_a_pod_with_another_service_account_than_its_token_is_refused(api: ApiServer, ca: Ca) -> None:
    api.pod("web-1", "web")
    assert reason(ca, api.token("web-1", account="admin"), "PERMISSION_DENIED") == "replayed"


def test_only_who_is_listed_may_act_for_others_and_only_for_pods_of_its_node(api: ApiServer, ca: Ca) -> None:
    api.pod("ztunnel-1", "ztunnel")
    api.pod("web-1", "web")
    api.pod("far-1", "far", node="node-2")
    ztunnel = api.token("ztunnel-1", account="ztunnel")
    assert uris(leaf(ca.call(ztunnel, ImpersonatedIdentity=WEB))) == [WEB]
    assert ca.lines("issued")[-1]["how"] == f"kubernetes, by {ZTUNNEL}"
    for wanted in (WEB.replace("web", "far"), WEB.replace("web", "none"), "spiffe://other/ns/shop/sa/web", "x"):
        assert reason(ca, ztunnel, "PERMISSION_DENIED", ImpersonatedIdentity=wanted) == "impersonation"
    assert reason(ca, api.token("web-1"), "PERMISSION_DENIED", ImpersonatedIdentity=ZTUNNEL) == "impersonation"


def test_a_list_of_pods_of_other_nodes_too_opens_nothing_more(api: ApiServer, ca: Ca) -> None:
    api.pod("ztunnel-1", "ztunnel")
    api.pod("far-1", "far", node="node-2")

    def all_of_them(status: int, document: Any) -> tuple[int, bytes]:
        changed = {"items": list(api.pods.values())} if "items" in document else document
        return status, json.dumps(changed).encode()

    api.twist = all_of_them
    ztunnel = api.token("ztunnel-1", account="ztunnel")
    assert reason(ca, ztunnel, "PERMISSION_DENIED", ImpersonatedIdentity=WEB.replace("web", "far")) == "impersonation"


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (403, b"{}", "may not create tokenreviews"),
        (500, b"oops", "not JSON"),
        (302, b"{}", "answers 302"),
        (200, b"[]", "not a JSON object"),
        (201, b" " * 5_000_000, "longer than"),
        (201, b"[" * 100_000, "not JSON"),
    ],
)
def test_whatever_the_api_server_answers_the_call_is_refused_with_the_cause(
    api: ApiServer, ca: Ca, status: int, body: bytes, said: str
) -> None:
    api.pod("web-1", "web")
    api.twist = lambda *_: (status, body)
    assert reason(ca, api.token("web-1"), "UNAVAILABLE") == "api_server"
    assert said in ca.lines("refused")[-1]["why"]
    api.twist = None
    assert len(ca.call(api.token("web-1"))) == 3


@pytest.mark.parametrize("wrong", [{"status": None}, {"status": {"authenticated": "yes"}}, {"status": []}, {}])
def test_a_review_that_does_not_say_true_is_a_no(api: ApiServer, ca: Ca, wrong: dict[str, Any]) -> None:
    api.pod("web-1", "web")
    api.twist = lambda *_: (201, json.dumps(wrong).encode())
    assert reason(ca, api.token("web-1"), "UNAUTHENTICATED") == "not_authenticated"


POD_UID = "authentication.kubernetes.io/pod-uid"


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        (lambda status: status.pop("audiences"), "UNAUTHENTICATED", "wrong_audience"),
        (
            lambda status: status.update(audiences=["https://kubernetes.default.svc"]),
            "UNAUTHENTICATED",
            "wrong_audience",
        ),
        (lambda status: status["user"].update(username="kubernetes-admin"), "PERMISSION_DENIED", "not_a_pod"),
        (lambda status: status["user"].update(username="system:serviceaccount:a"), "PERMISSION_DENIED", "not_a_pod"),
        (lambda status: status["user"]["extra"].pop(POD_UID), "PERMISSION_DENIED", "not_a_pod"),
        (lambda status: status["user"]["extra"].update({POD_UID: ["a", "b"]}), "PERMISSION_DENIED", "not_a_pod"),
        (lambda status: status["user"]["extra"].update({POD_UID: ["a"]}), "PERMISSION_DENIED", "pod_gone"),
    ],
)
def test_a_review_of_another_audience_or_of_somebody_who_is_no_pod_is_refused(
    api: ApiServer, ca: Ca, change: Any, code: str, why: str
) -> None:
    def twisted(status: int, document: Any) -> tuple[int, bytes]:
        if document.get("kind") == "TokenReview":
            change(document["status"])
        return status, json.dumps(document).encode()

    api.pod("web-1", "web")
    api.twist = twisted
    assert reason(ca, api.token("web-1"), code) == why


def test_a_slow_api_server_costs_its_caller_five_seconds_and_the_others_nothing(api: ApiServer, ca: Ca) -> None:
    api.pod("web-1", "web")

    def slow(status: int, _: object) -> tuple[int, bytes]:
        time.sleep(6)
        return status, b"{}"

    api.twist = slow
    token, join = api.token("web-1"), ca.token()
    found: list[tuple[str, str]] = []
    asking = threading.Thread(target=lambda: found.append(ca.refused(token)))
    asking.start()
    begun = time.monotonic()
    assert len(ca.call(join)) == 3 and time.monotonic() - begun < 4.5
    asking.join()
    assert found[0][0] == "UNAVAILABLE" and "no answer within 5 s" in found[0][1]


def test_a_call_under_way_at_sigterm_is_answered_before_the_end(tmp_path: Path) -> None:
    api = ApiServer(tmp_path)
    asked = threading.Event()

    def slow(status: int, document: object) -> tuple[int, bytes]:
        asked.set()
        time.sleep(0.5)
        return status, json.dumps(document).encode()

    try:
        for ca in started(tmp_path, kubernetes=api.config):
            api.pod("web-1", "web")
            api.twist, found = slow, list[str]()
            token = api.token("web-1")
            asking = threading.Thread(target=lambda: found.extend(ca.call(token)))  # noqa: B023  # joined below
            asking.start()
            assert asked.wait(5)
            ca.running().send(15)
            asking.join()
            assert len(found) == 3 and ca.running().wait() == 0
    finally:
        api.stop()


def test_an_api_server_of_another_ca_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    api, other = ApiServer(tmp_path), ApiServer(tmp_path / "other")
    try:
        config = {**api.config, "caFile": other.config["caFile"]}
        for ca in started(tmp_path, kubernetes=config):
            api.pod("web-1", "web")
            assert reason(ca, api.token("web-1"), "UNAVAILABLE") == "api_server"
            assert not api.seen
    finally:
        api.stop()
        other.stop()


@pytest.mark.parametrize("token", ["", "a.b", "é.é.é", "aa.bm90IGpzb24.aa", "aa.W10.aa", "aa.e30.aa.aa"])
def test_a_glance_tells_garbage_without_asking_anybody(token: str) -> None:
    found = pods.glance(token, "istio-ca", 0)
    assert isinstance(found, Refused) and found.reason is Why.NOT_A_TOKEN
