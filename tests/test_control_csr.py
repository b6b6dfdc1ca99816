"""What is taken from a certificate signing request: a key whose holder has proven to possess it, and nothing else."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.control import csr
from tproxy.control.csr import LIMIT, public_key
from tproxy.control.refusal import Refused, Why

GOOD, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


def pem_of(der: bytes) -> str:
    """DER that may be damaged, as PEM."""
    lines = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{lines}-----END CERTIFICATE REQUEST-----\n"


def request(key: Any) -> str:
    """A request signed as this kind of key does it."""
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, digest).public_bytes(serialization.Encoding.PEM).decode()


def test_the_key_of_a_good_request_is_taken() -> None:
    assert public_key(csr(GOOD)) == GOOD.public_key()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (ec.generate_private_key(ec.SECP521R1()), "on the curve secp521r1"),
        (ec.generate_private_key(ec.SECP256K1()), "on the curve secp256k1"),
        (rsa.generate_private_key(65537, 1024), "RSA of 1024 bits"),
        (rsa.generate_private_key(65537, 4104), "RSA of 4104 bits"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (dsa.generate_private_key(2048), "DSA"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_kinds_of_keys_are_refused_and_named(key: Any, said: str) -> None:
    found = public_key(request(key))
    assert isinstance(found, Refused) and found.reason is Why.BAD_KEY and said in found.why


def test_a_request_that_another_key_signed_is_refused() -> None:
    der = x509.load_pem_x509_csr(csr(GOOD).encode()).public_bytes(serialization.Encoding.DER)
    mine, other = (
        key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        for key in (GOOD, OTHER)
    )
    assert der.count(mine) == 1
    found = public_key(pem_of(der.replace(mine, other)))
    assert isinstance(found, Refused) and found.reason is Why.BAD_CSR and "not signed by its own key" in found.why


@pytest.mark.parametrize("pem", ["", "x", "x" * (LIMIT + 1), "-----BEGIN CERTIFICATE REQUEST-----\n\n", "\0" * 99])
def test_garbage_is_refused_and_not_repeated(pem: str) -> None:
    found = public_key(pem)
    assert isinstance(found, Refused) and found.reason is Why.BAD_CSR
    assert not pem or pem not in found.why


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.binary(max_size=8))
def test_a_request_that_was_cut_and_written_over_anywhere_is_refused_or_still_proves_its_key(
    at: int, junk: bytes
) -> None:
    der = x509.load_pem_x509_csr(csr(GOOD).encode()).public_bytes(serialization.Encoding.DER)
    at %= len(der)
    bent = der[:at] + junk + der[at + len(junk) :]
    found = public_key(pem_of(bent))
    assert isinstance(found, Refused) or found == GOOD.public_key()
