"""The webhook's answer to an AdmissionReview, from bytes to bytes."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pods import JSON, PODS, UNHURRIED, pod
from tproxy.control.admission import LIMIT, Reply, review
from tproxy.core.inject.injection import Injection
from tproxy.core.inject.pod import Patch, inject

CLUSTER = Injection()
PODS_RESOURCE = {"group": "", "version": "v1", "resource": "pods"}


def asked(obj: Any, **request: Any) -> bytes:
    """A review as the API server sends it."""
    base = {"uid": "705ab4f5", "operation": "CREATE", "namespace": "shop", "resource": PODS_RESOURCE, "object": obj}
    return json.dumps(
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {**base, **request}}
    ).encode()


def large(containers: int) -> dict[str, Any]:
    """A pod of 11 kB for each container."""
    probe = {"httpGet": {"port": 80, "path": "/" + "x" * 500}}
    env = [{"name": "A", "value": "b" * 500}] * 20
    return pod(*({"name": f"c{n}", "image": "i" * 200, "livenessProbe": probe, "env": env} for n in range(containers)))


def answer(body: bytes, settings: Injection = CLUSTER) -> dict[str, Any]:
    reply = review(body, settings)
    assert (reply.status, reply.type) == (200, "application/json"), reply.body
    data = json.loads(reply.body)
    assert (data["apiVersion"], data["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response: dict[str, Any] = data["response"]
    assert response["uid"] == "705ab4f5"
    return response


def patched(obj: dict[str, Any], response: dict[str, Any]) -> Any:
    assert response["patchType"] == "JSONPatch"
    return jsonpatch.apply_patch(json.loads(json.dumps(obj)), json.loads(base64.b64decode(response["patch"])))


def test_a_pod_that_is_created_gets_a_patch() -> None:
    response = answer(asked(pod()))
    assert response["allowed"] is True
    names = [one["name"] for one in patched(pod(), response)["spec"]["initContainers"]]
    assert names == ["tproxy-init", "tproxy-sidecar"]


@UNHURRIED
@given(PODS)
def test_the_webhook_does_what_the_command_line_does(given_pod: dict[str, Any]) -> None:
    response = answer(asked(given_pod))
    match inject(given_pod, Injection(key="705ab4f5")):
        case Patch(pod=wanted):
            assert patched(given_pod, response) == wanted
        case _:
            assert "patch" not in response


@pytest.mark.parametrize(
    "request_",
    [
        {"operation": "UPDATE"},
        {"operation": "DELETE", "object": None},
        {"operation": "CONNECT"},
        {"namespace": "kube-system"},
        {"namespace": "kube-public"},
        {"namespace": "kube-node-lease"},
        {"namespace": "tproxy-system"},
        {"resource": {"group": "apps", "version": "v1", "resource": "deployments"}},
        {"subResource": "ephemeralcontainers"},
        {"resource": None},
    ],
)
def test_everything_else_is_allowed_as_it_is(request_: dict[str, Any]) -> None:
    response = answer(asked(pod(), **request_))
    assert response["allowed"] is True
    assert "patch" not in response
    assert response["auditAnnotations"]["left-alone"]


def test_a_namespace_of_the_settings_is_left_alone_too() -> None:
    settings = Injection.parse({"neverIn": ["monitoring"], "namespace": "mesh"}, "settings")
    for namespace in ("monitoring", "mesh", "kube-system"):
        assert "patch" not in answer(asked(pod(), namespace=namespace), settings)
    assert "patch" in answer(asked(pod(), namespace="tproxy-system"), settings)


def test_a_dry_run_is_answered_like_any_other_and_a_repetition_too() -> None:
    assert answer(asked(pod())) == answer(asked(pod(), dryRun=True)) == answer(asked(pod()))


def test_an_injected_pod_comes_back_from_reinvocation_as_it_is_and_without_a_word() -> None:
    once = patched(pod(), answer(asked(pod())))
    again = answer(asked(once))
    assert "patch" not in again
    assert "warnings" not in again
    assert again["auditAnnotations"] == {"left-alone": "already injected"}


def test_a_refusal_names_namespace_pod_field_and_value() -> None:
    response = answer(
        asked({"metadata": {"generateName": "web-"}, **pod({"name": "a", "securityContext": {"runAsUser": 1337}})})
    )
    assert response["allowed"] is False
    assert response["status"]["code"] == 422
    said = "pod shop/web: spec.containers[0].securityContext.runAsUser: 1337: is the sidecar's"
    assert response["status"]["message"].startswith(said)


def test_a_pod_without_a_name_is_known_by_its_generator() -> None:
    obj = {"metadata": {"generateName": "web-7d-"}, "spec": {"containers": [{"name": 1}]}}
    assert answer(asked(obj))["status"]["message"].startswith("pod shop/web-7d-*: spec.containers[0].name: 1")


def test_the_nearest_name_is_looked_up_for_a_few_annotations_only() -> None:
    warnings = answer(asked(pod(annotations={f"tproxy.dev/mod{number}": "" for number in range(11)})))["warnings"]
    assert [line.endswith("did you mean 'tproxy.dev/mode'?") for line in warnings] == [True] * 8 + [False] * 3


def test_an_annotation_that_no_environment_could_hold_is_refused() -> None:
    ports = ",".join(["80"] * 6000)
    said = answer(asked(pod(annotations={"traffic.sidecar.istio.io/excludeInboundPorts": ports})))["status"]["message"]
    assert said.endswith("is longer than 16384 characters") and len(said) < 300
    assert answer(asked(pod(annotations={"example.org/ports": ports})))["allowed"]


def test_warnings_are_short_single_lines_and_few() -> None:
    annotations = {f"tproxy.dev/unknown{number}{'x' * 300}": "" for number in range(40)}
    warnings = answer(asked(pod(annotations=annotations)))["warnings"]
    assert len(warnings) == 12
    assert warnings[-1] == "tproxy: and 29 more"
    assert all(len(line.encode()) <= 256 and "\n" not in line for line in warnings)


def test_half_a_character_is_no_reason_to_fall_silent() -> None:
    half = {"metadata": {"annotations": {"tproxy.dev/\ud800": ""}}, "spec": {"containers": [{"name": "\ud800"}]}}
    assert answer(asked(half))["warnings"][0].startswith("tproxy: metadata.annotations: tproxy.dev/?: unknown")


def test_who_gets_no_sidecar_for_a_surprising_reason_is_told_so() -> None:
    assert answer(asked(pod(hostNetwork=True)))["warnings"] == [
        "tproxy: no sidecar: hostNetwork: the node's network is not the pod's to capture"
    ]
    opted_out = answer(asked(pod(annotations={"tproxy.dev/inject": "false"})))
    assert "warnings" not in opted_out
    assert "opted out" in opted_out["auditAnnotations"]["left-alone"]


def test_a_lifecycle_hook_shows_the_reviews_own_key() -> None:
    obj = pod({"name": "web", "lifecycle": {"preStop": {"httpGet": {"port": 80}}}})
    response = answer(asked(obj))
    assert "warnings" not in response
    hook = patched(obj, response)["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"]
    assert hook["httpHeaders"] == [{"name": "tproxy-key", "value": "705ab4f5"}]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "AdmissionReview: is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (asked(pod()).decode().encode("utf-16"), "is not JSON"),
        (b"[]", "AdmissionReview: kind: []: expected AdmissionReview"),
        (b"{}", "AdmissionReview: kind: expected AdmissionReview"),
        (
            b'{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1beta1"}',
            "did you mean 'admission.k8s.io/v1'?",
        ),
        (b'{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}', "request: expected a mapping"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (asked(pod(), uid=""), "request.uid: '': expected text"),
        (asked(pod(), operation=None), "request.operation: expected text"),
        (asked(pod(), namespace=7), "request.namespace: 7: expected text"),
    ],
)
def test_what_is_no_review_is_an_http_error_with_a_sentence(body: bytes, message: str) -> None:
    reply = review(body, CLUSTER)
    assert reply.status == 400
    assert message in reply.body.decode()


@pytest.mark.parametrize("depth", [100, 500, 900, 5000])
def test_a_review_that_is_nested_deeply_gets_an_answer(depth: int) -> None:
    nested = '{"a":' * depth + "1" + "}" * depth
    reply = review(asked(pod(deep="DEEP")).replace(b'"DEEP"', nested.encode()), CLUSTER)
    assert reply.status == (400 if depth == 5000 else 200)
    assert review(b'{"kind": %s}' % nested.encode(), CLUSTER).status == 400  # the answer shows what it was


COMMAS = 1_000_000 // 12
HOSTILE = {
    "unknown annotations": pod(annotations={f"tproxy.dev/{n:x}": "" for n in range(COMMAS // 2)}),
    "ports in two lists": pod(
        annotations={
            f"tproxy.dev/{way}InboundPorts": ",".join(str(n % 30_000 + first) for n in range(COMMAS))
            for way, first in (("include", 1), ("exclude", 30_001))
        }
    ),
    "ranges": pod(annotations={"tproxy.dev/excludeOutboundIPRanges": ",".join(["10.0.0.0/8"] * COMMAS)}),
    "names of many containers": pod(
        *({"name": f"{n:x}"} for n in range(COMMAS // 2)),
        annotations={"tproxy.dev/netRaw": ",".join(f"{n:x}" for n in range(2000))},
    ),
    "a long word": pod(annotations={"tproxy.dev/mode": "ab" * 1_000_000}),
    "a long name": pod(annotations={f"tproxy.dev/{'mo' * 1_000_000}": "strict"}),
    "many environments": pod({"name": "web", "env": [{}] * 300_000}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_megabyte_costs_grows_with_its_length_and_not_with_its_square(name: str) -> None:
    body = asked(HOSTILE[name])
    assert _seconds(body) < 2, name  # it was 3 to 40 s


def test_a_word_that_fills_a_review_is_not_compared_with_the_right_one() -> None:
    began = time.process_time()
    reply = review(b'{"kind": "AdmissionReview", "apiVersion": "%s"}' % (b"ab" * 2_900_000), CLUSTER)
    assert reply.status == 400 and "did you mean" not in reply.body.decode()
    assert time.process_time() - began < 0.3


def test_a_huge_review_is_not_read() -> None:
    assert review(b" " * (LIMIT + 1), CLUSTER).status == 413


def test_a_pod_that_is_none_is_refused() -> None:
    assert answer(asked("web"))["status"]["message"] == "AdmissionReview: request.object: expected a pod"


@UNHURRIED
@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_get_an_answer(body: bytes) -> None:
    assert isinstance(review(body, CLUSTER), Reply)


@UNHURRIED
@given(st.dictionaries(st.sampled_from(["uid", "operation", "namespace", "name", "resource", "object"]), JSON))
def test_any_request_gets_an_answer(request_: dict[str, Any]) -> None:
    assert review(asked(pod(), **request_), CLUSTER).status in (200, 400)


def test_a_huge_pod_is_answered_within_50_ms() -> None:
    body = asked(large(50))
    assert len(body) > 500_000
    best = min(_seconds(body) for _ in range(5))
    assert best < 0.05, f"{best * 1000:.1f} ms"


def _seconds(body: bytes) -> float:
    began = time.process_time()  # not the neighbours'
    assert review(body, CLUSTER).status == 200
    return time.process_time() - began
