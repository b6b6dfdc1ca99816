"""TLS of the mesh: contexts from a snapshot of credentials, the handshake, and who the peer proved to be.

OpenSSL verifies the chain against our trust domain's bundle; the SPIFFE rules are core.identity's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from tproxy.core.decide import MESH_ALPN
from tproxy.core.identity import Snapshot, SpiffeId, svid_id
from tproxy.core.reason import Deny, Reason
from tproxy.core.record import TlsFacts
from tproxy.core.x509 import LeafFacts, Malformed, leaf_facts
from tproxy.identity.openssl import Role, Ticket, Tls, TlsError, role
from tproxy.proxy.compiled import AnyReactor
from tproxy.proxy.legs import TlsLeg
from tproxy.proxy.sessions import Sessions

MAX_HANDSHAKE = 256 * 1024  # bytes of a peer's whole handshake; a chain longer than that is hostile

_VERIFY = {  # openssl/x509_vfy.h
    9: Reason.PEER_NOT_YET_VALID,
    10: Reason.PEER_EXPIRED,
    26: Reason.PEER_WRONG_USAGE,
}
_NOT_TLS = frozenset(
    ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "PACKET_LENGTH_TOO_LONG", "UNEXPECTED_MESSAGE")
)


@dataclass(frozen=True, slots=True)
class Contexts:
    """Both roles of one snapshot of credentials."""

    snapshot: Snapshot
    server: Role
    client: Role
    sessions: Sessions = field(default_factory=Sessions, repr=False)

    def recheck(self, chain: tuple[bytes, ...], server_peer: bool, now: float) -> Deny | None:
        """Stub until the verifier is there."""
        return None


@dataclass(frozen=True, slots=True)
class Session:
    """A finished handshake."""

    leg: TlsLeg
    peer: SpiffeId
    peer_serial: int
    facts: TlsFacts
    not_after: int = 0
    chain: tuple[bytes, ...] = ()


def contexts(snapshot: Snapshot, trust_domain: str, groups: Sequence[str] = (), resumption: bool = False) -> Contexts:
    """Contexts that trust the bundle of our own trust domain and nothing else. The snapshot must be proven already."""
    server, client = (
        role(server, snapshot.svid, snapshot.bundles[trust_domain], MESH_ALPN, groups, resumption, proven=True)
        for server in (True, False)
    )
    return Contexts(snapshot, server, client)


async def handshake(
    sock: socket.socket, side: Role, seconds: float, reactor: AnyReactor, ticket: Ticket | None = None
) -> Session | Deny:
    """A handshake within ``seconds``, then the peer's id. The socket stays the caller's to close."""
    leg = TlsLeg(sock, Tls(side, ticket))
    try:
        async with asyncio.timeout(seconds):
            await reactor.shake(leg, MAX_HANDSHAKE)
    except TimeoutError:
        return Deny(Reason.HANDSHAKE_TIMEOUT, f"the handshake did not end in {seconds:g} s")
    except TlsError as error:
        _last_alert(sock, leg.tls)
        return denial(error, side.server)
    except OSError as error:
        return Deny(Reason.HANDSHAKE_FAILED, f"the peer broke off the handshake: {error.strerror or error}")
    certificate = leg.tls.peer_certificate()
    match _identify(hashlib.sha256(certificate).digest(), certificate):
        case Deny() as deny:
            return deny
        case (peer, leaf):
            # a full handshake has just verified the chain; a resumed one stands on an earlier verification
            if leg.tls.resumed and not leaf.not_before <= time.time() < leaf.not_after:
                return Deny(Reason.PEER_EXPIRED, "the peer's certificate has expired since the session began")
            return Session(leg, peer, leaf.serial, TlsFacts(*leg.tls.agreed()), leaf.not_after)


def _last_alert(sock: socket.socket, tls: Tls) -> None:
    """Tell the peer why, if its socket takes it at once."""
    if alert := tls.take():
        with contextlib.suppress(OSError):
            sock.send(alert)


@lru_cache(maxsize=1024)
def _identify(_digest: bytes, certificate: bytes) -> tuple[SpiffeId, LeafFacts] | Deny:
    match leaf_facts(certificate):
        case Malformed(why):
            return Deny(Reason.PEER_BAD_ID, f"the peer's certificate cannot be read: {why}")
        case LeafFacts() as leaf:
            found = svid_id(leaf)
            return found if isinstance(found, Deny) else (found, leaf)


def denial(error: TlsError, server: bool) -> Deny:
    """OpenSSL's error in our words."""
    reason = error.reason
    if error.verify_code:
        return Deny(_VERIFY.get(error.verify_code, Reason.PEER_UNTRUSTED), f"the peer's certificate: {error.why}")
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return Deny(Reason.NO_CERTIFICATE, "the caller sent no client certificate")
    if "ALERT" in reason:
        return Deny(
            Reason.REFUSED_BY_PEER, f"the peer refused with the TLS alert {reason.partition('ALERT_')[2].lower()}"
        )
    if reason in _NOT_TLS and not server:
        return Deny(Reason.PEER_NOT_TLS, "the destination answered something that is not TLS")
    return Deny(Reason.HANDSHAKE_FAILED, f"OpenSSL says {error.why}")
