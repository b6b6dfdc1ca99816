"""PEM is what RFC 7468 says, and what OpenSSL reads."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.certificates.pem import certificates, der, encoded, private_key


@given(st.binary(min_size=1, max_size=500))
def test_der_becomes_the_pem_that_python_s_own_encoder_makes(der: bytes) -> None:
    made = encoded("CERTIFICATE", der)
    assert made == ssl.DER_cert_to_PEM_cert(der).encode() and certificates(made) == [made]


def test_a_key_is_found_again() -> None:
    made = encoded("PRIVATE KEY", b"not really one")
    assert private_key(b"before\n" + made + b"after") == made


def test_a_block_cut_off_in_the_middle_is_found_and_is_damaged() -> None:
    """It reaches to the END of the next one: nobody takes the second certificate for the first."""
    whole = encoded("CERTIFICATE", bytes(range(90)))
    (found,) = certificates(whole[: len(whole) // 2] + b"\n" + whole)
    assert found.count(b"BEGIN") == 2
    assert certificates(whole) == [whole] and der(whole) == bytes(range(90))
    with pytest.raises(ValueError, match="padding"):
        der(whole.replace(b"AAEC", b"AAE"))


@given(st.binary(min_size=1, max_size=500))
def test_a_block_is_decoded_as_python_s_own_decoder_does(data: bytes) -> None:
    whole = encoded("CERTIFICATE", data)
    assert der(whole) == ssl.PEM_cert_to_DER_cert(whole.decode()) == data


def test_a_file_full_of_beginnings_holds_nothing_and_is_read_in_linear_time() -> None:
    assert certificates(b"-----BEGIN CERTIFICATE-----" * 40_000) == []
