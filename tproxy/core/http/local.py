"""Answers that no backend gave: the reply with its headers, for gRPC clients as gRPC's status, and why for the record.

PURE. Sources: Envoy's local replies (RESPONSE_FLAGS in its access log documentation); grpc's http-grpc-status-mapping.
"""

from __future__ import annotations

from dataclasses import dataclass

from tproxy.core.http.filters import Flavour
from tproxy.core.http.head import Head, Headers, Reply
from tproxy.core.percent import quoted

_GRPC = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
_UNKNOWN = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client is told at once. ``flags`` are Envoy's response flags, ``why`` is for people."""

    reply: Reply
    body: bytes
    rule: str
    flags: str
    why: str
    delay: float = 0.0  # seconds before it is sent
    details: str = ""  # as Envoy's access log has them, where the flags do not say it


def is_grpc(head: Head) -> bool:
    """By its content type; gRPC-Web is something else."""
    for name, value in head.headers:
        if name == "content-type":
            return value == "application/grpc" or value.startswith(("application/grpc+", "application/grpc;"))
    return False


def local(
    head: Head,
    flavour: Flavour,
    status: int,
    *,
    body: bytes = b"",
    headers: Headers | None = None,
    rule: str = "",
    flags: str = "",
    why: str = "",
    grpc_status: int | None = None,
    delay: float = 0.0,
    details: str = "",
) -> Answer:
    """An answer in the form that the client reads: for gRPC trailers only, with status 200."""
    made: Headers = list(headers or ())
    if is_grpc(head) and status not in range(300, 400):
        number = _GRPC.get(status, _UNKNOWN) if grpc_status is None else grpc_status
        made += [("content-type", "application/grpc"), ("grpc-status", str(number))]
        if text := body.decode(errors="replace") or (why if status < 500 else ""):
            made.append(("grpc-message", quoted(text)))
        status, body = 200, b""
    else:
        if body:
            made.append(("content-type", "text/plain"))
        if status not in (204, 304):
            made.append(("content-length", str(len(body))))
    if flavour is Flavour.ISTIO:
        made.append(("server", "istio-envoy"))
    return Answer(Reply(status, made), b"" if head.method == "HEAD" else body, rule, flags, why, delay, details)
