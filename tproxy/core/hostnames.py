"""Host names in gateways: ``a.example.com``, ``*.example.com`` (any number of labels, never the apex), and ``*``.

PURE. A table of a thousand names answers with as many dictionary look-ups as the asked name has labels.

>>> table = HostTable([("*.example.com", "wild"), ("a.example.com", "exact")])
>>> table.find("a.example.com"), table.find("x.y.example.com"), table.find("example.com")
(('a.example.com', 'exact'), ('*.example.com', 'wild'), None)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Generic, TypeVar

T = TypeVar("T")
ANY = "*"
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"  # RFC 1035, 2.3.1, and the underscore that people use
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_LONGEST = 253  # RFC 1035, 2.3.4, as text


def parse_hostname(text: object) -> str:
    """A name or a pattern in lower case; ValueError says why it is none."""
    if not isinstance(text, str):
        raise ValueError("expected a host name")
    name = text.lower()
    bare = name.removeprefix("*.")
    if name == ANY or (len(name) <= _LONGEST and _NAME.fullmatch(bare) and not (bare != name and is_address(bare))):
        return name
    if "*" in bare:
        raise ValueError("a wildcard is the whole first label, as in *.example.com")
    raise ValueError("expected a host name: labels of letters, digits and '-', with dots between")


def is_address(text: str) -> bool:
    """Whether it is an IP literal, which never stands in SNI (RFC 6066, 3)."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def covers(pattern: str, other: str) -> bool:
    """Whether every name that ``other`` means (it may be a pattern itself) is meant by ``pattern``, too."""
    if pattern.startswith("*."):
        return other.removeprefix("*").endswith(pattern[1:]) and other != pattern[1:]
    return pattern in (ANY, other)


def intersection(one: str, other: str) -> str | None:
    """What both mean: the more specific of the two, or nothing."""
    if covers(one, other):
        return other
    return one if covers(other, one) else None


class HostTable(Generic[T]):
    """From patterns to values; of two with the same pattern the first wins. Never changed after it is made."""

    __slots__ = ("_exact", "_rest", "_wild")

    def __init__(self, entries: Iterable[tuple[str, T]]) -> None:
        self._exact: dict[str, T] = {}
        self._wild: dict[str, T] = {}  # by what follows the asterisk
        self._rest: list[T] = []
        for pattern, value in entries:
            if pattern == ANY:
                self._rest = self._rest or [value]
            elif pattern.startswith("*."):
                self._wild.setdefault(pattern[1:], value)
            else:
                self._exact.setdefault(pattern, value)

    def find(self, name: str | None) -> tuple[str, T] | None:
        """The most specific pattern that covers the name, and its value: exact, longest wildcard, catch-all."""
        if name in self._exact:
            return name, self._exact[name]
        return next(self.all(name), None)

    def all(self, name: str | None) -> Iterator[tuple[str, T]]:
        """Every one that covers it, the most specific first; no name, and what is no host name, has the catch-all."""
        name = name.lower() if name else ""
        if _NAME.fullmatch(name):
            if name in self._exact:
                yield name, self._exact[name]
            dot = name.find(".")
            while dot >= 0:
                if (suffix := name[dot:]) in self._wild:
                    yield f"*{suffix}", self._wild[suffix]
                dot = name.find(".", dot + 1)
        for value in self._rest:
            yield ANY, value

    def owner(self, pattern: str) -> T | None:
        """The value of the most specific pattern that covers all names that ``pattern`` means; it may be itself."""
        if not pattern.startswith("*"):
            found = self.find(pattern)
            return found[1] if found else None
        dot = pattern.find(".")
        while dot >= 0:
            if (suffix := pattern[dot:]) in self._wild:
                return self._wild[suffix]
            dot = pattern.find(".", dot + 1)
        return next(iter(self._rest), None)

    def items(self) -> Iterator[tuple[str, T]]:
        """All of them: exact names, wildcards from the longest, the catch-all."""
        yield from sorted(self._exact.items(), key=lambda item: item[0])
        for suffix in sorted(self._wild, key=lambda suffix: (-suffix.count("."), suffix)):
            yield f"*{suffix}", self._wild[suffix]
        for value in self._rest:
            yield ANY, value

    def __len__(self) -> int:
        return len(self._exact) + len(self._wild) + len(self._rest)


def why_not(pattern: str, name: str | None) -> str:
    """Why a pattern does not cover a name, in words; empty if it does."""
    if pattern == ANY:
        return ""
    if not name:
        return "the client sent no name; only * takes that"
    if not _NAME.fullmatch(name):
        return f"{name!r} is not a host name; only * takes that"
    if covers(pattern, name):
        return ""
    if pattern[2:] == name and pattern.startswith("*."):
        return f"a wildcard does not cover the apex {name}"
    return f"{name} is not below {pattern[2:]}" if pattern.startswith("*.") else f"{name} is another name"
