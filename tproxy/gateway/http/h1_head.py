"""Heads of HTTP/1.1 messages: llhttp reads them, and what two readers could take for two different things is refused.

llhttp refuses already: bare CR or LF, NUL, folded lines, blanks before a colon, Content-Length twice, with a sign or
beside Transfer-Encoding, codings after ``chunked``. Here: what it lets through (RFC 9112, 3 and 6; RFC 9110, 7).

    match request_head(raw, "https"):
        case Refusal(status, why): ...
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import httptools

from tproxy.core.http.head import Head, Headers, Reply

HEAD_LIMIT: Final = 60 * 1024  # bytes; Envoy's max_request_headers_kb
LINE_LIMIT: Final = 16 * 1024  # of the first line
COUNT_LIMIT: Final = 100  # headers, as Envoy's max_headers_count
BLANK: Final = b"\r\n\r\n"
# RFC 9110, 7.6.1: of one connection. Expect is answered here; what becomes of TE is said below.
_HOP: Final = frozenset(
    ("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te", "http2-settings")
)
_SPECIAL: Final = _HOP | {"host", "content-length", "expect"}
# are no headers to take away
_KEPT: Final = frozenset(("host", "content-length", "te", "close", "keep-alive", "upgrade"))
_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~!$&'()*+,;=%-]{1,255})(:[0-9]{0,5})?")
_ABSOLUTE: Final = re.compile(r"(https?)://([^/?#]+)(.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the client is answered, and why, for the log."""

    status: int
    why: str


@dataclass(slots=True)
class Request:
    """A request's head; ``length`` is its body's, -1 for chunked."""

    head: Head
    length: int
    keep: bool
    expects: bool

    def again(self) -> Head:
        """The same for a request of the same bytes: clients say the same many times on one connection."""
        head = self.head
        return Head(
            head.method, head.scheme, head.authority, head.target, list(head.headers), head.version, head.upgrade
        )


@dataclass(slots=True)
class Response:
    """A response's head; ``length`` is what it says of its body: -1 chunked, -2 nothing."""

    reply: Reply
    length: int
    keep: bool
    upgrade: str


class _Fields:
    """What llhttp calls back with, and what the fields of the connection say together."""

    __slots__ = ("close", "count", "expect", "headers", "host", "length", "options", "special", "target", "upgrade")

    def __init__(self) -> None:
        self.count, self.target = 0, b""
        self.headers: Headers = []
        self.special: list[tuple[str, bytes]] = []
        self.host: list[bytes] = []
        self.length = -2  # -1: chunked, -2: not said
        self.close = False
        self.expect = b""
        self.options: list[str] = []
        self.upgrade = ""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.count += 1
        known = _NAMES.get(name) or _learned(name)
        if known in _SPECIAL:
            self.special.append((known, value.strip(b" \t")))
        else:
            self.headers.append((known, value.decode("latin-1").strip(" \t")))


_NAMES: Final[dict[bytes, str]] = {}  # header names as they come, to lower case


def _learned(name: bytes) -> str:
    """Few names are in use; a client that invents more makes us forget."""
    if len(_NAMES) >= 1024:
        _NAMES.clear()
    made = name.lower().decode()
    if len(name) <= 64:
        _NAMES[name] = made
    return made


def request_head(raw: bytes, scheme: str) -> Request | Refusal:
    """``raw`` ends with the empty line."""
    line = raw.find(b"\r\n")
    if line > LINE_LIMIT:
        return Refusal(414, f"the request line has {line} bytes")
    fields = _Fields()
    parser = httptools.HttpRequestParser(fields)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:  # CONNECT, or an Upgrade header: what follows it is not HTTP to llhttp
        pass
    except httptools.HttpParserError as error:
        return Refusal(505 if "HTTP version" in str(error) else 400, str(error))
    if raw.count(b" ", 0, line) != 2:
        return Refusal(400, "the request line has more than two blanks")
    if fields.count > COUNT_LIMIT:
        return Refusal(431, f"{fields.count} headers")
    method = parser.get_method().decode()
    if method == "CONNECT":
        return Refusal(405, "CONNECT")
    if (version := parser.get_http_version()) != "1.1":
        return Refusal(426 if version < "1.1" else 505, f"HTTP/{version}")
    if (refused := _framing(fields)) is not None:
        return refused
    if fields.expect and fields.expect.lower() != b"100-continue":
        return Refusal(417, "an expectation other than 100-continue")
    head = _request(method, scheme, fields)
    if isinstance(head, Refusal):
        return head
    length = 0 if fields.length == -2 else fields.length
    if head.upgrade and length:
        return Refusal(400, "a body before an upgrade")
    return Request(head, length, not fields.close, length != 0 and fields.expect != b"")


