"""Whose token it is, as the token itself says: a hint for a request, never a proof. PURE.

Kubernetes signs service account tokens as JWTs (RFC 7519) with ``sub: system:serviceaccount:<namespace>:<name>``.

>>> service_account("not.a.token") is None
True
"""

from __future__ import annotations

import base64
import binascii
import json

from tproxy.core.identity import SpiffeId

_SUBJECT = "system:serviceaccount:"
LIMIT = 12 * 1024  # bytes; gRPC servers refuse more than 16 KiB of headers


def service_account(token: str) -> tuple[str, str] | None:
    """Namespace and name of the service account that a JWT speaks of; None if it is not such a token."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.b64decode(parts[1] + "=" * (-len(parts[1]) % 4), b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        return None
    subject = claims.get("sub") if isinstance(claims, dict) else None
    if not isinstance(subject, str) or not subject.startswith(_SUBJECT):
        return None
    namespace, colon, name = subject.removeprefix(_SUBJECT).partition(":")
    return (namespace, name) if namespace and colon and name else None


def workload_of(token: str, trust_domain: str) -> SpiffeId | None:
    """The id that Istio gives to the token's service account."""
    found = service_account(token)
    try:
        return SpiffeId.workload(trust_domain, *found) if found else None
    except ValueError:
        return None
