"""Paths: made normal before anything is decided, and changed by rules afterwards. RFC 3986, 6.2.2.

PURE. What rules compare is what the backend is sent: never two readings of one path. Istio's normalisation is BASE (dot
segments, backslashes, unreserved escapes); Envoy Gateway's also merges slashes and asks a client to come again with
escaped slashes unescaped.

>>> normal("/a/./b/%2e%2e//c", Flavour.ISTIO), normal("/a//b", Flavour.GATEWAY_API)
('/a//c', '/a/b')
"""

from __future__ import annotations

import re

from tproxy.core.http_filters import Flavour, FullPath, PathChange, PrefixPath

_ODD = re.compile(r"[%\\]|//|/\.")  # what a path that is not normal contains
_ESCAPED = re.compile(r"%([0-9a-fA-F]{2})?")
_SLASH = re.compile(r"%(?:2[fF]|5[cC])")
_SLASHES = re.compile(r"//+")
_UNRESERVED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")


class BadPathError(ValueError):
    """A path that no two readers would take for the same."""


def normal(path: str, flavour: Flavour) -> str:
    """The one form of a path without query that is compared and sent on; BadPathError for what has none."""
    if "#" in path:
        raise BadPathError("a fragment is no part of a request")
    if not _ODD.search(path):
        return path
    path = _ESCAPED.sub(_unescape, path).replace("\\", "/")
    if flavour is Flavour.GATEWAY_API:
        path = _SLASHES.sub("/", path)
    return _without_dots(path) if "/." in path else path


def unescaped(path: str) -> str | None:
    """The path with escaped slashes as slashes, if there are any: where a client is sent by Envoy Gateway."""
    return _SLASH.sub("/", path) if "%" in path and _SLASH.search(path) else None


def _unescape(found: re.Match[str]) -> str:
    if found[1] is None:
        raise BadPathError("a percent sign begins no escape")
    char = chr(int(found[1], 16))
    if char == "\0":
        raise BadPathError("an escaped NUL")
    return char if char in _UNRESERVED else found[0]


def _without_dots(path: str) -> str:
    """RFC 3986, 5.2.4; empty segments count as segments."""
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments[1:]:
        if segment == "..":
            if kept:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
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
