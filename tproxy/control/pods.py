"""Which pod a service account token belongs to, and whether the caller is that pod (TokenReview, then the pod itself).

A token proves the caller's pod only if it was projected into it: then the review's ``extra`` names the pod's name and
uid, and the pod must exist, run, and have the address that the call comes from. There a copied token fails.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from tproxy.control.refusal import Refused, Why
from tproxy.core.address import Address, parse_address
from tproxy.kube.api_server import Api, ApiError, Reply, connected
from tproxy.kube.where import Kubernetes

_USER = re.compile(r"system:serviceaccount:([a-z0-9.-]{1,253}):([a-z0-9.-]{1,253})")
_JWT = re.compile(r"[\w-]{2,}\.[\w-]{2,}\.[\w-]{2,}")  # RFC 7515, compact
_EXTRA = "authentication.kubernetes.io/"


@dataclass(frozen=True, slots=True)
class Pod:
    """A running pod that the caller has proven to be."""

    namespace: str
    name: str
    uid: str
    service_account: str
    node: str


def glance(token: str, audience: str, now: float) -> Refused | None:
    """What a token says of itself, believed only when it speaks against itself: the API server is spared such ones."""
    try:
        if not _JWT.fullmatch(token):
            raise ValueError("not three parts")
        middle = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        until = claims.get("exp", now + 1) if isinstance(claims, dict) else None
        if not isinstance(until, int | float):
            raise ValueError("no claims")
    except (ValueError, RecursionError):
        return Refused(Why.NOT_A_TOKEN, "what was sent is neither a JWT nor a join token")
    if until <= now:
        return Refused(Why.TOKEN_EXPIRED, f"the token expired {min(now - until, 1e9):.0f} s ago")
    said = claims.get("aud", audience)
    if audience not in (said if isinstance(said, list) else [said]):
        return Refused(Why.WRONG_AUDIENCE, f"the token is not for the audience {audience}")
    return None


async def identify(where: Kubernetes, token: str, audience: str, address: Address | None) -> Pod | Refused:
    """The pod that holds this token and calls from this address."""
    try:
        async with connected(where) as api:
            found = await _review(api, token, audience)
            if isinstance(found, Refused):
                return found
            return await _pod(api, found, address if where.check_address else None)
    except ApiError as error:
        return Refused(Why.API_SERVER, str(error))


async def runs_on(where: Kubernetes, node: str, namespace: str, service_account: str) -> bool | Refused:
    """Whether a pod of this service account runs on the node: what ztunnel may ask for."""
    query = urlencode({"fieldSelector": f"spec.nodeName={node}"})
    try:
        async with connected(where) as api:
            reply = await api.get(f"/api/v1/namespaces/{quote(namespace, safe='')}/pods?{query}")
    except ApiError as error:
        return Refused(Why.API_SERVER, str(error))
    if reply.status != 200:
        return _unexpected(reply, "list pods")
    items = reply.body.get("items")
    pods = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return any(
        _dict(pod, "spec").get("serviceAccountName") == service_account
        and _dict(pod, "spec").get("nodeName") == node
        and not _is_over(pod)
        for pod in pods
    )


async def _review(api: Api, token: str, audience: str) -> Pod | Refused:
    question = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    }
    reply = await api.post("/apis/authentication.k8s.io/v1/tokenreviews", question)
    if reply.status not in (200, 201):
        return _unexpected(reply, "create tokenreviews")
    status = _dict(reply.body, "status")
    if status.get("authenticated") is not True:
        said = re.sub(r"[^ -~]", "?", str(status.get("error") or "no reason given")).replace(token, "(token)")
        return Refused(Why.NOT_AUTHENTICATED, f"the API server does not know the token: {said[:200]}")
    audiences = status.get("audiences")
    if not isinstance(audiences, list) or audience not in audiences:
        return Refused(Why.WRONG_AUDIENCE, f"the token is not for the audience {audience}")
    user = _dict(status, "user")
    name = str(user.get("username"))[:600]
    found = _USER.fullmatch(name)
    if not found:
        return Refused(Why.NOT_A_POD, "the token is a person's or a node's, not a service account's", name)
    extra = _dict(user, "extra")
    pod, uid = _only(extra, "pod-name"), _only(extra, "pod-uid")
    if not pod or not uid:
        return Refused(Why.NOT_A_POD, "the token is not bound to a pod", name)
    return Pod(found[1], pod, uid, found[2], "")


async def _pod(api: Api, said: Pod, address: Address | None) -> Pod | Refused:
    """The pod as the API server knows it now, compared with what the token says."""
    who = f"{said.namespace}/{said.name}"
    reply = await api.get(f"/api/v1/namespaces/{quote(said.namespace, safe='')}/pods/{quote(said.name, safe='')}")
    if reply.status == 404:
        return Refused(Why.POD_GONE, "the pod of this token is deleted", who)
    if reply.status != 200:
        return _unexpected(reply, "get pods")
    spec, status = _dict(reply.body, "spec"), _dict(reply.body, "status")
    if _dict(reply.body, "metadata").get("uid") != said.uid:
        return Refused(Why.POD_GONE, "another pod has this name now: the token's was deleted", who)
    if spec.get("serviceAccountName") != said.service_account:
        return Refused(Why.REPLAYED, "the pod has another service account than the token", who)
    if _is_over(reply.body):
        return Refused(Why.POD_GONE, f"the pod has ended ({status.get('phase')})", who)
    if address is not None:
        own = _addresses(spec, status)
        if not own:
            return Refused(Why.NO_ADDRESS_YET, "the API server does not know the pod's address yet", who)
        if address not in own:
            why = f"the call comes from {address}, and the pod has {', '.join(map(str, sorted(own, key=str)))}"
            return Refused(Why.REPLAYED, why, who)
    return Pod(said.namespace, said.name, said.uid, said.service_account, str(spec.get("nodeName") or ""))


def _addresses(spec: dict[str, Any], status: dict[str, Any]) -> set[Address]:
    """The pod's addresses; a pod on the host's network has the node's."""
    host = spec.get("hostNetwork") is True
    many, one = ("hostIPs", "hostIP") if host else ("podIPs", "podIP")
    listed = status.get(many)
    entries = [entry.get("ip") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return {parse_address(text) for text in [*entries, status.get(one)] if isinstance(text, str) and text}


def _is_over(pod: dict[str, Any]) -> bool:
    return _dict(pod, "status").get("phase") in ("Succeeded", "Failed")


def _unexpected(reply: Reply, right: str) -> Refused:
    may = f"; the CA's service account may not {right}" if reply.status in (401, 403) else ""
    return Refused(Why.API_SERVER, f"the API server answers {reply.status}{may}")


def _dict(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _only(extra: dict[str, Any], key: str) -> str:
    """The one value of an entry of ``extra``, or nothing."""
    found = extra.get(_EXTRA + key)
    return found[0] if isinstance(found, list) and len(found) == 1 and isinstance(found[0], str) else ""
