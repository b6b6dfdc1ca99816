"""The trust bundle as ``caBundle`` of our MutatingWebhookConfiguration: without it no API server believes the webhook.

Rights needed: get and patch of that one object.
"""

from __future__ import annotations

import base64
from typing import Any

from tproxy.kube.api_server import JSON_PATCH, Api, ApiError, failed

PATH = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/"
TRIES = 4  # others may write at the same moment
RULE = "get and patch of mutatingwebhookconfigurations"


async def publish(api: Api, name: str, bundle: str) -> bool:
    """Whether something had to be changed. ApiError if it cannot be."""
    for _ in range(TRIES):
        found = await api.get(PATH + name)
        if found.status != 200:
            raise failed(found, f"reading the MutatingWebhookConfiguration {name}", RULE)
        patch = changes(found.body, bundle)
        if not patch:
            return False
        reply = await api.patch(PATH + name, patch, JSON_PATCH)
        if reply.status == 200:
            return True
        if reply.status not in (409, 422):  # a conflict; a test that failed (apiserver, handlers/patch.go)
            break
    raise failed(reply, f"patching the MutatingWebhookConfiguration {name}", RULE)


def changes(found: dict[str, Any], bundle: str) -> list[dict[str, Any]]:
    """A JSON Patch that holds for what was read and for nothing newer; empty if all is well."""
    value, webhooks = base64.b64encode(bundle.encode()).decode(), found.get("webhooks") or []
    try:
        held = [webhook["clientConfig"].get("caBundle") for webhook in webhooks]
        version = found["metadata"]["resourceVersion"]
    except (TypeError, KeyError, AttributeError) as error:
        raise ApiError("the MutatingWebhookConfiguration has not the form of one") from error
    if not held:
        raise ApiError("the MutatingWebhookConfiguration has no webhooks: apply the manifests again")
    patch = [
        {"op": "add", "path": f"/webhooks/{index}/clientConfig/caBundle", "value": value}
        for index, one in enumerate(held)
        if one != value
    ]
    return [{"op": "test", "path": "/metadata/resourceVersion", "value": version}, *patch] if patch else []
