"""Answers of our own in the words of gRPC: its clients want a status in trailers, not HTTP's. PURE.

>>> ask = Head("POST", "https", "a", "/x.Y/Z", [("content-type", "application/grpc+proto")])
>>> is_grpc(ask)
True
>>> answer(Reply(404, [("server", "istio-envoy")]), "no rule").headers
[('server', 'istio-envoy'), ('content-type', 'application/grpc'), ('grpc-status', '12'), ('grpc-message', 'no rule')]
"""

from __future__ import annotations

from tproxy.core.http import Head, Reply

TYPE = "application/grpc"
INTERNAL, UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED, UNAVAILABLE, UNKNOWN = 13, 16, 7, 12, 14, 2
# grpc, doc/http-grpc-status-mapping.md
_STATUS = {
    400: INTERNAL,
    401: UNAUTHENTICATED,
    403: PERMISSION_DENIED,
    404: UNIMPLEMENTED,
    **dict.fromkeys((429, 502, 503, 504), UNAVAILABLE),
}
_OF_THE_BODY = frozenset(("content-type", "content-length", "transfer-encoding"))


def is_grpc(head: Head) -> bool:
    """Whether a request is gRPC; gRPC-Web is not, its clients read HTTP's status."""
    kind = next((value for name, value in head.headers if name == "content-type"), "")
    return kind.startswith(TYPE) and kind[len(TYPE) :][:1] in {"", "+", ";"}


def answer(reply: Reply, message: str) -> Reply:
    """What stands for an answer of ours with this text as its body: a head that is all of it (Trailers-Only)."""
    kept = [field for field in reply.headers if field[0] not in _OF_THE_BODY]
    said = [("grpc-message", _percent(message))] if message else []
    status = str(_STATUS.get(reply.status, UNKNOWN))
    return Reply(200, [*kept, ("content-type", TYPE), ("grpc-status", status), *said])


def _percent(message: str) -> str:
    """``Percent-Encoded`` of gRPC's PROTOCOL-HTTP2: printable ASCII but the per cent sign stays."""
    return "".join(chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x25 else f"%{byte:02X}" for byte in message.encode())
