"""A certificate in words: who, for what, until when, from whom, and whether it is a good SVID."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tproxy.core.certificates import pem
from tproxy.core.certificates.x509 import Malformed, leaf_facts
from tproxy.core.identity import svid_id
from tproxy.core.reason import Deny

_USES = {"1.3.6.1.5.5.7.3.1": "server", "1.3.6.1.5.5.7.3.2": "client"}


@dataclass(frozen=True, slots=True)
class Explained:
    """What ``tproxy ca show`` says of one certificate."""

    who: str
    kind: str
    svid: str
    uses: str
    valid: str
    key: str
    issuer: str
    serial: str


def certificates(text: bytes) -> list[x509.Certificate]:
    """All certificates of a PEM file; ValueError if one is damaged."""
    return [x509.load_pem_x509_certificate(block) for block in pem.certificates(text)]


def explain(certificate: x509.Certificate, now: datetime) -> Explained:
    """In words."""
    leaf = leaf_facts(certificate.public_bytes(serialization.Encoding.DER))
    if isinstance(leaf, Malformed):
        who, kind, svid, uses = "unreadable", "damaged", f"no: {leaf.why}", ""
    else:
        found = svid_id(leaf)
        who = ", ".join(leaf.uris) or certificate.subject.rfc4514_string() or "nobody (no name)"
        kind = "certificate authority" if leaf.is_ca else "workload"
        svid = f"no: {found.why}" if isinstance(found, Deny) else f"yes, {found}"
        if leaf.is_ca:
            svid = "a signing certificate, not a workload's"
        oids = sorted(_USES.get(oid, oid) for oid in leaf.eku or ())
        uses = ", ".join(oids) if leaf.eku else "any (no extended key usage)"
    return Explained(
        who=who,
        kind=kind,
        svid=svid,
        uses=uses,
        valid=validity(certificate.not_valid_before_utc, certificate.not_valid_after_utc, now),
        key=_key(certificate),
        issuer=certificate.issuer.rfc4514_string() or "(empty)",
        serial=f"{certificate.serial_number:x}",
    )


def validity(begin: datetime, end: datetime, now: datetime) -> str:
    """From, until, and what that means now."""
    span = f"{begin:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} UTC"
    if now >= end:
        return f"{span}: expired {in_words(now - end)} ago"
    if now < begin:
        return f"{span}: begins in {in_words(begin - now)}"
    return f"{span}: expires in {in_words(end - now)}"


def in_words(span: timedelta) -> str:
    """The two largest units: ``2 d 3 h``, ``59 min 12 s``."""
    seconds = int(span.total_seconds())
    units = (("d", seconds // 86400), ("h", seconds // 3600 % 24), ("min", seconds // 60 % 60), ("s", seconds % 60))
    parts = [f"{count} {unit}" for unit, count in units]
    first = next((index for index, (_, count) in enumerate(units) if count), 3)
    return " ".join(parts[first : first + 2])


def _key(certificate: x509.Certificate) -> str:
    match certificate.public_key():
        case ec.EllipticCurvePublicKey() as key:
            return f"ECDSA {key.curve.name}"
        case rsa.RSAPublicKey() as key:
            return f"RSA {key.key_size}"
        case key:
            return type(key).__name__.removesuffix("PublicKey")
