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

from tproxy.core.certificates.x509 import LeafFacts, Malformed, leaf_facts

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


# By hand: what no honest encoder writes


def tlv(tag: int, *parts: bytes) -> bytes:
    """One element of DER."""
    data = b"".join(parts)
    size = len(data)
    return bytes([tag]) + (bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2)) + data


def extension(arc: int, *value: bytes, critical: bytes = b"") -> bytes:
    """An extension of the id-ce family."""
    return tlv(0x30, tlv(6, bytes([0x55, 0x1D, arc])), critical, tlv(4, *value))


def dates(begin: bytes = b"260101000000Z", tag: int = 0x17) -> bytes:
    """A validity that ends in 2027."""
    return tlv(0x30, tlv(tag, begin), tlv(0x17, b"270101000000Z"))


def by_hand(
    *extensions: bytes, version: bytes = b"\x02", serial: bytes = b"\x07", validity: bytes = dates(), ids: bytes = b""
) -> LeafFacts | Malformed:
    """What is read from a certificate with these parts."""
    some = tlv(0x30)
    ends = tlv(0xA3, tlv(0x30, *extensions)) if extensions else b""
    parts = (tlv(0xA0, tlv(2, version)), tlv(2, serial), some, some, validity, some, some, ids, ends)
    return leaf_facts(tlv(0x30, tlv(0x30, *parts), some, tlv(3, b"\0")))


def refused(found: LeafFacts | Malformed, why: str) -> None:
    """It is malformed for this reason."""
    assert isinstance(found, Malformed), found
    assert why in found.why


URI = tlv(0x30, tlv(0x86, b"spiffe://a/b"))
BASIC, KEY_USAGE, SAN, EKU = 19, 15, 17, 37


def test_a_certificate_without_extensions_is_no_authority_and_names_nobody() -> None:
    assert by_hand() == LeafFacts(7, 1767225600, 1798761600, (), False, None, None)


def test_unique_ids_and_unknown_extensions_are_passed_over() -> None:
    found = by_hand(extension(99, b"anything"), extension(SAN, URI), ids=tlv(0x81, b"\0") + tlv(0x82, b"\0"))
    assert isinstance(found, LeafFacts)
    assert found.uris == ("spiffe://a/b",)


def test_names_that_are_no_uris_are_passed_over_and_order_is_kept() -> None:
    names = tlv(0x82, b"web"), tlv(0x86, b"spiffe://b/"), tlv(0x87, bytes(4)), tlv(0xA4, b""), tlv(0x86, b"spiffe://a/")
    found = by_hand(extension(SAN, tlv(0x30, *names)))
    assert isinstance(found, LeafFacts)
    assert found.uris == ("spiffe://b/", "spiffe://a/")


def test_an_explicit_false_is_read_though_der_leaves_it_out() -> None:
    """Some encoders write it all the same, and it cannot be mistaken."""
    false = tlv(1, b"\0")
    found = by_hand(extension(BASIC, tlv(0x30, false), critical=false))
    assert isinstance(found, LeafFacts)
    assert found.is_ca is False


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (extension(SAN, tlv(0x30)), "must not be empty"),
        (extension(EKU, tlv(0x30)), "must not be empty"),
        (extension(SAN, URI, b"\0"), "followed by garbage"),
        (extension(SAN, tlv(0x30, tlv(0x86, "spiffe://ä/".encode()))), "not ASCII"),
        (extension(SAN, tlv(0x30, tlv(0xA6, b""))), "tag 0xa6"),
        (extension(SAN, tlv(0x30, tlv(0x06, b"*"))), "tag 0x06"),
        (extension(SAN, tlv(0x30, tlv(0x89, b""))), "tag 0x89"),
        (extension(SAN, tlv(0x30, b"\x86\x20spiffe://a/b")), "longer than itself"),
        (extension(SAN, tlv(0x30, b"\x9f\x06\0")), "tag of many bytes"),
        (extension(SAN, URI, critical=tlv(1, b"\x01")), "boolean"),
        (extension(BASIC, tlv(0x30, tlv(1, b"\x01"))), "boolean"),
        (extension(BASIC, tlv(0x30, tlv(1, b"\xff"), tlv(2, b""))), "integer of 0 bytes"),
        (extension(BASIC, tlv(0x30, tlv(1, b"\xff"), tlv(2, b"\0"), tlv(5))), "followed by garbage"),
        (extension(KEY_USAGE, tlv(3)), "not a proper bit string"),
        (extension(KEY_USAGE, tlv(3, b"\x01")), "not a proper bit string"),
        (extension(KEY_USAGE, tlv(3, b"\x08\x80")), "not a proper bit string"),
        (extension(KEY_USAGE, tlv(3, b"\x07\xff")), "not a proper bit string"),
        (extension(KEY_USAGE, tlv(3, b"\0\0\0\0")), "not a proper bit string"),
        (extension(KEY_USAGE, tlv(3, b"\x06\x80\x40")), "means nothing"),
        (extension(EKU, tlv(0x30, tlv(6))), "object identifier"),
        (extension(EKU, tlv(0x30, tlv(6, b"\x2b\x86"))), "object identifier"),
        (extension(EKU, tlv(0x30, tlv(6, b"\x2b\x80\x01"))), "not minimal"),
        (extension(EKU, tlv(0x30, tlv(6, b"\xff" * 30000 + b"\x01"))), "too long"),
    ],
)
def test_a_malformed_extension_is_refused(one: bytes, why: str) -> None:
    refused(by_hand(one), why)


