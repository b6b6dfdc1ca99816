"""Fields of a message are counted as protobuf's own encoder wrote them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.protobuf import count_fields
from tproxy.wire.ca_pb2 import IstioCertificateRequest
from tproxy.wire.workload_pb2 import X509SVID, X509SVIDResponse


@given(st.integers(0, 9), st.lists(st.binary(max_size=300), max_size=9), st.dictionaries(st.text(), st.binary()))
def test_what_protobuf_wrote_is_counted(svids: int, crls: list[bytes], others: dict[str, bytes]) -> None:
    message = X509SVIDResponse(svids=[X509SVID(hint="x")] * svids, crl=crls, federated_bundles=others)
    fields = svids + len(crls) + len(others)
    assert count_fields(message.SerializeToString(), fields) == fields


@given(st.integers(-(2**63), 2**63 - 1).filter(bool))
def test_numbers_of_any_size_are_passed_over(number: int) -> None:
    message = IstioCertificateRequest(csr="x", validity_duration=number)
    assert count_fields(message.SerializeToString(), 2) == 2


@given(st.binary(max_size=100))
def test_any_bytes_are_counted_or_refused(data: bytes) -> None:
    try:
        assert 0 <= count_fields(data, 100) <= len(data) / 2
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\n\x00" * 4, "has more than 3 fields"),
        (b"\n\x05x", "ends within a field"),
        (b"\n", "ends within a number"),
        (b"\n" + b"\xff" * 11, "one of more than ten bytes"),
        (b"\x09x", "ends within a field"),
        (b"\x0b", "has wire type 3"),
    ],
)
def test_what_is_no_message_or_too_much_of_one_is_named(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        count_fields(data, 3)
