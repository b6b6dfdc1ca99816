"""TLS hellos, read from the first bytes of a connection: what a client offers and what a server chose.

PURE: nothing is decrypted, sent, kept or believed; every length field is hostile until it is checked, nothing
is allocated because of one, and no bytes make these functions raise. Sources: RFC 8446 (TLS 1.3) sections
4.1-4.2 and 5.1, RFC 5246 (TLS 1.2) 7.4.1, RFC 6066 section 3 (SNI), RFC 7301 (ALPN), RFC 8701 (GREASE).

>>> parse(b"GET / HTTP/1.1")
NotTls(why='first byte 0x47 is not a TLS handshake record')
>>> parse(b"\\x16\\x03")
NeedMore(have=2, at_least=50)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# IANA "TLS Supported Groups"
GROUP_NAMES: Mapping[int, str] = MappingProxyType(
    {
        0x0017: "secp256r1",
        0x0018: "secp384r1",
        0x0019: "secp521r1",
        0x001D: "x25519",
        0x001E: "x448",
        0x11EB: "SecP256r1MLKEM768",
        0x11EC: "X25519MLKEM768",
        0x11ED: "SecP384r1MLKEM1024",
    }
)

_HANDSHAKE = 22  # RFC 8446, 5.1: ContentType
_CLIENT_HELLO, _SERVER_HELLO = 1, b"\x02"  # RFC 8446, 4: HandshakeType
_SERVER_NAME, _GROUPS, _ALPN, _VERSIONS, _KEY_SHARE = 0, 10, 16, 43, 51  # RFC 8446, 4.2: ExtensionType
_RECORD_START = b"\x16\x03"  # a handshake record of any TLS version; the minor version means nothing (5.1)
_RECORD_HEADER, _RECORD_MAX = 5, 1 << 14
_SMALLEST = 4 + 2 + 32 + 1 + 4 + 2  # header; version, random, session id, ciphers, compressions (4.1.2)
_NAME_MAX = 255  # RFC 1035, 2.3.4
_GREASE = frozenset(n << 8 | n for n in range(0x0A, 0x100, 0x10))  # RFC 8701: offers that mean nothing
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")  # RFC 8446, 4.1.3

_extension = struct.Struct("!HH").unpack_from


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client offers, in its order, without GREASE versions and groups; with ECH, the outer name."""

    sni: str | None  # lower case; a trailing dot or an address is passed on as it was sent
    alpn: tuple[str, ...]
    versions: tuple[int, ...]
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NeedMore:
    """A proper prefix so far; no ClientHello that begins like this has fewer than ``at_least`` bytes."""

    have: int
    at_least: int


@dataclass(frozen=True, slots=True)
class NotTls:
    """Another protocol, as the first byte says; ``why`` is a sentence for the record."""

    why: str


@dataclass(frozen=True, slots=True)
class Malformed:
    """It begins like TLS and is no ClientHello, whatever may follow."""

    why: str


@dataclass(frozen=True, slots=True)
class ServerHello:
    """What a server chose; before TLS 1.3 the group is not in its hello."""

    version: int
    cipher: int
    group: int | None


def group_name(group: int) -> str:
    """The IANA name of a key exchange group, or its number in hex."""
    return GROUP_NAMES.get(group) or f"0x{group:04x}"


def parse(data: bytes | memoryview, limit: int = 16384) -> Hello | NeedMore | NotTls | Malformed:
    """The ClientHello at the start of the data; what follows it (early data) is ignored."""
    if data and data[0] != _HANDSHAKE:
        return NotTls(f"first byte 0x{data[0]:02x} is not a TLS handshake record")
    try:
        found = _client_message(bytes(data[:limit]))
        if not isinstance(found, int):
            return _hello(found)
    except ValueError as error:
        return Malformed(str(error))
    if found > limit:
        return Malformed(f"a ClientHello larger than {limit} bytes")
    return NeedMore(len(data), found)


