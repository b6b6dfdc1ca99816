"""How many fields a message has, counted before anybody unpacks it. PURE.

Two bytes on the wire can become a hundred in memory: 4 MiB of empty submessages would cost 200 MiB. Source:
protobuf.dev/programming-guides/encoding.

>>> count_fields(b"\\x0a\\x00\\x0a\\x01A", 2)
2
"""

from __future__ import annotations

_VARINT, _I64, _BYTES, _I32 = 0, 1, 2, 5  # wire types; 3 and 4 are groups, which nobody uses any more
_FIXED = {_I64: 8, _I32: 4}


def count_fields(data: bytes, limit: int) -> int:
    """The number of fields at the top; ValueError if there are more than the limit, or if it is not protobuf."""
    at = count = 0
    while at < len(data):
        if count == limit:
            raise ValueError(f"has more than {limit} fields")
        count += 1
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind in (_VARINT, _BYTES):
            value, at = _varint(data, at)
            at += value if kind == _BYTES else 0
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise ValueError(f"has wire type {kind}")
    if at > len(data):
        raise ValueError("ends within a field")
    return count


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("ends within a number, or has one of more than ten bytes")
