"""What a request and a response begin with, whichever HTTP version carried it. RFC 9110.

PURE. Header names are lower case; values are latin-1 text without surrounding blanks. What belongs to one connection
only (RFC 9110, 7.6.1) is not among them: a codec takes it off when it reads and puts its own on when it writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

Headers: TypeAlias = list[tuple[str, str]]


@dataclass(slots=True)
class Head:
    """A request's beginning. ``target`` is path and query as sent; ``upgrade`` names a protocol: ``websocket``."""

    method: str
    scheme: str
    authority: str  # as sent, with its port
    target: str
    headers: Headers = field(default_factory=list)
    version: str = "HTTP/1.1"
    upgrade: str = ""


@dataclass(slots=True)
class Reply:
    """A response's beginning; interim ones (1xx) come before it."""

    status: int
    headers: Headers = field(default_factory=list)
