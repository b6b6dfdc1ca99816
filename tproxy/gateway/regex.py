"""Regular expressions in configurations: RE2's, whose time is linear in the text, so that no client can make it long.

matches = compile_regex("/v[0-9]+/.*")   # ValueError says what RE2 does not take
matches("/v1/x")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import re2  # 3 MiB with the library of C++, for who has an expression

LONGEST = 1024  # characters, as Istio's webhook has it
_DIGITS = tuple("0123456789")
_MEMORY = 1 << 20  # bytes of a compiled expression


def compile_regex(pattern: str) -> Callable[[str], bool]:
    """A full match of text as it stands in HTTP (latin-1 for bytes)."""
    full = _compile(pattern).fullmatch
    return lambda text: full(text.encode("latin-1", "replace")) is not None


def substitution(pattern: str, replacement: str) -> Callable[[str], str]:
    r"""Every match replaced, with ``\1`` for what the first group found."""
    import re2

    compiled, raw = _compile(pattern), replacement.encode()
    try:
        compiled.sub(raw, b"")
        _groups(replacement, compiled.groups)
    except (IndexError, re2.error) as error:
        raise ValueError(f"the replacement does not fit its RE2 expression: {error}") from None

    def apply(text: str) -> str:
        made: bytes = compiled.sub(raw, text.encode("latin-1", "replace"))
        return made.decode("latin-1")

    return apply


def _groups(replacement: str, most: int) -> None:
    """An escape that names no group would be found only by the first request that matches."""
    rest = iter(replacement)
    for char in rest:
        after = next(rest, "") if char == "\\" else "\\"
        if after != "\\" and not (after in _DIGITS and int(after) <= most):
            raise IndexError(rf"\{after} is none of its {most} groups")


def _compile(pattern: str) -> re2._Regexp:
    import re2

    if len(pattern) > LONGEST:
        raise ValueError(f"regex is too large, max length allowed is {LONGEST}")
    options = re2.Options()
    options.log_errors, options.max_mem = False, _MEMORY
    try:
        return re2.compile(pattern.encode(), options)
    except re2.error as error:
        said = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(
            f"is no RE2 expression (Istio uses RE2 style regex-based match, and so does Envoy): {said}"
        ) from None
