"""Who is believed: a peer's chain against the bundle of the peer's OWN trust domain, the SPIFFE rules, and CRLs.

A root vouches for the ids of its own trust domain only; roots are never one mixed pool (SPIFFE Trust Domain and Bundle,
section 3). Verification allows no clock skew: our CA begins certificates 60 s early, and ends them on the second.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cryptography import x509

from tproxy.core.certificates import pem
from tproxy.core.certificates.x509 import LeafFacts, Malformed, leaf_facts
from tproxy.core.identity import Snapshot, SpiffeId, svid_id
from tproxy.core.reason import Deny, Reason
from tproxy.core.settings import Trust
from tproxy.identity import crl
from tproxy.identity.path import Anchors, NoPath, Path, parsed

log = logging.getLogger("tproxy")
CHAIN_LIMIT = 16  # certificates; a longer chain is a mistake or an attack
REMEMBERED = 1024  # chains
BYTES = 32 * 1024  # of a chain; four certificates with ML-DSA keys fit
_REASONS = {  # openssl/x509_vfy.h
    9: Reason.PEER_NOT_YET_VALID,
    10: Reason.PEER_EXPIRED,
    26: Reason.PEER_WRONG_USAGE,
}
Chain = tuple[bytes, ...]  # DER, leaf first


def reason(code: int) -> Reason:
    """Of an X509_V_ERR_*."""
    return _REASONS.get(code, Reason.PEER_UNTRUSTED)


K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The most recently used values."""

    def __init__(self) -> None:
        self._kept: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def keep(self, key: K, value: V) -> None:
        self._kept[key] = value
        self._kept.move_to_end(key)
        if len(self._kept) > REMEMBERED:
            self._kept.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Peer:
    """A chain, and what its leaf says of itself."""

    id: SpiffeId
    facts: LeafFacts
    chain: Chain = field(repr=False)

    @classmethod
    def of(cls, chain: Chain) -> Peer | Deny:
        """Deny if the leaf is no SVID's or the chain is endless. Nothing is verified."""
        if len(chain) > CHAIN_LIMIT or sum(map(len, chain)) > BYTES:
            why = f"the peer's chain has {len(chain)} certificates and {sum(map(len, chain))} bytes, more than we read"
            return Deny(Reason.PEER_UNTRUSTED, why)
        match leaf_facts(chain[0]):
            case Malformed(why):
                return Deny(Reason.PEER_BAD_ID, f"the peer's certificate cannot be read: {why}")
            case LeafFacts() as leaf:
                found = svid_id(leaf)
                return found if isinstance(found, Deny) else cls(found, leaf, chain)


@dataclass(frozen=True, slots=True)
class _Answer:
    peer: SpiffeId
    begin: int
    end: int  # in the last second the path is looked at again


