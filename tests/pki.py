"""Certificates as people have them: authorities, names, kinds of keys, old versions, lists of revoked ones."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tproxy.control import authority


@dataclass(frozen=True)
class Cert:
    """A certificate (with its intermediates) and its key, PEM."""

    made: x509.Certificate
    pem: bytes
    key: bytes

    @property
    def hash(self) -> str:
        return self.made.fingerprint(hashes.SHA256()).hex()

    def files(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Where curl, openssl and nginx find it."""
        paths = folder / f"{name}.crt", folder / f"{name}.key"
        paths[0].write_bytes(self.pem)
        paths[1].write_bytes(self.key)
        return paths


class Ca:
    """An authority that issues whatever it is asked for."""

    def __init__(self, name: str) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = authority.new_key("ecdsa")
        now = authority.utc_now()
        self.made = (
            _builder(self.name, self.name, self._key.public_key())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self.made.public_bytes(serialization.Encoding.PEM)

    def issue(self, *names: str, kind: str = "ecdsa", client: bool = False, days: float = 1, cn: str = "") -> Cert:
        """For DNS names, URIs and addresses; the first is the common name. Negative days: it has expired."""
        key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else authority.new_key("ecdsa")
        now = authority.utc_now()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn or names[0])])
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        made = (
            _builder(subject, self.name, key.public_key())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Cert(made, made.public_bytes(serialization.Encoding.PEM), text)

    def crl(self, *revoked: Cert) -> bytes:
        """Of these."""
        now = authority.utc_now()
        made = x509.CertificateRevocationListBuilder().issuer_name(self.name)
        made = made.last_update(now - timedelta(minutes=1)).next_update(now + timedelta(days=1))
        for one in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(one.made.serial_number).revocation_date(now)
            made = made.add_revoked_certificate(entry.build())
        return made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def version_one(folder: Path, name: str) -> Cert:
    """As ``openssl x509 -req`` makes it without an extension file: X.509 version 1, a common name (003-07)."""
    run = ["openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", f"/O=x/CN={name}"]
    subprocess.run([*run, "-keyout", "v1.key", "-out", "v1.csr"], cwd=folder, check=True, capture_output=True)
    sign = ["openssl", "x509", "-req", "-in", "v1.csr", "-signkey", "v1.key", "-days", "2", "-out", "v1.crt"]
    subprocess.run(sign, cwd=folder, check=True, capture_output=True)
    text = (folder / "v1.crt").read_bytes()
    made = x509.load_pem_x509_certificate(text)
    assert made.version is x509.Version.v1
    return Cert(made, text, (folder / "v1.key").read_bytes())


def _builder(subject: x509.Name, issuer: x509.Name, public: object) -> x509.CertificateBuilder:
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    return made.public_key(public).serial_number(x509.random_serial_number())  # type: ignore[arg-type]


def _general(name: str) -> x509.GeneralName:
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
