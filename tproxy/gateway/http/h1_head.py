"""Heads of HTTP/1.1 messages: llhttp reads them, and what two readers could take for two different things is refused.

llhttp refuses already: bare CR or LF, NUL, folded lines, blanks before a colon, Content-Length twice, with a sign or
beside Transfer-Encoding, codings after ``chunked``. Here: what it lets through (RFC 9112, 3 and 6; RFC 9110, 7).

    match request_head(raw, "https"):
        case Refusal(status, why): ...
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import httptools

from tproxy.core.http import Head, Headers, Reply

HEAD_LIMIT = 60 * 1024  # bytes; Envoy's max_request_headers_kb
LINE_LIMIT = 16 * 1024  # of the first line
COUNT_LIMIT = 100  # headers, as Envoy's max_headers_count
BLANK = b"\r\n\r\n"
# RFC 9110, 7.6.1: of one connection. Expect is answered here; what becomes of TE is said below.
_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te", b"http2-settings")
)
_SPECIAL = _HOP | {b"host", b"content-length", b"expect"}
_KEPT = frozenset(("host", "content-length", "te", "close", "keep-alive", "upgrade"))  # are no headers to take away
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~!$&'()*+,;=%-]{1,255})(:[0-9]{0,5})?")
_ABSOLUTE = re.compile(r"(https?)://([^/?#]+)(.*)", re.IGNORECASE)


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


@dataclass(slots=True)
class Response:
    """A response's head; ``length`` is what it says of its body: -1 chunked, -2 nothing."""

    reply: Reply
    length: int
    keep: bool
    upgrade: str


class _Fields:
    """What llhttp calls back with."""

    __slots__ = ("count", "headers", "special", "target")

    def __init__(self) -> None:
        self.count, self.target = 0, b""
        self.headers: Headers = []
        self.special: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.count += 1
        if name in _SPECIAL:
            self.special.append((name, value.strip(b" \t")))
        else:
            self.headers.append((name.decode(), value.decode("latin-1").strip(" \t")))


@dataclass(slots=True)
class _Framing:
    """What the special fields say together."""

    host: list[bytes]
    length: int = -2
    close: bool = False
    upgrade: str = ""
    expect: bytes = b""


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
    if parser.get_http_version() != "1.1":
        return Refusal(426, f"HTTP/{parser.get_http_version()}")
    framing = _framing(fields)
    if isinstance(framing, Refusal):
        return framing
    if framing.expect and framing.expect.lower() != b"100-continue":
        return Refusal(417, "an expectation other than 100-continue")
    head = _request(method, scheme, fields, framing)
    if isinstance(head, Refusal):
        return head
    length = max(framing.length, 0) if framing.length != -1 else -1
    if head.upgrade and length:
        return Refusal(400, "a body before an upgrade")
    return Request(head, length, not framing.close, bool(framing.expect) and length != 0)


def _request(method: str, scheme: str, fields: _Fields, framing: _Framing) -> Head | Refusal:
    if len(framing.host) != 1:
        return Refusal(400, "no Host header" if not framing.host else "two Host headers")
    authority, target = framing.host[0].decode("latin-1"), fields.target.decode("latin-1")
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
    upgrade = "websocket" if framing.upgrade.lower() == "websocket" and method == "GET" else ""
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
    framing, status = _framing(fields), parser.get_status_code()
    if isinstance(framing, Refusal):
        return framing.why
    if not 100 <= status <= 599:
        return f"the status is {status}"
    old = parser.get_http_version() == "1.0"
    if old and framing.length == -1:
        return "chunked in HTTP/1.0"
    keep = not framing.close and not old
    return Response(Reply(status, fields.headers), framing.length, keep, framing.upgrade.lower())


def _framing(fields: _Fields) -> _Framing | Refusal:
    """How long the body is and what becomes of the connection. Fields of one connection are left out of the headers."""
    found = _Framing([])
    options = list[str]()
    upgrade = ""
    for name, value in fields.special:
        match name:
            case b"host":
                found.host.append(value)
            case b"content-length" | b"transfer-encoding":
                if found.length != -2:
                    return Refusal(400, "Content-Length or Transfer-Encoding twice, or both")
                if (why := _length(found, name, value, fields)) is not None:
                    return Refusal(400, why)
            case b"connection":
                options += [option.strip(" \t").lower() for option in value.decode("latin-1").split(",")]
            case b"upgrade":
                upgrade = value.decode("latin-1")
            case b"expect":
                found.expect = value
            case b"te" if any(part.strip(b" \t").lower() == b"trailers" for part in value.split(b",")):
                fields.headers.append(("te", "trailers"))
    if options:
        found.close = "close" in options
        found.upgrade = upgrade if "upgrade" in options else ""
        _drop(fields, options)
    return found


def _length(found: _Framing, name: bytes, value: bytes, fields: _Fields) -> str | None:
    if name == b"transfer-encoding":
        found.length = -1
        return None if value.lower() == b"chunked" else "Transfer-Encoding is not chunked"
    if not value.isdigit() or len(value) > 18:
        return "Content-Length is not a number"
    found.length = int(value)
    fields.headers.append(("content-length", str(found.length)))
    return None


def _drop(fields: _Fields, options: list[str]) -> None:
    """What Connection names belongs to the connection, except what says where the message goes and where it ends."""
    gone = {option for option in options if option not in _KEPT}
    if gone:
        fields.headers[:] = [pair for pair in fields.headers if pair[0] not in gone]


def head_lines(first: str, headers: Headers, more: str) -> bytes | None:
    """The bytes of a head; None where a name or value would make more lines than it should, which nobody may send.

    ``first`` and ``more`` are lines of ours, each with its end.
    """
    text = first + "".join([f"{name}: {value}\r\n" for name, value in headers]) + more
    lines = len(headers) + first.count("\n") + more.count("\n")
    if text.count("\n") != lines or text.count("\r") != lines or "\0" in text:
        return None
    return f"{text}\r\n".encode("latin-1", "replace")
