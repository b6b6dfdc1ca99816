"""Paths: made normal before anything is decided, and changed by rules afterwards. RFC 3986, 6.2.2.

PURE. What rules compare is what the backend is sent: never two readings of one path, and what is normal stays as it is.
As Envoy's normalize_path: unreserved escapes, backslashes, dot segments (with ``;`` parameters, too), characters that
URLs do not have. Envoy Gateway also merges slashes, and asks a client to come again with escaped slashes unescaped;
Istio's gateway leaves both as they are.

>>> normal("/a/./b/%2e%2e//c", Flavour.ISTIO), normal("/a//b/..;x/c", Flavour.GATEWAY_API)
('/a//c', '/a/c')
"""

from __future__ import annotations

import re
from typing import Final

from tproxy.core.http.filters import Flavour, FullPath, PathChange, PrefixPath

_ODD: Final = re.compile(r'[%\\"<>^`{|}]|//|/\.')  # what a path that is not normal contains
_NEVER: Final = re.compile(r"[^\x21-\x22\x24-\x7e]")  # controls, blanks, fragments, bytes that must be escaped
_ESCAPED: Final = re.compile(r"%([0-9a-fA-F]{2})?")
_LONE: Final = re.compile(r"%(?![0-9a-fA-F]{2})")
_SLASH: Final = re.compile(r"%(?:2[fF]|5[cC])")
_SLASHES: Final = re.compile(r"//+")
_UNRESERVED: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")
_ESCAPES: Final = str.maketrans({"\\": "/", **{char: f"%{ord(char):02X}" for char in '"<>^`{|}'}})


class BadPathError(ValueError):
    """A path that no two readers would take for the same."""


def normal(path: str, flavour: Flavour) -> str:
    """The one form of a path without query that is compared and sent on; BadPathError for what has none."""
    if not path.startswith("/") and path != "*":
        raise BadPathError("a path begins with a slash")
    if not _ODD.search(path):
        return path
    path = _unescape(path).translate(_ESCAPES)
    if flavour is Flavour.GATEWAY_API:
        path = _SLASHES.sub("/", path)
    return _without_dots(path) if "/." in path else path


def checked(target: str) -> None:
    """BadPathError for a target that HTTP does not have; Envoy refuses the same."""
    if found := _NEVER.search(target):
        raise BadPathError(f"{found[0]!r} cannot stand in a path or query")


def unescaped(path: str) -> str | None:
    """The path with escaped slashes as slashes, if there are any: where a client is sent by Envoy Gateway."""
    return _SLASH.sub("/", path) if "%" in path and _SLASH.search(path) else None


def _unescape(path: str) -> str:
    """Escapes of unreserved characters; a percent sign that would begin one afterwards is escaped itself."""
    if "%" not in path:
        return path
    once = _ESCAPED.sub(_char, path)
    return once if _ESCAPED.sub(_char, once) == once else _ESCAPED.sub(_char, _LONE.sub("%25", path))


def _char(found: re.Match[str]) -> str:
    char = chr(int(found[1] or "25", 16))
    if char == "\0":
        raise BadPathError("an escaped NUL")
    return char if char in _UNRESERVED else found[0]


def _without_dots(path: str) -> str:
    """RFC 3986, 5.2.4; empty segments count as segments, and ``..;x`` is ``..``, as some servers read it."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        bare = segment.partition(";")[0] if segment.startswith(".") else segment
        if bare == "..":
            if kept:
                kept.pop()
        elif bare != ".":
            kept.append(segment)
    if segments[-1].partition(";")[0] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def changed(target: str, change: PathChange | None, matched: str) -> str:
    """Path and query after a rule's change; ``matched`` is what the rule's prefix was ("" for the whole path)."""
    if change is None:
        return target
    path, mark, query = target.partition("?")
    if isinstance(change, FullPath):
        made, own, query_of_its_own = change.value.partition("?")
        return change.value if own and query_of_its_own else f"{made or '/'}{mark}{query}"
    if isinstance(change, PrefixPath):
        return f"{_prefix(path, change.value, matched)}{mark}{query}"
    made = change.substitute(path)
    return f"{made if made.startswith('/') else f'/{made}'}{mark}{query}"


def _prefix(path: str, value: str, matched: str) -> str:
    """The seam has one slash: neither lost nor doubled."""
    rest = path[len(matched) :]
    if value.endswith("/") and rest.startswith("/"):
        value = value[:-1]
    joined = value + rest
    return joined if joined.startswith("/") else f"/{joined}"
