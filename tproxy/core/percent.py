"""Percent-encoding, RFC 3986, 2.1: of query parameters and of gRPC's messages.

PURE.

>>> unquoted("a%20b+%C3%A9%zz"), quoted("a b\\n%")
('a b é%zz', 'a b%0A%25')
"""

from __future__ import annotations

import re

_ESCAPE = re.compile(rb"%([0-9a-fA-F]{2})")
_PLAIN = frozenset(range(0x20, 0x7F)) - {ord("%")}  # grpc's PROTOCOL-HTTP2: what Status-Message need not encode


def unquoted(text: str) -> str:
    """A query parameter's name or value: + is a blank, what is no escape stays; ``text`` is latin-1 as in headers."""
    if "%" not in text and "+" not in text:
        return text
    raw = text.replace("+", " ").encode("latin-1", "replace")
    return _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), raw).decode("utf-8", "replace")


def quoted(text: str) -> str:
    """A gRPC status message in a header."""
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in text.encode(errors="replace"))