def _client_message(raw: bytes) -> bytes | int:
    """The ClientHello's body, put together from its records, or the fewest bytes that could hold it."""
    message, need, at = bytearray(), _SMALLEST, 0
    while length := _record_length(raw, at):
        start, at = at + _RECORD_HEADER, at + _RECORD_HEADER + length
        message += raw[start:at]
        need = _promised(message)
        if len(message) >= need:
            return bytes(message[4:need])
        if at > len(raw):  # the record's own end is still to come
            return at + _cost(need - len(message) - (at - len(raw)))
    return at + _cost(need - len(message))


def _record_length(raw: bytes, at: int) -> int:
    """The payload's length of the handshake record that starts here; 0 if its header is not whole yet."""
    head = raw[at : at + _RECORD_HEADER]
    if not _RECORD_START.startswith(head[:2]):
        if head[0] == _HANDSHAKE:
            raise ValueError(f"record version 0x{head[1]:02x} is not TLS")
        raise ValueError(f"a record of type 0x{head[0]:02x} interrupts the ClientHello")
    if len(head) < _RECORD_HEADER:
        return 0
    length = head[3] << 8 | head[4]
    if not 0 < length <= _RECORD_MAX:
        raise ValueError(f"a handshake record of {length} bytes: it must have 1 to {_RECORD_MAX}")
    return length


def _promised(message: bytearray) -> int:
    """How long the handshake message is, as its header says, or at least, while the header is not whole."""
    if message and message[0] != _CLIENT_HELLO:
        raise ValueError(f"handshake message type {message[0]} is not a ClientHello")
    if len(message) < 4:
        return _SMALLEST
    need = 4 + int.from_bytes(message[1:4])
    if need < _SMALLEST:
        raise ValueError(f"a ClientHello of {need - 4} bytes is too short to be one")
    return need


