"""What both dialects write alike in their HTTP rules: header names and values, durations, regular expressions."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import TypeVar

from tproxy.core.fields import ConfigError, Fields
from tproxy.core.http.operators import Format, parse
from tproxy.core.http.routes import Kind, Text
from tproxy.gateway.regex import compile_regex

T = TypeVar("T")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")  # RFC 9110, 5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]{0,4096}")  # RFC 9110, 5.5: no control characters
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:h|ms|m|us|ns|s))+")
_AUTHORITY = re.compile(r"[A-Za-z0-9._-]*|[A-Za-z0-9._-]+:[0-9]{1,5}|\[[0-9a-fA-F:.]+\](:[0-9]{1,5})?")
_COOKIE_PATH = re.compile(r"[\x20-\x3a\x3c-\x7e]{0,1024}")  # RFC 6265, 4.1.1: no semicolon, no control character
_BLANK = re.compile(r"[\x00-\x20\x7f#]")
_PART = re.compile(r"([0-9.]+)([a-z]+)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
# of the connection, or what the gateway itself says: a rule that changed them would break messages or lie
_UNTOUCHABLE = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("content-length", "x-forwarded-client-cert"),
    }
)


def header_name(text: object) -> str:
    """A name that a rule may look at, in lower case."""
    if not isinstance(text, str) or not _TOKEN.fullmatch(text):
        if str(text).startswith(":"):
            raise ValueError(f'invalid header "{text}": header cannot have ":" prefix')
        raise ValueError("expected a header name")
    return text.lower()


def cookie_name(text: object) -> str:
    """RFC 6265, 4.1.1: a token; case matters."""
    if not isinstance(text, str) or not _TOKEN.fullmatch(text):
        raise ValueError("expected a cookie's name: letters, digits and !#$%&'*+-.^_`|~")
    return text


def cookie_path(text: object) -> str:
    """What may stand in a cookie's Path."""
    if not isinstance(text, str) or not _COOKIE_PATH.fullmatch(text):
        raise ValueError("expected a path without ';'")
    return text


def changed_header(text: object) -> str:
    """A name that a rule may set, add or remove."""
    name = "host" if text == ":authority" else header_name(text)
    if name in _UNTOUCHABLE:
        raise ValueError("cannot be changed by a rule: it is the gateway's own")
    return name


def header_value(text: object) -> str:
    """A value, as it goes into HTTP: the bytes of its UTF-8 as latin-1."""
    if isinstance(text, bool | int | float):
        text = str(text).lower() if isinstance(text, bool) else str(text)
    if not isinstance(text, str) or not _VALUE.fullmatch(text):
        raise ValueError("expected a header value: one line of text")
    return text.strip(" \t").encode().decode("latin-1")


def formatted(text: object) -> str | Format:
    """A value that may have Envoy's command operators."""
    return parse(header_value(text), socket.gethostname())


def pairs(fields: Fields, key: str, value: Callable[[object], T]) -> tuple[tuple[str, T], ...]:
    """A mapping of headers."""
    named = fields.inner(key)
    try:
        return tuple((changed_header(name), named.parsed(name, value, None)) for name in named.data)
    except ConfigError:
        raise
    except ValueError as error:
        raise fields.error(key, str(error)) from None


def seconds(value: object) -> float:
    """A duration as Go and protobuf write it: 5s, 1.5s, 250ms, 1h30m."""
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError("expected a duration such as 5s or 250ms")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))


def authority(value: object) -> str:
    """A host, perhaps with a port, that takes the place of a request's."""
    if not isinstance(value, str) or not _AUTHORITY.fullmatch(value):
        raise ValueError("expected a host name or host:port")
    return value


def path_text(value: object) -> str:
    """A path, perhaps with a query, that can stand in a request line."""
    if not isinstance(value, str) or len(value) > 4096 or _BLANK.search(value):
        raise ValueError("expected a path without blanks")
    return value.encode().decode("latin-1")


def regex_text(value: str) -> Text:
    """A text that a regular expression must match whole. ValueError as RE2's."""
    return Text(Kind.REGEX, value, regex=compile_regex(value))
