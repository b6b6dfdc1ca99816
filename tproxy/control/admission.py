"""AdmissionReview bytes to the answer for the API server: pure, so dry runs and repetitions cost nothing.

Only CREATE of pods is answered with a patch; everything else, and every pod in the cluster's and our own namespaces, is
allowed as it is. What cannot be understood is no review: it gets an HTTP error, on which ``failurePolicy: Fail`` keeps
the pod out. Sources: kubernetes.io "Dynamic Admission Control"; admission.k8s.io/v1.

>>> review(b"{}", Injection()).status
400
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from tproxy.core.fields import ConfigError
from tproxy.core.inject.injection import Injection
from tproxy.core.inject.pod import Patch, Refusal, Result, Skip, inject

API = "admission.k8s.io/v1"
LIMIT = 6 << 20  # bytes: the API server takes objects of 3 MiB, and a review may hold two
WARNINGS, WARNING = 12, 250  # how many and how long: the API server cuts at 256 bytes each, 4096 together
_QUIET = "already injected"


@dataclass(frozen=True, slots=True)
class Reply:
    """HTTP status and body."""

    status: int
    body: bytes
    type: str = "application/json"
    did: str = "unreadable"  # or injected, left alone, refused: for the record, as what follows
    why: str = ""
    pod: str = ""
    uid: str = ""


def review(body: bytes, settings: Injection) -> Reply:
    """Answer one request."""
    if len(body) > LIMIT:
        return Reply(413, f"an AdmissionReview of more than {LIMIT} bytes is not read\n".encode(), "text/plain")
    try:
        request = _request(body)
        result = _decide(request, settings)
        answer = {"uid": request["uid"], **_answer(result)}
        body = json.dumps({"apiVersion": API, "kind": "AdmissionReview", "response": answer}).encode()
    except ConfigError as error:
        return Reply(400, f"{error}\n".encode(), "text/plain; charset=utf-8")
    except RecursionError:  # the parser goes deeper than what walks over its result
        return Reply(400, b"AdmissionReview: is nested too deeply\n", "text/plain")
    did, why = _did(result)
    return Reply(200, body, did=did, why=why, pod=_pod(request), uid=request["uid"])


def _request(body: bytes) -> Mapping[str, Any]:
    """The request inside the review, with the parts that we read. ConfigError says what is wrong."""
    where = "AdmissionReview"
    try:
        data = json.loads(body.decode(), parse_constant=_no_number)  # UTF-8 and no other (RFC 8259, 8.1)
    except (ValueError, RecursionError) as error:
        raise ConfigError(where, "", f"is not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("kind") != "AdmissionReview":
        raise ConfigError(
            where, "kind", "expected AdmissionReview", data.get("kind") if isinstance(data, dict) else data
        )
    if data.get("apiVersion") != API:
        raise ConfigError(where, "apiVersion", f"expected {API}", data.get("apiVersion"), [API])
    request = data.get("request")
    if not isinstance(request, dict):
        raise ConfigError(where, "request", "expected a mapping", request)
    for key in ("uid", "operation"):
        if not isinstance(request.get(key), str) or not request[key]:
            raise ConfigError(where, f"request.{key}", "expected text", request.get(key))
    if not isinstance(request.get("namespace", ""), str):
        raise ConfigError(where, "request.namespace", "expected text", request["namespace"])
    return request


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _decide(request: Mapping[str, Any], settings: Injection) -> Result:
    """What is to be done, as for a file, within the webhook's bounds."""
    namespace, pod = request.get("namespace") or "", request.get("object")
    if request["operation"] != "CREATE":
        return Skip(f"{request['operation']}: only CREATE is changed")
    resource = request.get("resource")
    if resource != {"group": "", "version": "v1", "resource": "pods"} or request.get("subResource"):
        return Skip("not a pod")
    if namespace in (*settings.never, settings.namespace):
        return Skip(f"namespace {namespace}: never injected, so that the cluster and the injector can start")
    if not isinstance(pod, dict):
        return Refusal("AdmissionReview: request.object: expected a pod")
    return inject(pod, replace(settings, key=request["uid"]), f"pod {_pod(request)}")


def _pod(request: Mapping[str, Any]) -> str:
    """A pod that is being created has often no name yet, and never its namespace."""
    pod = request.get("object")
    meta = pod.get("metadata") if isinstance(pod, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    name = request.get("name") or meta.get("name") or f"{meta.get('generateName') or ''}*"
    return f"{request.get('namespace') or 'default'}/{name}"


def _did(result: Result) -> tuple[str, str]:
    match result:
        case Patch():
            return "injected", ""
        case Skip(reason):
            return "left alone", reason
        case Refusal(reason):
            return "refused", reason


def _answer(result: Result) -> dict[str, Any]:
    match result:
        case Patch(operations, _, warnings):
            patch = base64.b64encode(json.dumps(operations).encode()).decode()
            return {"allowed": True, "patchType": "JSONPatch", "patch": patch, **_warned(warnings)}
        case Skip(reason):  # said in the audit log always, to people only where they might wonder
            said = () if reason == _QUIET else (f"no sidecar: {reason}",)
            worth = said if reason.startswith(("hostNetwork", "Windows", "no containers")) else ()
            return {"allowed": True, "auditAnnotations": {"left-alone": reason}, **_warned(worth)}
        case Refusal(reason):
            status = {"code": 422, "reason": "Invalid", "message": reason}
            return {"allowed": False, "status": status, "auditAnnotations": {"refused": reason}}


def _warned(warnings: tuple[str, ...]) -> dict[str, Any]:
    """Each on one line and short; when there are too many, the last says how many more."""
    lines = [_cut(" ".join(warning.split())) for warning in warnings]
    if len(lines) > WARNINGS:
        lines = [*lines[: WARNINGS - 1], f"and {len(lines) - WARNINGS + 1} more"]
    return {"warnings": [f"tproxy: {line}" for line in lines]} if lines else {}


def _cut(line: str) -> str:
    data = line.encode("utf-8", "replace")  # JSON can spell half a character
    most = WARNING - len("tproxy: ")
    return data.decode() if len(data) <= most else data[: most - 3].decode("utf-8", "ignore") + "..."
