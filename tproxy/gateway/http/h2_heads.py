"""Fields of HTTP/2 to heads and back: what RFC 9113, section 8 lets pass. Pure.

``request`` and ``reply`` give a value or say what is malformed. What only HTTP/2 spells differently is undone here:
cookies are joined (8.2.3), ``host`` becomes the authority, an extended CONNECT is a GET with ``upgrade`` (RFC 8441).
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from tproxy.core.http.head import Head, Headers, Reply

VERSION: Final = "HTTP/2"
NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch  # 8.2.1: a token without upper case
VALUE: Final = re.compile(
    r"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?"
).fullmatch  # 8.2.1, no control but tab
METHOD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch  # RFC 9110, 9.1
AUTHORITY: Final = re.compile(r"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]+").fullmatch  # RFC 3986, 3.2 without user information
TARGET: Final = re.compile(r"/[!\"$-~\x80-\xff]*").fullmatch  # RFC 9112, 3.2.1; a fragment (#) is not sent
LENGTH: Final = re.compile(r"[0-9]{1,18}").fullmatch
# 8.2.2
CONNECTION_ONLY: Final = frozenset(("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"))
HEADERS_LIMIT: Final = 200  # fields of one head; Envoy's default is 100
ACCEPT_KEY: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class MalformedError(ValueError):
    """A head that must not be passed on, with what is wrong."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's head, the length it announces, and whether it waits for 100 (RFC 9110, 10.1.1)."""

    head: Head
    length: int | None
    expects: bool = False

    def fresh(self, scheme: str) -> Head:
        """A head that may be changed."""
        head = self.head
        return Head(head.method, scheme, head.authority, head.target, head.headers.copy(), VERSION, head.upgrade)


def request(fields: Headers) -> Asked:
    """A request's head (8.3.1); MalformedError."""
    pseudo, headers = _split(fields)
    method, scheme, path = pseudo.pop(":method", ""), pseudo.pop(":scheme", ""), pseudo.pop(":path", None)
    authority, protocol = pseudo.pop(":authority", ""), pseudo.pop(":protocol", "")
    if pseudo:
        raise MalformedError(f"{_shown(next(iter(pseudo)))} is no pseudo-header of a request")
    if not METHOD(method):
        raise MalformedError(f":method is {_shown(method)}")
    headers, length, authority, expects = _fields_of_request(headers, authority)
    if not AUTHORITY(authority):
        raise MalformedError(f"the authority is {_shown(authority)}")
    if method == "CONNECT" and not protocol:
        if scheme or path is not None:
            raise MalformedError("a CONNECT with :scheme or :path")
        return Asked(Head(method, "", authority, "", headers, VERSION), length, expects)
    if scheme not in {"http", "https"}:
        raise MalformedError(f":scheme is {_shown(scheme)}")
    if path is None or not (TARGET(path) or (path == "*" and method == "OPTIONS")):
        raise MalformedError(f":path is {_shown(path or '')}")
    if not protocol:
        return Asked(Head(method, scheme, authority, path, headers, VERSION), length, expects)
    if method != "CONNECT" or not NAME(protocol):
        raise MalformedError(f":protocol {_shown(protocol)} of a {_shown(method)}")
    return Asked(Head("GET", scheme, authority, path, headers, VERSION, protocol), length, expects)


def reply(fields: Headers) -> tuple[Reply, int | None]:
    """A response's head (8.3.2) and the length it announces; MalformedError."""
    pseudo, headers = _split(fields)
    status = pseudo.pop(":status", "")
    if pseudo:
        raise MalformedError(f"{_shown(next(iter(pseudo)))} is no pseudo-header of a response")
    if not (len(status) == 3 and status.isdecimal() and "100" <= status <= "999" and status != "101"):
        raise MalformedError(f":status is {_shown(status)}")
    length: int | None = None
    for name, value in headers:
        if name == "content-length":
            length = _length(value, length)
    return Reply(int(status), headers), length


def trailers(fields: Headers) -> Headers:
    """Fields after a body (8.1): no pseudo-headers; MalformedError."""
    pseudo, headers = _split(fields)
    if pseudo:
        raise MalformedError(f"{_shown(next(iter(pseudo)))} in trailers")
    return headers


def request_fields(head: Head) -> Headers:
    """A request as fields."""
    authority = (":authority", head.authority)
    if head.upgrade:
        first = [(":method", "CONNECT"), (":protocol", head.upgrade), (":scheme", head.scheme), authority]
        rest = [field for field in head.headers if field[0] != "sec-websocket-key"]
        return [*first, (":path", head.target), *rest]
    if head.method == "CONNECT":
        return [(":method", "CONNECT"), authority, *head.headers]
    fields = [(":method", head.method), (":scheme", head.scheme), authority, (":path", head.target), *head.headers]
    if any(name == "content-type" and value.startswith("application/grpc") for name, value in head.headers):
        fields.append(("te", "trailers"))  # as its protocol demands; we read trailers anyway
    return fields


def websocket_accept(key: str) -> str:
    """What a server answers to a key: RFC 6455, 4.2.2."""
    return base64.b64encode(hashlib.sha1(key.encode("latin-1") + ACCEPT_KEY, usedforsecurity=False).digest()).decode()


def _split(fields: Headers) -> tuple[dict[str, str], Headers]:
    """Pseudo-headers, which come first and once, and the others: names, values, nothing of one connection only."""
    pseudo: dict[str, str] = {}
    headers: Headers = []
    for name, value in fields:
        if not VALUE(value):
            raise MalformedError(f"the value of {_shown(name)} has a control character or a blank at its end")
        if name.startswith(":"):
            if headers:
                raise MalformedError(f"{_shown(name)} after a header")
            if name in pseudo:
                raise MalformedError(f"{_shown(name)} twice")
            pseudo[name] = value
        elif not NAME(name):
            raise MalformedError(f"the header name {_shown(name)}")
        elif name in CONNECTION_ONLY:
            raise MalformedError(f"{name} does not exist in HTTP/2")
        elif name != "te":
            headers.append((name, value))
        elif value.lower() != "trailers":
            raise MalformedError(f"te is {_shown(value)}; only trailers may be")
    if len(headers) > HEADERS_LIMIT:
        raise MalformedError(f"{len(headers)} headers; {HEADERS_LIMIT} are allowed")
    return pseudo, headers


def _fields_of_request(headers: Headers, authority: str) -> tuple[Headers, int | None, str, bool]:
    """Headers without ``host`` and ``expect``, with one cookie; the length; the authority; whether 100 is expected."""
    kept: Headers = []
    expects = False
    cookies: list[str] = []
    length: int | None = None
    for field in headers:
        name, value = field
        if name == "host":
            if authority and value.lower() != authority.lower():
                raise MalformedError(f"host is {_shown(value)}, :authority {_shown(authority)}")
            authority = authority or value
        elif name == "expect":
            expects = value.lower() == "100-continue"
        elif name == "cookie":
            cookies.append(value)
        elif name != "content-length":
            kept.append(field)
        elif length is None:
            length = _length(value, None)
            kept.append(field)
        else:
            _length(value, length)
    if cookies:
        kept.append(("cookie", "; ".join(cookies)))
    return kept, length, authority, expects


def _length(value: str, before: int | None) -> int:
    if not LENGTH(value) or (before is not None and int(value) != before):
        raise MalformedError(f"content-length is {_shown(value)}" + ("" if before is None else f" and {before}"))
    return int(value)


def _shown(text: str) -> str:
    """Of hostile text, a piece that may stand in a log."""
    return repr(text[:60])
