"""PROXY protocol: what is written is read, what is cut needs more, what is hostile is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.address import Endpoint
from tproxy.core.proxy_protocol import (
    ALPN,
    AUTHORITY,
    CRC32C,
    LIMIT,
    SIGNATURE,
    Header,
    More,
    NotProxy,
    _checksum,
    parse,
    v1,
    v2,
)

IPS = st.ip_addresses().filter(lambda ip: ip.version == 4 or ip.ipv4_mapped is None)
ENDS = st.builds(Endpoint, IPS, st.integers(0, 65535))


@given(ENDS, ENDS, st.binary(max_size=30))
def test_v1_is_read_as_it_was_written_and_nothing_behind_it(source: Endpoint, target: Endpoint, rest: bytes) -> None:
    line = v1(source, target)
    same = source.ip.version == target.ip.version
    assert parse(line + rest) == (Header(len(line), source, target) if same else Header(len(line)))


@given(ENDS, ENDS, st.binary(max_size=30))
def test_v2_is_read_as_it_was_written_with_name_and_protocol(source: Endpoint, target: Endpoint, rest: bytes) -> None:
    data = v2(source, target, "a.example.com", "h2")
    assert parse(data + rest) == Header(len(data), source, target, {ALPN: b"h2", AUTHORITY: b"a.example.com"})


@pytest.mark.parametrize(
    "data", [v1(*[Endpoint.parse("10.0.0.1:1")] * 2), v2(*[Endpoint.parse("[fd00::1]:1")] * 2, "a.b", "h2")]
)
def test_a_header_cut_at_any_byte_needs_more_and_never_more_than_there_is(data: bytes) -> None:
    for cut in range(len(data)):
        found = parse(data[:cut])
        assert isinstance(found, More) and cut < found.at_least <= len(data)


@pytest.mark.parametrize(
    "data", [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff::1 ::1 1 2\r\n", SIGNATURE + b"\x20\0\0\0"]
)
def test_local_and_unknown_mean_the_connection_s_own_peer(data: bytes) -> None:
    assert parse(data) == Header(len(data))


def test_a_wrong_checksum_is_refused_and_a_right_one_taken() -> None:
    body = bytes([10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, CRC32C, 0, 4])
    head = SIGNATURE + b"\x21\x11" + struct.pack("!H", len(body) + 4) + body
    assert isinstance(parse(head + _checksum(head + bytes(4))), Header)
    assert isinstance(parse(head + b"abcd"), NotProxy)
    assert _checksum(b"123456789") == bytes.fromhex("e3069283")  # RFC 3720's check value


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1\r\n",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 99999\r\n",
        b"PROXY TCP4 10.0.0.1 x 1 2\r\n",
        b"PROXY TCP4 " + b"1" * 200,
        SIGNATURE + b"\x31\x11\0\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\0\x04" + bytes(4),
        SIGNATURE + b"\x21\x11" + struct.pack("!H", LIMIT),
        SIGNATURE + b"\x21\x11\0\x0f" + bytes(12) + b"\x01\xff\xff",
    ],
)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    assert isinstance(parse(data), NotProxy)


@given(st.binary(max_size=80), st.sampled_from([b"", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]))
def test_no_bytes_make_it_raise(data: bytes, start: bytes) -> None:
    parse(start + data)
