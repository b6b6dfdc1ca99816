"""Header compression: bytes to fields and back. RFC 7541. Pure.

Written here because header blocks are most of what a request of HTTP/2 costs: the Huffman code and the static table are
those of the library ``hpack``, which is the tests' oracle. Fields are (name, value), latin-1 text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, TypeAlias

from hpack.exceptions import HPACKDecodingError
from hpack.table import HeaderTable

from tproxy.gateway.http import h2_huffman as huffman

Field: TypeAlias = tuple[str, str]

TABLE: Final = 4096  # SETTINGS_HEADER_TABLE_SIZE, both ways: RFC 9113's default, and the most we keep
SHORT: Final = 64  # bytes of what is worth to be kept, decoded or encoded
ENTRY: Final = 32  # bytes that an entry counts besides its text, 4.1
STATIC: Final[tuple[Field, ...]] = tuple((name.decode(), value.decode()) for name, value in HeaderTable.STATIC_TABLE)
_PLACES: Final = {field: place for place, field in enumerate(STATIC, 1)}
_NAMES: Final = {name: place for place, (name, _) in reversed(list(enumerate(STATIC, 1)))}

REPEATED: Final = frozenset(
    (
        ":authority", ":scheme", "accept", "accept-charset", "accept-encoding", "accept-language",
        "accept-ranges", "access-control-allow-credentials", "access-control-allow-headers",
        "access-control-allow-methods", "access-control-allow-origin", "access-control-expose-headers",
        "access-control-max-age", "cache-control", "content-encoding", "content-language",
        "content-security-policy", "content-type", "date", "grpc-accept-encoding", "grpc-encoding",
        "grpc-status", "origin", "pragma", "referrer-policy", "server", "strict-transport-security", "te",
        "user-agent", "vary", "via", "x-content-type-options", "x-forwarded-proto", "x-frame-options",
    )
)  # fmt: skip
"""Names whose values come again, and are no secrets: these alone enter the peer's table."""
SECRET: Final = frozenset(("authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key", "x-auth-token"))
"""Never indexed, by anybody on the way (7.1.3)."""


class HpackError(ValueError):
    """A header block that cannot be; the connection is lost with it."""


class TooLargeError(HpackError):
    """A header list larger than the limit."""


class Decoder:
    """The fields of blocks. ``pure``: the last block left the table alone, so that its bytes mean the same again."""

    __slots__ = ("_entries", "_limit", "_room", "_size", "pure")

    def __init__(self, limit: int) -> None:
        self._limit = limit  # bytes of one header list, counted as in SETTINGS_MAX_HEADER_LIST_SIZE
        self._entries: list[Field] = []  # the newest is the last
        self._size = 0
        self._room = TABLE
        self.pure = True

    def decode(self, block: bytes) -> list[Field]:
        """HpackError when it is not HPACK or too large."""
        self.pure = True
        try:
            return self._fields(block)
        except (IndexError, HPACKDecodingError) as error:
            raise HpackError("a header block ends within a field, or names one that is not there") from error

    def _fields(self, block: bytes) -> list[Field]:
        fields: list[Field] = []
        at, end, left = 0, len(block), self._limit
        while at < end:
            first = block[at]
            if first & 0x80:
                place, at = (first & 0x7F, at + 1) if first != 0xFF else _integer(block, at, 7)
                field = self._entry(place)
            elif first & 0xE0 == 0x20:
                if fields:
                    raise HpackError("a table size update after a field")
                size, at = _integer(block, at, 5)
                self._resize(size)
                continue
            else:
                place, at = _integer(block, at, 6 if first & 0x40 else 4)
                if place:
                    name = self._entry(place)[0]
                else:
                    name, at = _text(block, at)
                value, at = _text(block, at)
                field = (name, value)
                if first & 0x40:
                    self._add(field)
            fields.append(field)
            left -= len(field[0]) + len(field[1]) + ENTRY
            if left < 0:
                raise TooLargeError(f"a header list of more than {self._limit} bytes")
        return fields

    def _entry(self, place: int) -> Field:
        if 0 < place <= len(STATIC):
            return STATIC[place - 1]
        if not 0 < place - len(STATIC) <= len(self._entries):
            raise HpackError(f"no entry {place}")
        return self._entries[len(STATIC) - place]

    def _add(self, field: Field) -> None:
        self.pure = False
        self._entries.append(field)
        self._size += len(field[0]) + len(field[1]) + ENTRY
        self._evict()

    def _resize(self, room: int) -> None:
        if room > TABLE:
            raise HpackError(f"a table of {room} bytes; {TABLE} are allowed")
        self.pure = False
        self._room = room
        self._evict()

    def _evict(self) -> None:
        gone = 0
        while self._size > self._room:
            name, value = self._entries[gone]
            self._size -= len(name) + len(value) + ENTRY
            gone += 1
        if gone:
            del self._entries[:gone]


