"""Certificates of others and our own outside the mesh: what names they are for, and what is told of a client's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

from tproxy.core.certificates import pem
from tproxy.core.certificates.subject import Names, PeerCertificate
from tproxy.identity.openssl import UNUSABLE_KEY, TlsError


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate chain, leaf first, and its key; PEM."""

    chain: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Leaf:
    """Of a certificate that we show: the names that it is for, and the kind of its key."""

    names: tuple[str, ...]  # DNS names, or the common name where there is none; lower case
    kind: str  # rsa, ec, other


def leaf_of(pair: KeyPair) -> Leaf:
    """TlsError unless certificate and key are what they should be, and of each other."""
    try:
        leaf = x509.load_pem_x509_certificate((pem.certificates(pair.chain) or [b""])[0])
        public = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise TlsError("THE CERTIFICATE CANNOT BE READ") from None
    if key_of(pair.key).public_key() != public:
        raise TlsError("THE KEY IS NOT THE CERTIFICATE'S")
    is_ec = isinstance(public, ec.EllipticCurvePublicKey)
    names = names_of(leaf).dns or tuple(
        str(one.value) for one in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    )
    kind = "rsa" if isinstance(public, rsa.RSAPublicKey) else "ec" if is_ec else "other"
    return Leaf(tuple(name.lower() for name in names), kind)


def key_of(text: bytes) -> PrivateKeyTypes:
    """A private key without a passphrase."""
    try:
        return serialization.load_pem_private_key(text, None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise TlsError(UNUSABLE_KEY) from None


def names_of(leaf: x509.Certificate) -> Names:
    """X.509 version 1 has no extensions, and so no names but the common one, which counts for none of these."""
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return Names()
    return Names(
        tuple(found.get_values_for_type(x509.DNSName)),
        tuple(found.get_values_for_type(x509.UniformResourceIdentifier)),
        tuple(map(str, found.get_values_for_type(x509.IPAddress))),
    )


def hash_of(leaf: x509.Certificate) -> str:
    """SHA-256 of the certificate."""
    return hashlib.sha256(leaf.public_bytes(serialization.Encoding.DER)).hexdigest()


def key_hash_of(leaf: x509.Certificate) -> str:
    """SHA-256 of its SubjectPublicKeyInfo."""
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(leaf.public_key().public_bytes(serialization.Encoding.DER, info)).hexdigest()


def peer_certificate(sent: tuple[bytes, ...]) -> PeerCertificate | None:
    """Of a verified chain in DER, leaf first; None of an empty one, or where the leaf is beyond cryptography."""
    try:
        leaf = x509.load_der_x509_certificate(sent[0])
        subject, issuer = leaf.subject.rfc4514_string(), leaf.issuer.rfc4514_string()
    except (IndexError, ValueError):
        return None
    names, blocks = names_of(leaf), [pem.encoded("CERTIFICATE", der).decode() for der in sent]
    return PeerCertificate(
        hash_of(leaf), subject, names.uris, names.dns, blocks[0], "".join(blocks), issuer, f"{leaf.serial_number:x}"
    )
