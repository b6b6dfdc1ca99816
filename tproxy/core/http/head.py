"""What a request and a response begin with, whichever HTTP version carried it. RFC 9110.

PURE. Header names are lower case; values are latin-1 text without surrounding blanks. What belongs to one connection
only (RFC 9110, 7.6.1) is not among them: a codec takes it off when it reads and puts its own on when it writes.

Each request makes several of these: an ``__init__`` that is written out compiles, what dataclass makes does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Headers: TypeAlias = list[tuple[str, str]]


@dataclass(slots=True, init=False)
class Head:
    """A request's beginning. ``target`` is path and query as sent; ``upgrade`` names a protocol: ``websocket``."""

    method: str
    scheme: str
    authority: str  # as sent, with its port
    target: str
    headers: Headers
    version: str
    upgrade: str

    def __init__(
        self,
        method: str,
        scheme: str,
        authority: str,
        target: str,
        headers: Headers | None = None,
        version: str = "HTTP/1.1",
        upgrade: str = "",
    ) -> None:
        self.method, self.scheme, self.authority, self.target = method, scheme, authority, target
        self.headers = [] if headers is None else headers
        self.version, self.upgrade = version, upgrade


@dataclass(slots=True, init=False)
class Reply:
    """A response's beginning; interim ones (1xx) come before it."""

    status: int
    headers: Headers

    def __init__(self, status: int, headers: Headers | None = None) -> None:
        self.status = status
        self.headers = [] if headers is None else headers
