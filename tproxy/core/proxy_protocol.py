"""PROXY protocol v1 and v2: who the client is, told in front of the first byte (haproxy.org, proxy-protocol.txt).

PURE: bytes to values and back. Nothing is trusted here; who may say it is the caller's business.

>>> parse(b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\\r\\nhello").size
42
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from tproxy.core.address import Endpoint, parse_address

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
ALPN, AUTHORITY, CRC32C = 0x01, 0x02, 0x03  # PP2_TYPE_*
LIMIT = 4096  # bytes of a v2 header; the specification allows 64 KiB, nobody sends more than some hundreds
_V1_MOST = 107  # 2.1: the worst case with CRLF
_V1_START = b"PROXY "
_LOCAL, _PROXY = 0x20, 0x21  # version 2 and the command
_TCP4, _TCP6 = 0x11, 0x21
V1_LOCAL = b"PROXY UNKNOWN\r\n"
V2_LOCAL = SIGNATURE + struct.pack("!BBH", _LOCAL, 0, 0)  # 2.2: a health check, whose own addresses count


@dataclass(frozen=True, slots=True)
class Header:
    """What was told, in ``size`` bytes. Without ``source`` (LOCAL, UNKNOWN) the connection's own peer is meant."""

    size: int
    source: Endpoint | None = None
    target: Endpoint | None = None
    tlvs: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class More:
    """A proper prefix so far; the header is at least so many bytes."""

    at_least: int


@dataclass(frozen=True, slots=True)
class NotProxy:
    """No header, whatever may follow."""

    why: str


def parse(data: bytes) -> Header | More | NotProxy:
    """The header at the start of the data; never raises."""
    try:
        if SIGNATURE.startswith(data[:12]):
            return _v2(data) if len(data) >= 16 else More(16)
        if _V1_START.startswith(data[:6]):
            return _v1(data)
    except ValueError as error:
        return NotProxy(str(error))
    return NotProxy("the first bytes are no PROXY protocol header")


def _v1(data: bytes) -> Header | More | NotProxy:
    end = data.find(b"\r\n", 0, _V1_MOST)
    if end < 0:
        return NotProxy("a PROXY v1 line without end") if len(data) >= _V1_MOST else More(len(data) + 1)
    words = data[:end].decode("ascii").split(" ")
    if words[1] == "UNKNOWN":
        return Header(end + 2)
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise ValueError("a PROXY v1 line that is neither TCP4, TCP6 nor UNKNOWN")
    source, target = _endpoint(words[2], words[4]), _endpoint(words[3], words[5])
    return Header(end + 2, source, target)


def _endpoint(address: str, port: str) -> Endpoint:
    if not port.isdecimal() or len(port) > 5 or int(port) > 65535:
        raise ValueError("a PROXY v1 line with a port that is none")
    return Endpoint(parse_address(address), int(port))


def _v2(data: bytes) -> Header | More | NotProxy:
    command, family, length = struct.unpack_from("!BBH", data, 12)
    size = 16 + length
    if command not in (_LOCAL, _PROXY) or size > LIMIT:
        raise ValueError(f"a PROXY v2 header with command 0x{command:02x} and {length} bytes")
    if len(data) < size:
        return More(size)
    if command == _LOCAL:
        return Header(size)
    width = {_TCP4: 4, _TCP6: 16}.get(family)
    if width is None:
        return Header(size)  # 2.2: unspecified and others: use the connection's own addresses
    at = 16 + 2 * width + 4
    if at > size:
        raise ValueError("a PROXY v2 header too short for its addresses")
    source, target = data[16 : 16 + width], data[16 + width : 16 + 2 * width]
    ports = struct.unpack_from("!HH", data, at - 4)
    tlvs = _tlvs(data, at, size)
    return Header(size, _of(source, ports[0]), _of(target, ports[1]), tlvs)


def _of(packed: bytes, port: int) -> Endpoint:
    text = ".".join(map(str, packed)) if len(packed) == 4 else str(IPv6Address(packed))
    return Endpoint(parse_address(text), port)


def _tlvs(data: bytes, at: int, size: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while at < size:
        if at + 3 > size or (stop := at + 3 + int.from_bytes(data[at + 1 : at + 3])) > size:
            raise ValueError("a PROXY v2 TLV is longer than its header")
        found[data[at]] = data[at + 3 : stop]
        if data[at] == CRC32C and found[CRC32C] != _checksum(data[: at + 3] + b"\0\0\0\0" + data[stop:size]):
            raise ValueError("the checksum of a PROXY v2 header is wrong")
        at = stop
    return found


def v1(source: Endpoint, target: Endpoint) -> bytes:
    """One line; addresses of different families cannot be told."""
    if source.ip.version != target.ip.version:
        return V1_LOCAL
    return f"PROXY TCP{source.ip.version} {source.ip} {target.ip} {source.port} {target.port}\r\n".encode()


def v2(source: Endpoint, target: Endpoint, authority: str = "", alpn: str = "") -> bytes:
    """Binary, with the name that the client asked for and its first protocol."""
    same = source.ip.version == target.ip.version
    addresses = [end.ip if same or end.ip.version == 6 else IPv6Address(f"::ffff:{end.ip}") for end in (source, target)]
    family = _TCP4 if addresses[0].version == 4 else _TCP6
    body = b"".join(address.packed for address in addresses) + struct.pack("!HH", source.port, target.port)
    for kind, text in ((ALPN, alpn), (AUTHORITY, authority)):
        if text:
            value = text.encode("latin-1")
            body += struct.pack("!BH", kind, len(value)) + value
    return SIGNATURE + struct.pack("!BBH", _PROXY, family, len(body)) + body


def _checksum(data: bytes) -> bytes:
    """CRC-32C (RFC 3720, appendix B.4), big-endian."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return (crc ^ 0xFFFFFFFF).to_bytes(4)