class Encoder:
    """Blocks of fields; never Huffman coded, which costs more than it saves here."""

    __slots__ = ("_added", "_entries", "_places", "_resized", "_room", "_size")

    def __init__(self) -> None:
        self._entries: deque[Field] = deque()  # the oldest is the first
        self._places: dict[Field, int] = {}  # to the number of fields that had been added with it
        self._added = 0
        self._size = 0
        self._room = TABLE
        self._resized = False

    def resize(self, room: int) -> None:
        """The peer keeps a table of this size."""
        room = min(room, TABLE)
        if room != self._room:
            # emptied with it: then it does not matter that it shrank and grew between two blocks (4.2)
            self._room, self._resized, self._size = room, True, 0
            self._entries.clear()
            self._places.clear()

    def encode(self, fields: Iterable[Field]) -> bytes:
        """One block."""
        block = bytearray()
        if self._resized:
            self._resized = False
            block += _prefixed(0, 5, 0x20) + _prefixed(self._room, 5, 0x20)
        places = self._places
        for field in fields:
            place = places.get(field)
            if place is not None:
                block += _indexed(len(STATIC) + 1 + self._added - place)
            elif field[0] not in REPEATED or field in _PLACES:
                block += _literal(field)
            else:
                block += _remembered(field)
                self._add(field)
        return bytes(block)

    def _add(self, field: Field) -> None:
        self._entries.append(field)
        self._added += 1
        self._places[field] = self._added
        self._size += len(field[0]) + len(field[1]) + ENTRY
        while self._size > self._room:
            gone = self._entries.popleft()
            del self._places[gone]
            self._size -= len(gone[0]) + len(gone[1]) + ENTRY


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """An integer of 5.1 and where it ends; at most four further bytes, which is more than any length here."""
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    for shift in (0, 7, 14, 21):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise HpackError("an integer of more than five bytes")


def _text(block: bytes, at: int) -> tuple[str, int]:
    """A string of 5.2 and where it ends."""
    coded = block[at] & 0x80
    length, at = _integer(block, at, 7)
    end = at + length
    if end > len(block):
        raise HpackError("a header block ends within a string")
    text = block[at:end]
    return (_unhuffman(text) if coded else text.decode("latin-1")), end


@lru_cache(4096)
def _short(text: bytes) -> str:
    return huffman.decode(text)


def _unhuffman(text: bytes) -> str:
    """Short strings come again."""
    return _short(text) if len(text) <= SHORT else huffman.decode(text)


def _prefixed(value: int, bits: int, first: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes((first | value,))
    parts = bytearray((first | most,))
    value -= most
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


@lru_cache(256)
def _indexed(place: int) -> bytes:
    return _prefixed(place, 7, 0x80)


def _literal(field: Field) -> bytes:
    """A field that stays out of the table."""
    if field[0] in SECRET:
        return _spelt(field, 4, 0x10)
    return _kept(field) if len(field[0]) + len(field[1]) <= SHORT else _spelt(field, 4, 0)


@lru_cache(4096)
def _kept(field: Field) -> bytes:
    place = _PLACES.get(field)
    return _indexed(place) if place else _spelt(field, 4, 0)


def _remembered(field: Field) -> bytes:
    """A field that enters the table."""
    return _spelt(field, 6, 0x40)


def _spelt(field: Field, bits: int, first: int) -> bytes:
    name, value = field
    place = _NAMES.get(name, 0)
    raw = value.encode("latin-1", "replace")
    start = _prefixed(place, bits, first)
    if not place:
        start += _prefixed(len(name), 7, 0) + name.encode("latin-1", "replace")
    return start + _prefixed(len(raw), 7, 0) + raw