class Verifier:
    """Judges chains by one snapshot. Answers are remembered; validity is looked at anew with each question."""

    def __init__(self, snapshot: Snapshot, trust: Trust, own: str) -> None:
        """``own`` is our trust domain. ValueError (CrlError) on bundles and CRLs that ``proven`` would have refused."""
        self._own, self._aliases = own, frozenset(trust.aliases)
        self._listed = frozenset(other.trust_domain for other in trust.federated)
        self._anchors = {
            domain: Anchors(bundle)
            for domain, bundle in snapshot.bundles.items()
            if domain == own or domain in self._listed
        }
        self._crls = crl.parse(snapshot.crls)
        self._stale: set[x509.Name] = set()
        self._answers = Recent[tuple[Chain, bool], _Answer]()
        self._met = Recent[bytes, Peer]()
        self._counting = Recent[tuple[int, x509.Certificate], bool]()
        self._ours = tuple(map(pem.der, pem.certificates(snapshot.svid.chain_pem)))
        self._alone_until = self._own_end(time.time())
        self._unknown_crls()

    def handshake_suffices(self, now: float) -> bool:
        """Whether OpenSSL's verification in a handshake is all that there is to ask: no federation, no CRLs.

        It takes the intermediates of our own chain for anchors, which holds as long as their own path is valid.
        """
        return now < self._alone_until and not self._crls and len(self._anchors) == 1

    def meet(self, chain: Chain) -> Peer | Deny:
        """Who the leaf says it is; nothing is verified. One Peer is shared by all connections that bring its chain.

        A leaf may come alone: a server that resumes has no more, and some peers send no more. The rest is then what it
        came with before, or else the intermediates that most peers share with us.
        """
        known = self._met.get(chain[0])
        if known is not None and (known.chain == chain or len(chain) == 1):
            return known
        found = Peer.of(chain if len(chain) > 1 else (*chain, *self._ours[1:]))
        if isinstance(found, Peer):
            self._met.keep(chain[0], found)
        return found

    def check(self, chain: Chain, server: bool, now: float) -> SpiffeId | Deny:
        """Who the peer is that proved to hold the leaf's key; ``server``: the peer's role. Unix seconds."""
        known = self._answers.get((chain, server))
        if known is not None and known.begin <= now < known.end:
            return known.peer
        answer = self._judged(chain, server, now)
        if isinstance(answer, Deny):
            return answer
        self._answers.keep((chain, server), answer)
        return answer.peer

    def recheck(self, chain: Chain, server: bool, now: float) -> Deny | None:
        """Why a live connection's peer is no longer believed. That its leaf has expired is not asked here."""
        who = self.meet(chain)
        answer = who if isinstance(who, Deny) else self.check(chain, server, min(now, who.facts.not_after - 1))
        return answer if isinstance(answer, Deny) else None

    def _judged(self, chain: Chain, server: bool, now: float) -> _Answer | Deny:
        who = self.meet(chain)
        if isinstance(who, Deny):
            return who
        peer = who.id
        if foreign := self.foreign(peer):
            return foreign
        domain = self._domain(peer)
        anchors = self._anchors[domain]
        match anchors.path(chain, server, now):
            case NoPath(code, depth, why):
                return Deny(reason(code), f"{peer}: {_whose(depth)}, against the bundle of {domain}: {why}")
            case Path() as path:
                return self._revoked(peer, path, anchors, now) or _Answer(peer, path.begin, path.end)

    def _domain(self, peer: SpiffeId) -> str:
        return self._own if peer.trust_domain in self._aliases else peer.trust_domain

    def foreign(self, peer: SpiffeId) -> Deny | None:
        """Why we cannot know this peer, whatever its chain: nobody's bundle speaks for its trust domain."""
        if self._domain(peer) in self._anchors:
            return None
        if peer.trust_domain in self._listed:
            why = f"{peer} is of a federated trust domain whose bundle nobody brought (trust.federated[].bundle)"
            return Deny(Reason.PEER_FOREIGN, why)
        known = ", ".join((self._own, *sorted(self._aliases | self._listed)))
        return Deny(Reason.PEER_FOREIGN, f"{peer} is of another trust domain than {known}")

    def _revoked(self, peer: SpiffeId, path: Path, anchors: Anchors, now: float) -> Deny | None:
        """Each certificate of the path in the lists of whoever issued it; a root has no issuer."""
        if not self._crls:
            return None
        found = [parsed(one) for one in path.certificates]
        for depth, one in enumerate(found):
            if one is None:
                return Deny(Reason.PEER_UNTRUSTED, f"{_whose(depth)} is too odd to be looked up in CRLs")
            if depth == len(found) - 1 and one.subject == one.issuer:
                break
            for listed in self._lists_of(one, found[depth + 1 : depth + 2] or anchors.parsed(), now):
                serial = path.certificates[depth].get_serial_number()
                if (since := listed.revoked.get(serial)) is not None:
                    moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since))
                    why = f"{peer}: {_whose(depth)}, serial {serial:x}, is revoked since {moment}"
                    return Deny(Reason.PEER_REVOKED, why)
        return None

    def _lists_of(
        self, one: x509.Certificate, issuers: Sequence[x509.Certificate | None], now: float
    ) -> Iterator[crl.Crl]:
        """Those that count for this certificate."""
        for number, found in enumerate(self._crls):
            if found.issuer == one.issuer and any(it and self._counts(number, it) for it in issuers):
                if found.end is not None and found.end <= now and found.issuer not in self._stale:
                    self._stale.add(found.issuer)
                    said = "the CRL of %s is %.0f s past its nextUpdate; it still counts"
                    log.warning(said, found.issuer.rfc4514_string(), now - found.end)
                yield found

    def _counts(self, number: int, issuer: x509.Certificate) -> bool:
        """Whether this issuer signed that one of our lists, and may."""
        known = self._counting.get((number, issuer))
        if known is None:
            known = crl.may_sign(issuer) and self._crls[number].is_signed_by(issuer)
            self._counting.keep((number, issuer), known)
        return known

    def _own_end(self, now: float) -> float:
        """When the path above our own leaf ends; 0 if there is none."""
        found = self._anchors[self._own].path(self._ours, True, now) if self._own in self._anchors else None
        if not isinstance(found, Path):
            return 0.0
        return found.end

    def _unknown_crls(self) -> None:
        """Say which lists cannot count, as far as that is known without the chains of peers; what counts is kept."""
        if not self._crls:
            return
        known = [it for anchors in self._anchors.values() for it in anchors.parsed()]
        known += map(x509.load_der_x509_certificate, self._ours[1:])
        for number, found in enumerate(self._crls):
            signers = [it for it in known if found.is_signed_by(it)]
            for it in signers:
                self._counting.keep((number, it), crl.may_sign(it))
            name = found.issuer.rfc4514_string()
            if not signers:
                log.warning(
                    "the CRL of %s is signed by nobody we know; it counts where a peer's chain has its signer", name
                )
            elif not any(map(crl.may_sign, signers)):
                log.warning("the CRL of %s does not count: its issuer lacks cRLSign", name)


def _whose(depth: int) -> str:
    return f"certificate {depth} of the peer's chain" if depth else "the peer's certificate"
