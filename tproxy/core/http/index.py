"""The entries of one host, found by path: a thousand routes cost what ten do.

PURE. Exact paths and prefixes are looked up, one dictionary access for each length that a prefix has; only what has
neither (regular expressions, no path at all, paths without regard to case) is tried one by one. The order is that of
the entries: ``tests`` compare with a walk over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tproxy.core.http.facts import Asked
    from tproxy.core.http.routes import Entry, Text

_Holds = Callable[["Asked"], bool]
_Placed = tuple[int, "Entry", _Holds | None]  # None: where the path holds, everything does
_position = itemgetter(0)


class Index:
    """Made once from entries in the order in which they are tried."""

    __slots__ = ("_exact", "_lengths", "_prefixes", "_rest", "_segments")

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._exact: dict[str, list[_Placed]] = {}
        self._prefixes: dict[str, list[_Placed]] = {}
        self._segments: dict[str, list[_Placed]] = {}  # without the slash at the end
        self._rest: list[_Placed] = []
        for number, entry in enumerate(entries):
            self._place(number, entry, entry.match.path)
        self._lengths = sorted({len(text) for kind in (self._prefixes, self._segments) for text in kind})

    def _place(self, number: int, entry: Entry, path: Text | None) -> None:
        bare = replace(entry.match, path=None)
        placed = number, entry, None if bare == type(bare)() else bare.holds
        if path is None or path.ignore_case:
            self._rest.append(placed if path is None else (number, entry, entry.match.holds))
            return
        match path.kind.value:
            case "exact":
                self._exact.setdefault(path.value, []).append(placed)
            case "prefix":
                self._prefixes.setdefault(path.value, []).append(placed)
            case "segments":
                self._segments.setdefault(path.value.rstrip("/"), []).append(placed)
            case _:
                self._rest.append((number, entry, entry.match.holds))

    def find(self, asked: Asked) -> Entry | None:
        """The first entry that holds."""
        for _, entry, holds in self._candidates(asked.path):
            if holds is None or holds(asked):
                return entry
        return None

    def _candidates(self, path: str) -> Iterable[_Placed]:
        """Those whose path may hold, in order."""
        found = [self._exact[path]] if path in self._exact else []
        for length in self._lengths:
            if length > len(path):
                break
            begin = path[:length]
            if begin in self._prefixes:
                found.append(self._prefixes[begin])
            if begin in self._segments and path[length : length + 1] in ("", "/"):
                found.append(self._segments[begin])
        if self._rest:
            found.append(self._rest)
        return found[0] if len(found) == 1 else sorted(_all(found), key=_position)


def _all(lists: Iterable[list[_Placed]]) -> Iterator[_Placed]:
    for placed in lists:
        yield from placed
