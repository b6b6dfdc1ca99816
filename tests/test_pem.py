"""PEM is what RFC 7468 says, and what OpenSSL reads."""

from __future__ import annotations

import ssl

from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.pem import certificates, encoded, private_key


@given(st.binary(min_size=1, max_size=500))
def test_der_becomes_the_pem_that_python_s_own_encoder_makes(der: bytes) -> None:
    made = encoded("CERTIFICATE", der)
    assert made == ssl.DER_cert_to_PEM_cert(der).encode() and certificates(made) == [made]


def test_a_key_is_found_again() -> None:
    made = encoded("PRIVATE KEY", b"not really one")
    assert private_key(b"before\n" + made + b"after") == made