def _request(method: str, scheme: str, fields: _Fields) -> Head | Refusal:
    if len(fields.host) != 1:
        return Refusal(400, "no Host header" if not fields.host else "two Host headers")
    authority, target = fields.host[0].decode("latin-1"), fields.target.decode("latin-1")
    if not _AUTHORITY.fullmatch(authority):
        return Refusal(400, "Host is malformed")
    if not target.startswith("/"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is not None:
            if absolute[2].lower() != authority.lower():
                return Refusal(400, "the target's host is not the Host header's")
            target = absolute[3] if absolute[3].startswith("/") else f"/{absolute[3]}"
        elif target != "*" or method != "OPTIONS":
            return Refusal(400, "the target is neither a path nor a URL")
    if "#" in target:
        return Refusal(400, "the target has a fragment")
    upgrade = "websocket" if fields.upgrade.lower() == "websocket" and method == "GET" else ""
    return Head(method, scheme, authority, target, fields.headers, "HTTP/1.1", upgrade)


def response_head(raw: bytes) -> Response | str:
    """``raw`` ends with the empty line; a text says what is wrong with it."""
    fields = _Fields()
    parser = httptools.HttpResponseParser(fields)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        return str(error)
    if fields.count > COUNT_LIMIT:
        return f"{fields.count} headers"
    refused, status = _framing(fields), parser.get_status_code()
    if refused is not None:
        return refused.why
    if not 100 <= status <= 599:
        return f"the status is {status}"
    version = parser.get_http_version()
    if version not in {"1.0", "1.1"}:
        return f"it is HTTP/{version}"
    old = version == "1.0"
    if old and fields.length == -1:
        return "chunked in HTTP/1.0"
    keep = not fields.close and not old
    return Response(Reply(status, fields.headers), fields.length, keep, fields.upgrade.lower())


def _framing(fields: _Fields) -> Refusal | None:
    """How long the body is and what becomes of the connection. Fields of one connection are left out of the headers."""
    upgrade = ""
    for name, value in fields.special:
        if name == "host":
            fields.host.append(value)
        elif name in {"content-length", "transfer-encoding"}:
            if fields.length != -2:
                return Refusal(400, "Content-Length or Transfer-Encoding twice, or both")
            if (why := _length(fields, name, value)) is not None:
                return Refusal(400, why)
        elif name == "connection":
            fields.options += [option.strip(" \t").lower() for option in value.decode("latin-1").split(",")]
        elif name == "upgrade":
            upgrade = value.decode("latin-1")
        elif name == "expect":
            fields.expect = value
        elif name == "te" and any(part.strip(b" \t").lower() == b"trailers" for part in value.split(b",")):
            fields.headers.append(("te", "trailers"))
    if fields.options:
        fields.close = "close" in fields.options
        fields.upgrade = upgrade if "upgrade" in fields.options else ""
        _drop(fields)
    return None


def _length(fields: _Fields, name: str, value: bytes) -> str | None:
    if name == "transfer-encoding":
        fields.length = -1
        return None if value.lower() == b"chunked" else "Transfer-Encoding is not chunked"
    if not value.isdigit() or len(value) > 18:
        return "Content-Length is not a number"
    fields.length = int(value)
    fields.headers.append(("content-length", str(fields.length)))
    return None


def _drop(fields: _Fields) -> None:
    """What Connection names belongs to the connection, except what says where the message goes and where it ends."""
    gone = {option for option in fields.options if option not in _KEPT}
    if gone:
        fields.headers[:] = [pair for pair in fields.headers if pair[0] not in gone]


def head_lines(first: str, headers: Headers, more: str) -> bytes | None:
    """The bytes of a head; None where a name or value would make more lines than it should, which nobody may send.

    ``first`` and ``more`` are lines of ours, each with its end.
    """
    parts = [first]
    for name, value in headers:
        parts.append(f"{name}: {value}\r\n")
    parts.append(more)
    parts.append("\r\n")
    text = "".join(parts)
    lines = len(headers) + first.count("\n") + more.count("\n") + 1
    if text.count("\n") != lines or text.count("\r") != lines or "\0" in text:
        return None
    return text.encode("latin-1", "replace")
