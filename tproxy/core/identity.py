"""Who a peer is: SPIFFE ids, patterns over them, and the one id that a certificate may carry.

Source: SPIFFE-ID and X509-SVID specifications (spiffe.io). Paths are case-sensitive and are never normalised.

>>> IdPattern.parse("ns/shop/sa/*", "cluster.local").matches(SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/web"))
True
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from tproxy.core.certificates.x509 import LeafFacts
from tproxy.core.reason import Deny, Reason

_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
_MAX_ID = 2048


def parse_trust_domain(text: str) -> str:
    """The trust domain's name, which is lower case letters, digits, dots, dashes and underscores."""
    if not _DOMAIN.fullmatch(text) or text in (".", ".."):
        raise ValueError(f"{text!r} is not a trust domain: lower case letters, digits, '.', '-', '_' only")
    return text


def is_segment(text: str) -> bool:
    """Whether this may stand between the slashes of an id: a namespace, a service account."""
    return text not in (".", "..") and _SEGMENT.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """``spiffe://<trust domain>/<path>``; the path is a tuple of segments and may not be empty in a workload's id."""

    trust_domain: str
    path: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """ValueError says which rule of the SPIFFE-ID specification (section 2) the text breaks."""
        if len(text) > _MAX_ID:
            raise ValueError(f"a SPIFFE id has at most {_MAX_ID} bytes, this one {len(text)}")
        if not text.startswith("spiffe://"):
            raise ValueError(f"{text!r} does not start with spiffe://")
        domain, *path = text[len("spiffe://") :].split("/")
        parse_trust_domain(domain)
        if not path:
            raise ValueError(f"{text!r} names a trust domain, not a workload: the path is missing")
        for segment in path:
            if not is_segment(segment):
                raise ValueError(f"{text!r}: {segment!r} is not a path segment")
        return cls(domain, tuple(path))

    @classmethod
    def workload(cls, trust_domain: str, namespace: str, service_account: str) -> SpiffeId:
        """Istio's form, ``spiffe://<trust domain>/ns/<namespace>/sa/<service account>``."""
        for name in (namespace, service_account):
            if not is_segment(name):  # a slash in it would make another workload's path
                raise ValueError(f"{name!r} is not a path segment")
        return cls.parse(f"spiffe://{parse_trust_domain(trust_domain)}/ns/{namespace}/sa/{service_account}")

    def canonical(self, own: str, aliases: Collection[str]) -> SpiffeId:
        """Compared as this: an alias of our own trust domain means our own (Istio's trustDomainAliases)."""
        return replace(self, trust_domain=own) if self.trust_domain in aliases else self

    @property
    def namespace(self) -> str | None:
        """The Kubernetes namespace of an id in Istio's form, else None."""
        return self.path[1] if len(self.path) == 4 and self.path[::2] == ("ns", "sa") else None

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/{'/'.join(self.path)}"


@dataclass(frozen=True, slots=True)
class IdPattern:
    """A SPIFFE id in which ``*`` stands for exactly one whole path segment."""

    trust_domain: str
    path: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, own_domain: str) -> IdPattern:
        """A whole id, or a path such as ``ns/shop/sa/web`` or ``ns/*/sa/web`` in our own trust domain."""
        whole = text if text.startswith("spiffe://") else f"spiffe://{own_domain}/{text}"
        domain, *path = whole.removeprefix("spiffe://").split("/")
        SpiffeId.parse("/".join((f"spiffe://{domain}", *("any" if part == "*" else part for part in path))))
        return cls(domain, tuple(path))

    def canonical(self, own: str, aliases: Collection[str]) -> IdPattern:
        """As SpiffeId.canonical."""
        return replace(self, trust_domain=own) if self.trust_domain in aliases else self

    def matches(self, peer: SpiffeId) -> bool:
        """Compare segment by segment; lengths must be equal."""
        return (
            peer.trust_domain == self.trust_domain
            and len(peer.path) == len(self.path)
            and all(want in ("*", have) for want, have in zip(self.path, peer.path, strict=True))
        )

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/{'/'.join(self.path)}"


@dataclass(frozen=True, slots=True)
class Svid:
    """An X.509-SVID and its private key, as PEM. The key is never shown."""

    id: SpiffeId
    chain_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    serial: int
    not_before: int  # unix seconds
    not_after: int  # unix seconds


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a sidecar needs to prove who it is and to check others; replaced whole, never changed."""

    svid: Svid
    bundles: Mapping[str, bytes] = field(repr=False)  # trust domain -> PEM roots; never one mixed pool
    crls: tuple[bytes, ...] = field(default=(), repr=False)  # PEM or DER; each counts for whoever signed it


def svid_id(leaf: LeafFacts) -> SpiffeId | Deny:
    """The one id of a leaf whose chain is verified already (X509-SVID, sections 2-5), or why it has none."""
    if len(leaf.uris) != 1:
        if not leaf.uris:
            return Deny(Reason.PEER_NO_ID, "the certificate has no URI SAN, so it names no SPIFFE id")
        return Deny(Reason.PEER_MANY_IDS, f"the certificate has {len(leaf.uris)} URI SANs; an SVID has exactly one")
    if leaf.is_ca:
        return Deny(Reason.PEER_IS_CA, "the certificate is a CA's (CA:true), not a workload's")
    if usage := (leaf.key_usage or frozenset()) & {"keyCertSign", "cRLSign"}:
        return Deny(Reason.PEER_IS_CA, f"the certificate may sign others ({', '.join(sorted(usage))})")
    if leaf.key_usage is None or "digitalSignature" not in leaf.key_usage:
        return Deny(Reason.PEER_WRONG_USAGE, "the certificate's key usage lacks digitalSignature")
    try:
        return SpiffeId.parse(leaf.uris[0])
    except ValueError as error:
        return Deny(Reason.PEER_BAD_ID, str(error))
