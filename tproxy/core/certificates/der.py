"""Concatenated DER, as the SPIFFE Workload API has chains and bundles: cut into its elements, strictly. PURE.

Only the outermost tag and length of each element are read (X.690, 8.1.3 and 10.1).

>>> sequences(b"\\x30\\x01A\\x30\\x00", 2)
[b'0\\x01A', b'0\\x00']
"""

from __future__ import annotations

_SEQUENCE = 0x30


def sequences(data: bytes, limit: int) -> list[bytes]:
    """Every element, whole. ValueError if one is no SEQUENCE of definite, minimal length, or if there are too many."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        if len(found) == limit:
            raise ValueError(f"has more than {limit} elements")
        end = _end(data, at)
        found.append(data[at:end])
        at = end
    return found


def _end(data: bytes, at: int) -> int:
    """Where the element that begins here ends."""
    if data[at] != _SEQUENCE:
        raise ValueError(f"has tag 0x{data[at]:02x} at byte {at} where a SEQUENCE belongs")
    start = at + 2
    head = data[at + 1 : start]
    if not head:
        raise ValueError("ends within an element")
    length = head[0]
    if length >= 0x80:
        width = length & 0x7F
        length, start = int.from_bytes(data[start : start + min(width, 4)]), start + width
        if not 0 < width <= 4 or length < 0x80 or length >> 8 * (width - 1) == 0:
            raise ValueError(f"has a length at byte {at + 1} that DER forbids")
    if start + length > len(data):
        raise ValueError("ends within an element")
    return start + length
