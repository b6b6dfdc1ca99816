"""Whether credentials can be used at all: every source's snapshots pass here before anyone sees them.

The proof is a handshake with ourselves, in memory: certificate, key, chain and bundle fit, or OpenSSL says why not.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from tproxy.core.certificates.pem import certificates, der
from tproxy.core.certificates.x509 import LeafFacts, Malformed, leaf_facts
from tproxy.core.identity import Snapshot, SpiffeId, Svid, svid_id
from tproxy.core.reason import Deny
from tproxy.identity import crl
from tproxy.identity.openssl import UNUSABLE_KEY, Tls, TlsError, role
from tproxy.identity.trust import CHAIN_LIMIT

BUNDLE_LIMIT = 1000  # roots of one trust domain
_PAIR = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH")


class Part(StrEnum):
    """Which part of the credentials is at fault."""

    CHAIN = "certificate chain"
    KEY = "private key"
    PAIR = "pair of certificate and key"  # of two generations, perhaps: a rotation under way looks like that
    BUNDLE = "trust bundle"
    CRL = "certificate revocation list"


class UnusableError(ValueError):
    """These credentials cannot be used; ``part`` is at fault, ``why`` is a sentence without any secret."""

    def __init__(self, part: Part, why: str) -> None:
        super().__init__(f"the {part} {why}")
        self.part, self.why = part, why


def proven(
    chain: bytes,
    key: bytes,
    bundles: Mapping[str, bytes],
    trust_domain: str,
    now: float,
    crls: tuple[bytes, ...] = (),
) -> Snapshot:
    """A snapshot of a PEM chain (leaf first), its PEM key and PEM bundles by trust domain; ``now`` in unix seconds.

    UnusableError if it is not an SVID, or of another trust domain, expired, not of this key or not of this bundle.
    """
    blocks = certificates(chain)
    if not blocks:
        raise UnusableError(Part.CHAIN, "holds no PEM certificate (-----BEGIN CERTIFICATE-----)")
    if len(blocks) > CHAIN_LIMIT:
        raise UnusableError(Part.CHAIN, f"has {len(blocks)} certificates, more than {CHAIN_LIMIT}")
    leaf = _leaf(blocks[0])
    who = _id(leaf, trust_domain, now)
    checked = {domain: checked_bundle(bundle) for domain, bundle in bundles.items()}
    if trust_domain not in checked:
        raise UnusableError(Part.BUNDLE, f"of our own trust domain {trust_domain} is missing")
    svid = Svid(who, b"".join(blocks), key, leaf.serial, leaf.not_before, leaf.not_after)
    _prove(svid, checked[trust_domain])
    if crls:
        _read(crls)
    return Snapshot(svid, checked, crls)


def checked_bundle(bundle: bytes) -> bytes:
    """The certificates of a bundle, and nothing else that stood between them; one of them at least is a CA's."""
    blocks = certificates(bundle)
    if not blocks:
        raise UnusableError(Part.BUNDLE, "holds no PEM certificate, so it trusts nobody")
    if len(blocks) > BUNDLE_LIMIT:
        raise UnusableError(Part.BUNDLE, f"has {len(blocks)} certificates, more than {BUNDLE_LIMIT}")
    if not any(_is_ca(block) for block in blocks):
        raise UnusableError(Part.BUNDLE, "holds no certificate of a CA (CA:true), so it trusts nobody")
    return b"".join(blocks)


def _leaf(block: bytes) -> LeafFacts:
    try:
        leaf = leaf_facts(der(block))
    except ValueError as error:
        raise UnusableError(Part.CHAIN, f"is damaged: its first PEM block: {error}") from error
    if isinstance(leaf, Malformed):
        raise UnusableError(Part.CHAIN, f"is damaged: its first certificate cannot be read: {leaf.why}")
    return leaf


def _is_ca(block: bytes) -> bool:
    """Damaged ones count: OpenSSL will name them."""
    try:
        found = leaf_facts(der(block))
    except ValueError:
        return True
    return not isinstance(found, LeafFacts) or found.is_ca


def _id(leaf: LeafFacts, trust_domain: str, now: float) -> SpiffeId:
    found = svid_id(leaf)
    if isinstance(found, Deny):
        raise UnusableError(Part.CHAIN, f"is not an X.509-SVID: {found.why}; {found.advice}")
    if found.trust_domain != trust_domain:
        why = f"is {found}, of another trust domain than {trust_domain} (trustDomain)"
        raise UnusableError(Part.CHAIN, why)
    if now >= leaf.not_after:
        raise UnusableError(Part.CHAIN, f"expired {now - leaf.not_after:.0f} s ago; renew it")
    if now < leaf.not_before:
        raise UnusableError(Part.CHAIN, f"is valid only in {leaf.not_before - now:.0f} s; compare clocks")
    return found


def _read(crls: tuple[bytes, ...]) -> None:
    try:
        crl.parse(crls)
    except crl.CrlError as error:
        raise UnusableError(Part.CRL, f"cannot be used: {error}") from error


def _prove(svid: Svid, bundle: bytes) -> None:
    """A TLS 1.3 handshake with ourselves, both sides verifying, in memory."""
    try:
        ends = tuple(Tls(role(server, svid, bundle, ("own",))) for server in (False, True))
    except TlsError as error:
        if error.reason in _PAIR:
            raise UnusableError(Part.PAIR, "does not fit: the key is another certificate's") from error
        if error.reason == UNUSABLE_KEY:
            raise UnusableError(Part.KEY, "is damaged, or of a kind that cannot be used") from error
        raise UnusableError(Part.CHAIN, f"is refused by OpenSSL: {error.why}") from error
    try:
        for _ in range(3):
            for end, other in (ends, ends[::-1]):
                end.shake()
                other.feed(end.take())
    except TlsError as error:
        if error.verify_code:
            raise UnusableError(Part.CHAIN, f"does not verify against our own trust bundle: {error.why}") from error
        raise UnusableError(Part.CHAIN, f"fails a handshake with itself: {error.why}") from error
