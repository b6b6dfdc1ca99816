"""Where the body of an HTTP/1.1 message ends: at a length, with the last chunk, or with the connection. RFC 9112, 6-7.

body = Chunked()
data, rest, done = body.feed(b"3\\r\\nabc\\r\\n0\\r\\n\\r\\nGET ")
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

from tproxy.core.http.head import Headers

LINE: Final = 4096  # bytes of a chunk's line, its extensions included
TRAILERS: Final = 8192  # bytes of all trailers
EXTENSIONS: Final = 16 * 1024  # bytes of extensions in one body: each is carried to nowhere and costs a parse
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_TRAILER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
# RFC 9110, 6.5.1: framing, routing and what else must be known before the body cannot come behind it.
_NEVER: Final = frozenset(
    ("transfer-encoding", "content-length", "host", "connection", "te", "trailer", "upgrade", "expect")
)
Fed: TypeAlias = tuple[list[bytes], bytes, bool]  # pieces of the body, what is behind it, whether it is complete


class BodyError(ValueError):
    """Not the body that the head promised."""


class Length:
    """So many bytes."""

    __slots__ = ("left", "trailers")

    def __init__(self, length: int) -> None:
        self.left = length
        self.trailers: Headers = []

    def feed(self, data: bytes) -> Fed:
        """What of it belongs to the body."""
        if len(data) < self.left:
            self.left -= len(data)
            return [data], b"", False
        left, self.left = self.left, 0
        return ([data], b"", True) if len(data) == left else ([data[:left]], data[left:], True)

    def eof(self) -> bool:
        """Whether the body may end here."""
        return not self.left


class UntilClose:
    """All that comes."""

    __slots__ = ("trailers",)

    def __init__(self) -> None:
        self.trailers: Headers = []

    def feed(self, data: bytes) -> Fed:
        """All of it."""
        return [data], b"", False

    def eof(self) -> bool:
        """Yes."""
        return True


class Chunked:
    """Chunks and trailers. A line is kept until it is whole, data is passed on as it comes."""

    __slots__ = ("_done", "_extensions", "_last", "_left", "_line", "_size", "trailers")

    def __init__(self) -> None:
        self._line = b""
        self._left = 0  # bytes of the chunk at hand, its CRLF included
        self._last = self._done = False
        self._extensions = self._size = 0
        self.trailers: Headers = []

    def feed(self, data: bytes) -> Fed:
        """BodyError when it is not chunked coding."""
        pieces: list[bytes] = []
        data, self._line = self._line + data if self._line else data, b""
        at, end = 0, len(data)
        while at < end and not self._done:
            if self._left:
                at = self._chunk(data, at, pieces)
                continue
            stop = data.find(b"\n", at)
            if stop < 0:
                self._line = data[at:]
                if len(self._line) > LINE:
                    raise BodyError("a line of the chunked coding is too long")
                return pieces, b"", False
            if stop - at > LINE or stop == at or data[stop - 1] != 13:
                raise BodyError("a line of the chunked coding is too long or does not end in CRLF")
            self._read(data[at : stop - 1])
            at = stop + 1
        return pieces, data[at:], self._done

    def _chunk(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        body = self._left - 2
        if body > 0:
            piece = data[at : at + body]
            pieces.append(piece)
            self._left -= len(piece)
            at += len(piece)
        while 0 < self._left <= 2 and at < len(data):
            if data[at] != (13 if self._left == 2 else 10):
                raise BodyError("a chunk is longer than its size")
            self._left -= 1
            at += 1
        return at

    def _read(self, line: bytes) -> None:
        if self._last:
            self._trailer(line)
            return
        found = _SIZE.fullmatch(line)
        if found is None:
            raise BodyError("a chunk's size is not a number")
        self._extensions += len(found[2] or b"")
        if self._extensions > EXTENSIONS:
            raise BodyError("too many chunk extensions")
        size = int(found[1], 16)
        self._left, self._last = (size + 2, False) if size else (0, True)

    def _trailer(self, line: bytes) -> None:
        if not line:
            self._done = True
            return
        self._size += len(line)
        found = _TRAILER.fullmatch(line)
        if found is None or self._size > TRAILERS:
            raise BodyError("a trailer is malformed, or there are too many")
        name = found[1].decode().lower()
        if name not in _NEVER:
            self.trailers.append((name, found[2].decode("latin-1").rstrip(" \t")))

    def eof(self) -> bool:
        """The last chunk has not come, or feed would have said so."""
        return False


Body: TypeAlias = Length | UntilClose | Chunked
