"""The small DER reader, with ``cryptography`` as its oracle, and hostile bytes that may never raise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from tproxy.core.x509 import LeafFacts, Malformed, leaf_facts

KEYS = {"ec": ec.generate_private_key(ec.SECP256R1()), "rsa": rsa.generate_private_key(65537, 2048)}
BITS = ("digital_signature", "key_cert_sign", "crl_sign", "key_encipherment")
NAMES = {"digital_signature": "digitalSignature", "key_cert_sign": "keyCertSign", "crl_sign": "cRLSign"}
NAMES["key_encipherment"] = "keyEncipherment"
PURPOSES = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CODE_SIGNING)


def certificate(
    uris: list[str], dns: list[str], ca: bool | None, usage: set[str] | None, eku: list[int], begin: datetime, kind: str
) -> bytes:
    """DER with exactly these extensions."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(KEYS[kind].public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin)
    builder = builder.not_valid_after(begin + timedelta(days=1))
    names: list[x509.GeneralName] = [x509.DNSName(one) for one in dns]
    names += [x509.UniformResourceIdentifier(one) for one in uris]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    if usage:
        bits = {bit: bit in usage for bit in BITS}
        other = ("content_commitment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only")
        builder = builder.add_extension(x509.KeyUsage(**bits, **dict.fromkeys(other, False)), critical=True)
    if eku:
        builder = builder.add_extension(x509.ExtendedKeyUsage([PURPOSES[one] for one in eku]), critical=False)
    return builder.sign(KEYS[kind], hashes.SHA256()).public_bytes(serialization.Encoding.DER)


PLAIN = certificate(["spiffe://a/b"], [], False, {"digital_signature"}, [0], datetime(2026, 1, 1, tzinfo=UTC), "ec")


@settings(max_examples=60, deadline=None)
@given(
    uris=st.lists(st.sampled_from(["spiffe://a/b", "spiffe://a/c", "https://example.org/"]), max_size=3, unique=True),
    dns=st.lists(st.sampled_from(["a.example", "b.example"]), max_size=2, unique=True),
    ca=st.sampled_from([None, True, False]),
    usage=st.none() | st.sets(st.sampled_from(BITS), min_size=1),
    eku=st.lists(st.integers(0, 2), max_size=3, unique=True),
    begin=st.datetimes(datetime(1951, 1, 1), datetime(2200, 1, 1)),
    kind=st.sampled_from(["ec", "rsa"]),
)
def test_it_reads_what_cryptography_wrote(
    uris: list[str], dns: list[str], ca: bool | None, usage: set[str] | None, eku: list[int], begin: datetime, kind: str
) -> None:
    start = begin.replace(microsecond=0, tzinfo=UTC)
    der = certificate(uris, dns, ca, usage, eku, start, kind)
    oracle = x509.load_der_x509_certificate(der)
    found = leaf_facts(der)
    assert isinstance(found, LeafFacts), found
    assert found.serial == oracle.serial_number
    assert found.not_before == int(oracle.not_valid_before_utc.timestamp())
    assert found.not_after == int(oracle.not_valid_after_utc.timestamp())
    assert found.uris == tuple(uris)
    assert found.is_ca is bool(ca)
    assert found.key_usage == (frozenset(NAMES[bit] for bit in usage) if usage else None)
    assert found.eku == (frozenset(PURPOSES[one].dotted_string for one in eku) if eku else None)


def test_every_prefix_is_malformed() -> None:
    for cut in range(len(PLAIN)):
        assert isinstance(leaf_facts(PLAIN[:cut]), Malformed)


def test_bytes_behind_the_certificate_are_malformed() -> None:
    assert isinstance(leaf_facts(PLAIN + b"\x00"), Malformed)


@settings(max_examples=800)
@given(st.lists(st.tuples(st.integers(0, len(PLAIN) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutations_never_raise(changes: list[tuple[int, int]]) -> None:
    data = bytearray(PLAIN)
    for at, value in changes:
        data[at] = value
    assert isinstance(leaf_facts(bytes(data)), LeafFacts | Malformed)


@given(st.binary(max_size=300))
def test_random_bytes_never_raise(data: bytes) -> None:
    assert isinstance(leaf_facts(data), Malformed)


@pytest.mark.parametrize("length", [b"\x80", b"\x84\xff\xff\xff\xff", b"\x81\x10", b"\x82\x00\x80"])
def test_lengths_that_der_forbids_are_malformed(length: bytes) -> None:
    assert isinstance(leaf_facts(b"\x30" + length + bytes(200)), Malformed)
