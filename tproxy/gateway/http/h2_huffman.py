"""The Huffman code of header compression, a byte at a time: RFC 7541, 5.2 and Appendix B. Pure.

The states are those of the library ``hpack``, whose steps are of four bits: two are put together when first needed.
"""

from __future__ import annotations

from typing import Final

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE

KEPT: Final = 16_384  # steps: all that text needs, and a quarter of those that bytes can make us take
_STEPS: dict[
    int, tuple[int, bool, str]
] = {}  # from state and byte: to which state, whether text may end there, letters


def decode(text: bytes) -> str:
    """As latin-1; HPACKDecodingError when it is not the code, or ends within a letter."""
    state, complete, letters = 0, True, list[str]()
    for byte in text:
        state, complete, found = _STEPS.get(state | byte) or _learnt(state | byte)
        letters.append(found)
    if not complete:
        raise HPACKDecodingError("a Huffman string ends within a letter")
    return "".join(letters)


def _learnt(place: int) -> tuple[int, bool, str]:
    state, flags, letters = place >> 8, 0, ""
    for nibble in (place >> 4 & 15, place & 15):
        state, flags, letter = HUFFMAN_TABLE[state * 16 + nibble]
        if flags & HUFFMAN_FAIL:
            raise HPACKDecodingError("not a Huffman string")
        if flags & HUFFMAN_EMIT_SYMBOL:
            letters += chr(letter)
    step = state << 8, bool(flags & HUFFMAN_COMPLETE), letters
    if len(_STEPS) < KEPT:
        _STEPS[place] = step
    return step
