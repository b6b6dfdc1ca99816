"""Whether a request that failed is tried again. PURE. Words: Envoy's x-envoy-retry-on and x-envoy-retry-grpc-on."""

from __future__ import annotations

from tproxy.core.http.filters import Retry
from tproxy.core.http.head import Reply

# Envoy's names for what happened, and the words of a policy that mean it
_CONNECT = frozenset({"connect-failure", "gateway-error", "5xx", "reset-before-request", "reset"})
_REFUSED = frozenset({"refused-stream", "reset-before-request", "reset", "5xx", "gateway-error"})
_RESET = frozenset({"reset", "5xx", "gateway-error"})
_GRPC = {1: "cancelled", 4: "deadline-exceeded", 13: "internal", 8: "resource-exhausted", 14: "unavailable"}
_GATEWAY = (502, 503, 504)


def after_connect(retry: Retry) -> bool:
    """No connection could be had."""
    return bool(_CONNECT & retry.on)


def after_refused(retry: Retry) -> bool:
    """The backend said that it has not looked at it."""
    return bool(_REFUSED & retry.on)


def after_reset(retry: Retry) -> bool:
    """The connection or stream ended before an answer began."""
    return bool(_RESET & retry.on)


def after_timeout(retry: Retry) -> bool:
    """A try took too long: Envoy counts that as a 504."""
    return bool(_RESET & retry.on) or 504 in retry.codes


def after_reply(retry: Retry, reply: Reply, end: bool) -> bool:
    """An answer came, and it is not liked; gRPC's status stands in its head only where that is all of it."""
    status = reply.status
    if status in retry.codes or (status >= 500 and "5xx" in retry.on):
        return True
    if status in _GATEWAY and "gateway-error" in retry.on:
        return True
    if status == 409 and "retriable-4xx" in retry.on:
        return True
    if not end:
        return False
    number = next((value for name, value in reply.headers if name == "grpc-status"), "")
    return number.isdecimal() and _GRPC.get(int(number[:3]), "-") in retry.on