def _cost(more: int) -> int:
    """The fewest bytes that carry so much more payload in new records; negative if there is enough."""
    return more - _RECORD_HEADER * (-more // _RECORD_MAX) if more > 0 else more


def _hello(body: bytes) -> Hello:
    """RFC 8446, 4.1.2; ValueError says what is wrong."""
    version, after_session = _preamble(body)
    ciphers, at = _vector(body, after_session, 2, "cipher suites")
    compressions, at = _vector(body, at, 1, "compression methods")
    if len(ciphers) < 2 or len(ciphers) % 2 or not compressions:
        raise ValueError("no whole list of cipher suites and compression methods in the ClientHello")
    found = _extensions(body, at)
    names, alpn = found.get(_SERVER_NAME), found.get(_ALPN)
    versions, groups = found.get(_VERSIONS), found.get(_GROUPS)
    return Hello(
        None if names is None else _host_name(names),
        () if alpn is None else _protocols(alpn),
        (version,) if versions is None else _numbers(versions, 1, "supported versions"),
        () if groups is None else _numbers(groups, 2, "supported groups"),
    )


def _preamble(body: bytes) -> tuple[int, int]:
    """What both hellos begin with: the legacy version, and where the session id ends."""
    if len(body) < 38 or body[0] != 3:
        raise ValueError(f"a hello of version 0x{body[:2].hex()} is not TLS")
    if body[34] > 32:
        raise ValueError(f"a session id of {body[34]} bytes: it has 32 at most")
    return body[0] << 8 | body[1], 35 + body[34]


def _vector(data: bytes, at: int, width: int, what: str) -> tuple[bytes, int]:
    """A vector behind its length (RFC 8446, 3.4) and where it ends."""
    start = at + width
    stop = start + int.from_bytes(data[at:start])
    if stop > len(data):
        raise ValueError(f"the {what} are longer than what holds them")
    return data[start:stop], stop


def _whole(data: bytes, width: int, what: str) -> bytes:
    """A vector that fills its extension and is not empty."""
    inner, stop = _vector(data, 0, width, what)
    if stop != len(data) or not inner:
        raise ValueError(f"the {what} are empty or do not fill their extension")
    return inner


def _extensions(body: bytes, at: int) -> dict[int, bytes]:
    """All extensions by type, the last thing in a hello; before TLS 1.3 there may be none."""
    found: dict[int, bytes] = {}
    if at == len(body):
        return found
    data, stop = _vector(body, at, 2, "extensions")
    if stop != len(body):
        raise ValueError("bytes follow the extensions inside the hello")
    at, end = 0, len(data)
    while at + 4 <= end:
        kind, length = _extension(data, at)
        if kind in found:
            raise ValueError(f"extension {kind} appears twice")
        found[kind] = data[at + 4 : at + 4 + length]
        at += 4 + length
    if at != end:
        raise ValueError("an extension is longer than what holds it")
    return found


def _host_name(data: bytes) -> str | None:
    """RFC 6066, 3: one host_name at most; names of other types are passed over."""
    names, at, found = _whole(data, 2, "server names"), 0, None
    while at < len(names):
        kind = names[at]
        name, at = _vector(names, at + 1, 2, "server names")
        if kind == 0:
            if found is not None:
                raise ValueError("two host names in one server_name extension")
            found = name.decode("latin-1").lower()
            if not 0 < len(name) <= _NAME_MAX:
                raise ValueError(f"a server name of {len(name)} bytes: it must have 1 to {_NAME_MAX}")
            if not name.isascii() or not found.isprintable() or " " in found:
                raise ValueError("the server name is not printable ASCII")
    return found


def _protocols(data: bytes) -> tuple[str, ...]:
    """RFC 7301, 3.1: protocol names, none of them empty."""
    names, at, found = _whole(data, 2, "ALPN protocols"), 0, []
    while at < len(names):
        name, at = _vector(names, at, 1, "ALPN protocols")
        if not name:
            raise ValueError("an empty ALPN protocol name")
        found.append(name.decode("latin-1"))
    return tuple(found)


def _numbers(data: bytes, width: int, what: str) -> tuple[int, ...]:
    """A list of 16-bit numbers without GREASE."""
    inner = _whole(data, width, what)
    if len(inner) % 2:
        raise ValueError(f"the {what} are cut in the middle of one")
    numbers: tuple[int, ...] = struct.unpack(f"!{len(inner) // 2}H", inner)
    return numbers if _GREASE.isdisjoint(numbers) else tuple(n for n in numbers if n not in _GREASE)


def server_hello(data: bytes | memoryview) -> ServerHello | None:
    """A server's choice; a HelloRetryRequest's stands only until the true ServerHello is there."""
    stream, at, chosen = _server_stream(bytes(data[:_RECORD_MAX])), 0, None
    try:
        while stream[at : at + 1] == _SERVER_HELLO:
            body, at = _vector(stream, at + 1, 3, "ServerHello")
            chosen = _choice(body)
            if body[2:34] != _RETRY:
                break
    except ValueError:
        pass  # cut or malformed from here on: the retry request before it, if there was one, still counts
    return chosen


def _server_stream(raw: bytes) -> bytes:
    """The payload of plain handshake records; change_cipher_spec between them is nothing (RFC 8446, D.4)."""
    stream, at = bytearray(), 0
    while raw[at : at + 2] in (b"\x16\x03", b"\x14\x03"):
        start = at + _RECORD_HEADER
        kind, at = raw[at], start + int.from_bytes(raw[at + 3 : start])
        if kind == _HANDSHAKE:
            stream += raw[start:at]
    return bytes(stream)


def _choice(body: bytes) -> ServerHello:
    """RFC 8446, 4.1.3 and 4.2.8: a ServerHello, or a HelloRetryRequest, whose key share is a bare group."""
    version, at = _preamble(body)
    found = _extensions(body, at + 3)
    selected, share = found.get(_VERSIONS), found.get(_KEY_SHARE)
    if (selected is not None and len(selected) != 2) or (share is not None and len(share) < 2):
        raise ValueError("the server's choice of version or group is cut")
    return ServerHello(
        int.from_bytes(selected) if selected else version,
        int.from_bytes(body[at : at + 2]),
        int.from_bytes(share[:2]) if share else None,
    )
