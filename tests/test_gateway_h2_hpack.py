"""Header compression: the library ``hpack`` is the oracle, in both directions."""

from __future__ import annotations

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tproxy.gateway.http import h2_huffman
from tproxy.gateway.http.h2_hpack import REPEATED, SECRET, STATIC, TABLE, Decoder, Encoder, HpackError, TooLargeError

NAMES = st.one_of(
    st.sampled_from(sorted(REPEATED | SECRET)), st.sampled_from([name for name, _ in STATIC]), st.text("abc-")
)
LATIN = st.text(st.characters(max_codepoint=255), max_size=60)
VALUES = st.one_of(st.sampled_from([value for _, value in STATIC]), LATIN, st.sampled_from(["x" * 1000, "y" * 5000]))
CODED = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode
LISTS = st.lists(st.lists(st.tuples(NAMES, VALUES), max_size=12), min_size=1, max_size=8)


def plain(fields: object) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]  # type: ignore[attr-defined]


@settings(deadline=None)
@given(LISTS, st.lists(st.integers(0, 8192), min_size=8, max_size=8))
def test_the_library_reads_what_we_write_whatever_table_it_keeps(
    lists: list[list[tuple[str, str]]], rooms: list[int]
) -> None:
    ours, theirs = Encoder(), hpack.Decoder(max_header_list_size=1 << 20)
    for fields, room in zip(lists, rooms, strict=False):
        if room % 2:
            ours.resize(room)
            theirs.max_allowed_table_size = room
        assert plain(theirs.decode(ours.encode(fields), raw=True)) == fields


@settings(deadline=None)
@given(LISTS, st.booleans(), st.lists(st.integers(0, TABLE), min_size=8, max_size=8))
def test_we_read_what_the_library_writes(lists: list[list[tuple[str, str]]], huffman: bool, rooms: list[int]) -> None:
    ours, theirs = Decoder(1 << 20), hpack.Encoder()
    for fields, room in zip(lists, rooms, strict=False):
        if room % 2:
            theirs.header_table_size = room
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
        assert ours.decode(theirs.encode(raw, huffman)) == fields


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
@example([b"\x40\x0c0002\xc0\0\0\0\0\0\0\0\0", b"\xbe"])
def test_of_random_blocks_both_read_the_same_or_both_refuse(blocks: list[bytes]) -> None:
    ours, theirs = Decoder(10_000), hpack.Decoder(max_header_list_size=10_000)
    for block in blocks:
        try:
            expected = plain(theirs.decode(block, raw=True))
        except hpack.HPACKError:
            with pytest.raises(HpackError):
                ours.decode(block)
            return
        assert ours.decode(block) == expected


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.binary(max_size=30), LATIN.map(lambda text: CODED(text.encode("latin-1")))))
def test_the_huffman_code_is_the_library_s_of_whatever_bytes(text: bytes) -> None:
    try:
        expected = bytes(decode_huffman(text)).decode("latin-1")
    except hpack.HPACKError:
        with pytest.raises(hpack.HPACKError):
            h2_huffman.decode(text)
    else:
        assert h2_huffman.decode(text) == expected


def test_a_block_whose_bytes_mean_the_same_again_is_called_pure() -> None:
    decoder, encoder = Decoder(1000), Encoder()
    fields = [(":method", "GET"), ("user-agent", "curl"), ("x-request-id", "1")]
    decoder.decode(encoder.encode(fields))
    assert not decoder.pure
    decoder.decode(encoder.encode(fields))
    assert decoder.pure


def test_secrets_are_never_indexed_and_what_comes_once_stays_out_of_the_table() -> None:
    """RFC 7541, 7.1.3."""
    first = Encoder().encode([("authorization", "Bearer x")])
    assert first[0] & 0xF0 == 0x10
    assert Encoder().encode([("x-request-id", "1")])[0] == 0


def test_a_bomb_of_indexed_fields_is_cut_at_the_limit() -> None:
    """One field of 4000 bytes, named 15 000 times in as many bytes."""
    encoder = hpack.Encoder()
    block = encoder.encode([(b"a", b"x" * 4000)]) + b"\xbe" * 15_000
    with pytest.raises(TooLargeError):
        Decoder(61_440).decode(block)


@pytest.mark.parametrize(
    "block",
    [
        b"\x7f\xff\xff\xff\xff\xff\x0f",  # an integer without end
        b"\x00\x7f\xff\xff\xff\x7f",  # a length of 500 million
        b"\x3f\xe2\x1f",  # a table of 4097 bytes
        b"\x82\x20",  # a table size update after a field
        b"\x80",
        b"\xff\x80\x01",
        b"\x00\x81",
    ],
)
def test_lengths_and_places_that_lie_are_refused(block: bytes) -> None:
    with pytest.raises(HpackError):
        Decoder(61_440).decode(block)
