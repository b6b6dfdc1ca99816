"""Certificates that no honest authority would sign, signed by one all the same."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from tproxy.control import authority
from tproxy.control.authority import Pair
from tproxy.control.store import signer

BOTH = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)


def usage(sign: bool = False, digital: bool = True) -> x509.KeyUsage:
    """A key usage with these two bits."""
    return x509.KeyUsage(digital, False, False, False, False, sign, False, False, False)


def twisted(
    folder: Path,
    uris: tuple[str, ...],
    *,
    begin: timedelta = timedelta(seconds=-60),
    end: timedelta = timedelta(hours=1),
    ca: bool = False,
    eku: tuple[x509.ObjectIdentifier, ...] | None = BOTH,
    keys: x509.KeyUsage | None = None,
    self_signed: bool = False,
) -> tuple[bytes, bytes]:
    """A chain and a key as PEM, from the authority in ``folder`` (or from itself)."""
    middle, key, now = signer(folder), authority.new_key("ecdsa"), authority.utc_now()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]) if self_signed else middle.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begin)
        .not_valid_after(now + end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(keys or usage(), critical=True)
    )
    if eku is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(eku), critical=False)
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=True)
    leaf = Pair(builder.sign(key if self_signed else middle.key, hashes.SHA256()), key)
    return leaf.certificate_pem() + middle.certificate_pem(), leaf.key_pem()
