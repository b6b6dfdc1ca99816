"""Certificate revocation lists (RFC 5280, section 5): whole lists of one issuer; what else there is, is refused.

A list past its nextUpdate still counts: what was revoked stays revoked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import CRLEntryExtensionOID, ExtensionOID

from tproxy.core.certificates import pem
from tproxy.core.certificates.x509 import LeafFacts, leaf_facts

_KNOWN_OF_ENTRY = {CRLEntryExtensionOID.CRL_REASON, CRLEntryExtensionOID.INVALIDITY_DATE}
_ODD = (UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType)


class CrlError(ValueError):
    """A list that cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Crl:
    """One issuer's list. Times are unix seconds; ``end`` is None without nextUpdate."""

    issuer: x509.Name
    revoked: Mapping[int, int] = field(repr=False)  # serial -> since when
    end: int | None
    parsed: x509.CertificateRevocationList = field(repr=False)

    def is_signed_by(self, issuer: x509.Certificate) -> bool:
        """Whether this issuer's name is on it, and its key made the signature."""
        if self.issuer != issuer.subject:
            return False
        try:
            return self.parsed.is_signature_valid(cast(CertificateIssuerPublicKeyTypes, issuer.public_key()))
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
            return False


def parse(blocks: Iterable[bytes]) -> tuple[Crl, ...]:
    """Every list in PEM or DER. CrlError: it is unreadable, a delta, indirect, or holds what we do not understand."""
    found: list[Crl] = []
    for block in blocks:
        for one in pem.crls(block) or [block]:
            found.append(_parsed(one))
    return tuple(found)


def may_sign(issuer: x509.Certificate) -> bool:
    """Whether its key usage, if it has one, allows it to sign lists (RFC 5280, 6.3.3, f)."""
    facts = leaf_facts(issuer.public_bytes(Encoding.DER))
    return isinstance(facts, LeafFacts) and (facts.key_usage is None or "cRLSign" in facts.key_usage)


def _parsed(block: bytes) -> Crl:
    load = x509.load_pem_x509_crl if block.startswith(b"-----BEGIN") else x509.load_der_x509_crl
    try:
        crl = load(block)
        issuer = crl.issuer
        _understood(crl.extensions, issuer)
        revoked = {one.serial_number: _since(one, issuer) for one in crl}
    except CrlError:
        raise
    except (ValueError, *_ODD) as error:
        raise CrlError(f"a CRL cannot be read: {error}") from error
    end = crl.next_update_utc
    return Crl(issuer, revoked, None if end is None else int(end.timestamp()), crl)


def _understood(extensions: x509.Extensions, issuer: x509.Name) -> None:
    said = f"the CRL of {issuer.rfc4514_string() or 'a nameless issuer'}"
    for one in extensions:
        if one.oid == ExtensionOID.DELTA_CRL_INDICATOR:
            raise CrlError(f"{said} is a delta of another; give the complete one")
        if isinstance(one.value, x509.IssuingDistributionPoint):
            if one.value.indirect_crl:
                raise CrlError(f"{said} is indirect (it speaks for other issuers), which is not supported")
        elif one.critical:
            raise CrlError(f"{said} has the critical extension {one.oid.dotted_string}, which we do not understand")


def _since(entry: x509.RevokedCertificate, issuer: x509.Name) -> int:
    for one in entry.extensions:
        if one.critical and one.oid not in _KNOWN_OF_ENTRY:
            raise CrlError(
                f"the CRL of {issuer.rfc4514_string()} says something critical of serial {entry.serial_number:x} "
                f"({one.oid.dotted_string}) that we do not understand"
            )
    return int(entry.revocation_date_utc.timestamp())
