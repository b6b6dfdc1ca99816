"""The certificate authority: a root, an intermediate that signs, and short-lived SVIDs (X.509-SVID, RFC 5280).

Keys are P-256 unless RSA is asked for. Nothing here reads or writes files; ``control.store`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tproxy.core.identity import SpiffeId

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
ROOT_LIFE, INTERMEDIATE_LIFE = timedelta(days=3650), timedelta(days=365)
CA_BITS = 3072  # RSA only; as strong as P-256 (NIST SP 800-57)
SKEW = timedelta(seconds=60)  # certificates begin this much earlier: clocks of two nodes differ a little


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key; the key is never shown."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)

    def certificate_pem(self) -> bytes:
        """As PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        """As PKCS#8 PEM, without a password: the file's mode protects it."""
        form, lock = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, form, lock)


def new_key(kind: str, bits: int = 2048) -> PrivateKey:
    """``ecdsa`` (P-256) or ``rsa`` of so many bits."""
    if kind == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=bits)
    return ec.generate_private_key(ec.SECP256R1())


def new_root(trust_domain: str, kind: str, now: datetime) -> Pair:
    """A self-signed root whose SPIFFE id is the trust domain itself."""
    key = new_key(kind, CA_BITS)
    name = _name(f"{trust_domain} root")
    builder = _authority(trust_domain, name, key, now, now + ROOT_LIFE, 1).issuer_name(name)
    return Pair(builder.sign(key, hashes.SHA256()), key)


def new_intermediate(
    root: Pair, trust_domain: str, kind: str, now: datetime, life: timedelta = INTERMEDIATE_LIFE
) -> Pair:
    """What signs workloads, so that the root's key can be kept elsewhere."""
    key = new_key(kind, CA_BITS)
    end = min(now + life, root.certificate.not_valid_after_utc)
    builder = _authority(trust_domain, _name(f"{trust_domain} intermediate"), key, now, end, 0)
    return Pair(_signed(builder, root), key)


def issue(
    signer: Pair,
    workload: SpiffeId,
    public: PublicKey,
    life: timedelta,
    now: datetime,
    names: Sequence[x509.GeneralName] = (),
) -> x509.Certificate:
    """An X.509-SVID for client and server use; it never outlives its signer. ``names`` are more SANs, DNS or IP.

    The subject is empty, so the SAN is critical (RFC 5280, 4.2.1.6): the SPIFFE id is the only name.
    """
    begin = max(now - SKEW, signer.certificate.not_valid_before_utc)
    end = min(now + life, signer.certificate.not_valid_after_utc)
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(x509.Name([]), public, begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(False, isinstance(public, rsa.RSAPublicKey)), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(_san(str(workload), names), critical=True)
    )
    return _signed(builder, signer)


def trust_domain_of(certificate: x509.Certificate) -> str:
    """The trust domain that a signing certificate is of; ValueError if it has none."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise ValueError("the CA's certificate has no SPIFFE URI SAN") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith("spiffe://"):
        raise ValueError("the CA's certificate has no SPIFFE URI SAN")
    return uris[0].removeprefix("spiffe://")


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _san(uri: str, names: Sequence[x509.GeneralName] = ()) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri), *names])


def _builder(subject: x509.Name, public: PublicKey, begin: datetime, end: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _authority(
    trust_domain: str, name: x509.Name, key: PrivateKey, now: datetime, end: datetime, depth: int
) -> x509.CertificateBuilder:
    return (
        _builder(name, key.public_key(), now - SKEW, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=depth), critical=True)
        .add_extension(_usage(True), critical=True)
        .add_extension(_san(f"spiffe://{trust_domain}"), critical=False)
    )


def _signed(builder: x509.CertificateBuilder, signer: Pair) -> x509.Certificate:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
    named = builder.issuer_name(signer.certificate.subject).add_extension(identifier, critical=False)
    return named.sign(signer.key, hashes.SHA256())


def _usage(sign: bool, encipher: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=encipher,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


def utc_now() -> datetime:
    """The clock, in whole seconds as certificates have it."""
    return datetime.now(UTC).replace(microsecond=0)
