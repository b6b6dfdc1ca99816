"""Certificates, chains and CRLs of any kind, honest or not. Keys are made once; times are hours from now."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tproxy.control.authority import utc_now

CLIENT, SERVER, ANY, CODE = (
    ExtendedKeyUsageOID.CLIENT_AUTH,
    ExtendedKeyUsageOID.SERVER_AUTH,
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
    ExtendedKeyUsageOID.CODE_SIGNING,
)
DOMAIN = "test.local"
ID = f"spiffe://{DOMAIN}/ns/shop/sa/web"
NOW = utc_now()
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
Extra = Sequence[tuple[x509.ExtensionType, bool]]


@cache
def key(name: str) -> Any:
    """A key by its name; the kind is what stands before the first dash: p256, p384, ed25519, rsa2048, rsa1024."""
    kind = name.partition("-")[0]
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind.startswith("rsa"):
        return rsa.generate_private_key(65537, int(kind[3:]))
    return ec.generate_private_key({"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}[kind])


@dataclass(frozen=True)
class Signed:
    """A certificate with its key."""

    der: bytes
    key: Any
    name: x509.Name

    @property
    def parsed(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.der)

    @property
    def pem(self) -> bytes:
        text = base64.encodebytes(self.der)
        return b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"

    @property
    def key_pem(self) -> bytes:
        plain = serialization.NoEncryption()
        made: bytes = self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        return made


def named(text: str) -> x509.Name:
    """A distinguished name; empty for an empty text."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def usage(*bits: str) -> x509.KeyUsage:
    """A key usage with these bits, named as in ``cryptography``."""
    every = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    every += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{bit: bit in bits for bit in every})


def made(
    name: str,
    issuer: Signed | None,
    key_name: str,
    *,
    san: Sequence[x509.GeneralName] = (),
    basic: x509.BasicConstraints | None = None,
    keys: x509.KeyUsage | None = None,
    eku: Sequence[x509.ObjectIdentifier] | None = None,
    begin: float = -1,
    end: float = 1,
    serial: int | None = None,
    ids: bool = True,
    akid: x509.AuthorityKeyIdentifier | None = None,
    critical_san: bool = True,
    extra: Extra = (),
) -> Signed:
    """Signed by ``issuer``, or by itself; ``ids``: with subject and authority key identifiers."""
    mine = key(key_name)
    signer = issuer.key if issuer else mine
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(issuer.name if issuer else named(name))
        .public_key(mine.public_key())
        .serial_number(x509.random_serial_number() if serial is None else serial)
        .not_valid_before(NOW + timedelta(hours=begin))
        .not_valid_after(NOW + timedelta(hours=end))
    )
    found: list[tuple[x509.ExtensionType | None, bool]] = [(basic, True), (keys, True)]
    found += [(x509.ExtendedKeyUsage(eku) if eku else None, False)]
    found += [(x509.SubjectAlternativeName(san) if san else None, critical_san)]
    if ids:
        found += [(x509.SubjectKeyIdentifier.from_public_key(mine.public_key()), False)]
        found += [(akid or x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)]
    for value, critical in (*found, *extra):
        if value is not None:
            builder = builder.add_extension(value, critical)
    digest = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Signed(builder.sign(signer, digest).public_bytes(serialization.Encoding.DER), mine, named(name))


def ca(name: str, issuer: Signed | None = None, key_name: str = "", depth: int | None = None, **twists: Any) -> Signed:
    """An authority; without an issuer a root."""
    twists.setdefault("basic", x509.BasicConstraints(True, depth))
    twists.setdefault("keys", usage("key_cert_sign", "crl_sign"))
    return made(name, issuer, key_name or f"p256-{name}", end=twists.pop("end", 2), **twists)


def leaf(issuer: Signed | None, uri: str = ID, key_name: str = "p256-leaf", **twists: Any) -> Signed:
    """A workload's certificate, by default as an SVID should be."""
    dns = [x509.DNSName(one) for one in twists.pop("dns", ())]
    twists.setdefault("san", [x509.UniformResourceIdentifier(uri), *dns])
    twists.setdefault("basic", x509.BasicConstraints(False, None))
    twists.setdefault("keys", usage("digital_signature"))
    twists.setdefault("eku", (CLIENT, SERVER))
    return made(twists.pop("name", ""), issuer, key_name, **twists)


def crl(
    issuer: Signed,
    *serials: int,
    begin: float = -1,
    end: float = 1,
    signer: Signed | None = None,
    extra: Extra = (),
    entry: Extra = (),
) -> bytes:
    """DER of a list of ``issuer``'s, signed by ``signer`` if that is another."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.name)
    builder = builder.last_update(NOW + timedelta(hours=begin)).next_update(NOW + timedelta(hours=end))
    for serial in serials:
        one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - timedelta(minutes=30))
        for value, critical in entry:
            one = one.add_extension(value, critical)
        builder = builder.add_revoked_certificate(one.build())
    for value, critical in extra:
        builder = builder.add_extension(value, critical)
    made = builder.sign((signer or issuer).key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.DER)


# what no builder makes: DER by hand (X.690)


def tlv(tag: int, data: bytes) -> bytes:
    """One element."""
    size = len(data)
    length = bytes([size]) if size < 128 else b"\x81" + bytes([size]) if size < 256 else b"\x82" + size.to_bytes(2)
    return bytes([tag]) + length + data


def parts(data: bytes) -> list[bytes]:
    """The elements of a sequence's contents, whole."""
    found, at = [], 0
    while at < len(data):
        width = data[at + 1] & 0x7F if data[at + 1] & 0x80 else 0
        length = int.from_bytes(data[at + 2 : at + 2 + width]) if width else data[at + 1]
        end = at + 2 + width + length
        found.append(data[at:end])
        at = end
    return found


def contents(element: bytes) -> bytes:
    """Without tag and length."""
    return element[2 + (element[1] & 0x7F if element[1] & 0x80 else 0) :]


SHA1 = tlv(0x30, tlv(6, bytes.fromhex("2a8648ce3d0401")))  # ecdsa-with-SHA1
SHA256 = tlv(0x30, tlv(6, bytes.fromhex("2a8648ce3d040302")))


def edited(
    one: Signed,
    issuer: Signed,
    change: Callable[[list[bytes]], list[bytes]] = list,
    inner: bytes = SHA256,
    outer: bytes = b"",
) -> Signed:
    """Its TBSCertificate changed and signed again with ECDSA.

    The parts are version, serial, algorithm, issuer, validity, subject, key, extensions (RFC 5280, 4.1).
    """
    found = parts(contents(parts(contents(one.der))[0]))
    found[2] = inner
    tbs = tlv(0x30, b"".join(change(found)))
    digest = hashes.SHA1() if inner == SHA1 else hashes.SHA256()
    signature = issuer.key.sign(tbs, ec.ECDSA(digest))
    return Signed(tlv(0x30, tbs + (outer or inner) + tlv(3, b"\0" + signature)), one.key, one.name)


def broken(one: Signed) -> Signed:
    """With a signature that is wrong in its last bit."""
    return Signed(one.der[:-1] + bytes([one.der[-1] ^ 1]), one.key, one.name)


def first_version(found: list[bytes]) -> list[bytes]:
    """X.509 of 1988: neither version nor extensions."""
    return found[1:7]


def crl_pem(der: bytes) -> bytes:
    """A list as PEM."""
    return x509.load_der_x509_crl(der).public_bytes(serialization.Encoding.PEM)
