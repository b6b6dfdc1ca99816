"""Concatenated DER: what was joined is cut at the same places, and nothing else is let through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.certificates.der import sequences

CONTENTS = st.one_of(st.binary(max_size=300), st.integers(0, 70_000).map(bytes))


def sequence(contents: bytes) -> bytes:
    """One SEQUENCE as DER wants it."""
    length = len(contents)
    if length < 0x80:
        return bytes([0x30, length]) + contents
    width = (length.bit_length() + 7) // 8
    return bytes([0x30, 0x80 | width]) + length.to_bytes(width) + contents


@given(st.lists(CONTENTS, max_size=5))
def test_what_was_joined_is_cut_at_the_same_places(contents: list[bytes]) -> None:
    parts = [sequence(one) for one in contents]
    assert sequences(b"".join(parts), 5) == parts


@given(st.lists(CONTENTS, min_size=1, max_size=5), st.data())
def test_a_cut_within_an_element_is_seen(contents: list[bytes], data: st.DataObject) -> None:
    parts = [sequence(one) for one in contents]
    cut = data.draw(st.integers(1, len(parts[-1]) - 1))
    with pytest.raises(ValueError, match=r"ends within an element|that DER forbids"):
        sequences(b"".join(parts)[: -len(parts[-1])] + parts[-1][:cut], 5)


@given(st.binary(max_size=200))
def test_any_bytes_are_cut_without_loss_or_refused(data: bytes) -> None:
    try:
        found = sequences(data, 10)
    except ValueError:
        return
    assert b"".join(found) == data and all(one[0] == 0x30 for one in found)


def test_more_elements_than_the_limit_are_refused() -> None:
    assert len(sequences(b"\x30\x00" * 3, 3)) == 3
    with pytest.raises(ValueError, match="has more than 3 elements"):
        sequences(b"\x30\x00" * 4, 3)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x31\x00", "has tag 0x31 at byte 0 where a SEQUENCE belongs"),
        (b"\x30\x00x", "has tag 0x78 at byte 2"),
        (b"\x30", "ends within an element"),
        (b"\x30\x80\x00\x00", "has a length at byte 1 that DER forbids"),  # indefinite
        (b"\x30\x81\x05hello", "has a length at byte 1 that DER forbids"),  # the short form would do
        (b"\x30\x82\x00\x80" + bytes(128), "has a length at byte 1 that DER forbids"),  # a zero in front
        (b"\x30\x85\x01\x00\x00\x00\x00", "has a length at byte 1 that DER forbids"),  # of five bytes
        (b"\x30\x84\xff\xff\xff\xff", "ends within an element"),
    ],
)
def test_what_der_forbids_is_named(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        sequences(data, 10)