@pytest.mark.parametrize("arc", [SAN, 99])
def test_an_extension_that_appears_twice_is_refused(arc: int) -> None:
    refused(
        by_hand(extension(arc, URI), extension(BASIC, tlv(0x30)), extension(arc, URI)), f"2.5.29.{arc} appears twice"
    )


def test_the_last_key_usage_bit_is_in_a_second_byte() -> None:
    found = by_hand(extension(KEY_USAGE, tlv(3, b"\x07\x06\x80")))
    assert isinstance(found, LeafFacts)
    assert found.key_usage == {"keyCertSign", "cRLSign", "decipherOnly"}


@pytest.mark.parametrize(
    ("begin", "tag", "year"),
    [
        (b"500101000000Z", 0x17, 1950),
        (b"490101000000Z", 0x17, 2049),
        (b"20500101000000Z", 0x18, 2050),
        (b"00010101000000Z", 0x18, 1),
        (b"99990101000000Z", 0x18, 9999),
    ],
)
def test_two_digit_years_run_from_1950_to_2049(begin: bytes, tag: int, year: int) -> None:
    found = by_hand(validity=dates(begin, tag))
    assert isinstance(found, LeafFacts)
    assert found.not_before == int(datetime(year, 1, 1, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("begin", "tag"),
    [
        (b"2601010000Z", 0x17),
        (b"260101000000+0100", 0x17),
        (b"260101000000", 0x17),
        (b"26010100000 Z", 0x17),
        (b"20260101000000.5Z", 0x18),
        (b"260101000000Z", 0x18),
        (b"260101000000Z", 0x16),
        (b"261301000000Z", 0x17),
        (b"260230000000Z", 0x17),
        (b"260101000060Z", 0x17),
        (b"00000101000000Z", 0x18),
    ],
)
def test_dates_that_are_none_or_not_in_the_z_form_are_malformed(begin: bytes, tag: int) -> None:
    assert isinstance(by_hand(validity=dates(begin, tag)), Malformed)


@pytest.mark.parametrize("serial", [b"", b"\0\x07", b"\xff\x80", bytes(22)])
def test_serials_that_are_empty_padded_or_endless_are_malformed(serial: bytes) -> None:
    refused(by_hand(serial=serial), "integer")


@pytest.mark.parametrize("serial", [0, 1, 127, 128, 2**159 - 1, 2**160 - 1, -1])
def test_serials_of_twenty_octets_are_read(serial: int) -> None:
    data = serial.to_bytes(serial.bit_length() // 8 + 1, signed=True)
    found = by_hand(serial=data)
    assert isinstance(found, LeafFacts)
    assert found.serial == serial


def test_extensions_need_version_3() -> None:
    refused(by_hand(extension(SAN, URI), version=b"\x01"), "version 2: extensions need version 3")
    refused(by_hand(version=b"\x03"), "version 4")
