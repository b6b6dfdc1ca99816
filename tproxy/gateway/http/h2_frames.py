"""HTTP/2 frames as bytes: what is read and what is written. RFC 9113, sections 4 to 7. Pure.

A frame is length (24 bits), type (8), flags (8), stream (31, the top bit is ignored), payload.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # 3.4
HEAD: Final = 9  # bytes before a payload
FRAME: Final = 16_384  # the payload's limit as long as nobody says otherwise (6.5.2); we never raise ours
WINDOW: Final = 65_535  # both windows at the beginning, 6.9.2
WINDOW_LIMIT: Final = 2**31 - 1  # 6.9.1
STREAM_LIMIT: Final = 2**31 - 1  # 5.1.1

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6
ENABLE_CONNECT_PROTOCOL: Final = 8  # RFC 8441

unpack_head: Final = struct.Struct(">HBBBI").unpack_from  # length's upper 16 bits, its lower 8, type, flags, stream
_pack_head: Final = struct.Struct(">HBBBI").pack
_SETTING: Final = struct.Struct(">HI")


class Code(IntEnum):
    """Why a stream or a connection ends, section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


def code_name(code: int) -> str:
    """What section 7 calls it."""
    return Code(code).name if code in Code._value2member_map_ else f"code {code}"


class Fault(Exception):  # noqa: N818 - a word of the RFC's "connection error"
    """The peer broke the connection's rules: it ends with GOAWAY. Never leaves a codec."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why


def head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """The nine bytes before a payload."""
    return _pack_head(length >> 8, length & 0xFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return head(len(payload), kind, flags, stream) + payload


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """SETTINGS of these identifiers and values."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values))


def header_block(stream: int, block: bytes, end: bool, most: int) -> bytes:
    """HEADERS, with CONTINUATION where a block is longer than ``most`` bytes."""
    flags = END_STREAM if end else 0
    if len(block) <= most:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    frames = [frame(HEADERS, flags, stream, block[:most])]
    for start in range(most, len(block), most):
        last = END_HEADERS if start + most >= len(block) else 0
        frames.append(frame(CONTINUATION, last, stream, block[start : start + most]))
    return b"".join(frames)


def rst_stream(stream: int, code: int) -> bytes:
    """RST_STREAM."""
    return frame(RST_STREAM, 0, stream, code.to_bytes(4))


def window_update(stream: int, more: int) -> bytes:
    """WINDOW_UPDATE; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, more.to_bytes(4))


def ping(opaque: bytes, ack: bool = False) -> bytes:
    """PING of eight bytes."""
    return frame(PING, ACK if ack else 0, 0, opaque)


def goaway(last: int, code: int, why: str = "") -> bytes:
    """GOAWAY; ``why`` goes along as debug data."""
    return frame(GOAWAY, 0, 0, last.to_bytes(4) + code.to_bytes(4) + why.encode()[:200])


_SIZES: Final = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_OF_STREAMS: Final = frozenset((DATA, HEADERS, PRIORITY, RST_STREAM, CONTINUATION))
_OF_CONNECTIONS: Final = frozenset((SETTINGS, PING, GOAWAY))


def check(kind: int, number: int, size: int) -> None:
    """Fault when a frame of this type cannot have this stream or size."""
    if kind in (_OF_CONNECTIONS if number else _OF_STREAMS):
        raise Fault(Code.PROTOCOL_ERROR, f"a frame of type {kind} on stream {number}")
    if size != _SIZES.get(kind, size) or (kind == GOAWAY and size < 8):
        raise Fault(Code.FRAME_SIZE_ERROR, f"a frame of type {kind} with {size} bytes")


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Identifiers and values, in their order; Fault when the length or a known value is impossible (6.5.2)."""
    if len(payload) % 6:
        raise Fault(Code.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
    values = list(_SETTING.iter_unpack(payload))
    for key, value in values:
        if key in {ENABLE_PUSH, ENABLE_CONNECT_PROTOCOL} and value > 1:
            raise Fault(Code.PROTOCOL_ERROR, f"SETTINGS {key} is {value}, not 0 or 1")
        if key == INITIAL_WINDOW_SIZE and value > WINDOW_LIMIT:
            raise Fault(Code.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE is {value}")
        if key == MAX_FRAME_SIZE and not FRAME <= value < 2**24:
            raise Fault(Code.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE is {value}")
    return values


def unpad(flags: int, payload: bytes) -> bytes:
    """A payload of DATA or HEADERS without its padding (6.1)."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Fault(Code.PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def depends_on(stream: int, payload: bytes) -> None:
    """Check a priority's five bytes; what they say is not used (5.3). A stream that depends on itself is a Fault."""
    if len(payload) < 5:
        raise Fault(Code.FRAME_SIZE_ERROR, "a priority has five bytes")
    if int.from_bytes(payload[:4]) & STREAM_LIMIT == stream:
        raise Fault(Code.PROTOCOL_ERROR, f"stream {stream} depends on itself")
