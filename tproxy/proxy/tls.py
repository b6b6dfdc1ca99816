"""TLS of the mesh: contexts from a snapshot of credentials, the handshake, and who the peer proved to be.

In the handshake OpenSSL verifies the chain against all bundles that we have. Whether it leads to the bundle of the
peer's own trust domain, and is not revoked, identity.trust decides before the first byte is forwarded.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tproxy.core.decide import MESH_ALPN
from tproxy.core.identity import Snapshot, SpiffeId
from tproxy.core.reason import Deny, Reason
from tproxy.core.record import TlsFacts
from tproxy.identity.openssl import Role, Ticket, Tls, TlsError, role
from tproxy.identity.trust import Chain, Verifier, reason
from tproxy.proxy.compiled import AnyReactor
from tproxy.proxy.legs import TlsLeg
from tproxy.proxy.sessions import Sessions

if TYPE_CHECKING:
    from tproxy.core.config import Config

MAX_HANDSHAKE = 256 * 1024  # bytes of a peer's whole handshake; a chain longer than that is hostile

_NOT_TLS = frozenset(
    ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "PACKET_LENGTH_TOO_LONG", "UNEXPECTED_MESSAGE")
)


@dataclass(frozen=True, slots=True)
class Contexts:
    """Both roles of one snapshot of credentials."""

    snapshot: Snapshot
    server: Role
    client: Role
    verifier: Verifier = field(repr=False)
    sessions: Sessions = field(default_factory=Sessions, repr=False)

    def recheck(self, chain: Chain, server_peer: bool, now: float) -> Deny | None:
        """Whether the peer of a live connection would still be believed, if its leaf had not expired meanwhile.

        ``chain`` is the connection's Session.chain, of whatever generation; ``server_peer``: we dialled it.
        """
        return self.verifier.recheck(chain, server_peer, now)


@dataclass(frozen=True, slots=True)
class Session:
    """A finished handshake."""

    leg: TlsLeg
    peer: SpiffeId
    peer_serial: int
    facts: TlsFacts
    chain: Chain = field(repr=False)  # the peer's; one for all connections that brought it
    not_after: int  # of the peer's certificate, unix seconds


def contexts(snapshot: Snapshot, config: Config) -> Contexts:
    """Contexts that trust the bundles of our own and of the federated trust domains. The snapshot must be proven."""
    bundles, verifier = _bundles(snapshot, config), Verifier(snapshot, config.trust, config.trust_domain)
    server, client = (
        role(
            is_server,
            snapshot.svid,
            bundles,
            (MESH_ALPN,),
            config.groups,
            config.fast.resumption,
            proven=True,
            tls12=config.tls12,
            verifier=verifier,
        )
        for is_server in (True, False)
    )
    return Contexts(snapshot, server, client, verifier)


def front(made: Contexts, config: Config, alpn: Sequence[str], tls12: bool) -> Role:
    """A server of the same generation that speaks other protocols. Nothing resumes: each caller shows its chain."""
    snapshot = made.snapshot
    bundles = _bundles(snapshot, config)
    return role(True, snapshot.svid, bundles, alpn, config.groups, proven=True, tls12=tls12, verifier=made.verifier)


def _bundles(snapshot: Snapshot, config: Config) -> bytes:
    federated = (other.trust_domain for other in config.trust.federated)
    domains = (config.trust_domain, *federated)
    return b"".join(snapshot.bundles[domain] for domain in domains if domain in snapshot.bundles)


async def handshake(
    sock: socket.socket, side: Role, seconds: float, reactor: AnyReactor, ticket: Ticket | None = None
) -> Session | Deny:
    """A handshake within ``seconds``, then the peer's id. The socket stays the caller's to close."""
    leg = TlsLeg(sock, Tls(side, ticket))
    try:
        failed = await shaken(leg, seconds, reactor)
    except TlsError as error:
        _last_alert(sock, leg.tls)
        return denial(error, side.server)
    return failed or session(leg, side)


async def shaken(leg: TlsLeg, seconds: float, reactor: AnyReactor) -> Deny | None:
    """The handshake itself; TlsError where OpenSSL ends it."""
    try:
        async with asyncio.timeout(seconds):
            await reactor.shake(leg, MAX_HANDSHAKE)
    except TimeoutError:
        return Deny(Reason.HANDSHAKE_TIMEOUT, f"the handshake did not end in {seconds:g} s")
    except TlsError:
        raise
    except OSError as error:
        return Deny(Reason.HANDSHAKE_FAILED, f"the peer broke off the handshake: {error.strerror or error}")
    return None


def session(leg: TlsLeg, side: Role) -> Session | Deny:
    """Who the peer is. A resumed handshake verified nothing, so that the chain it stands on is judged anew."""
    tls, verifier = leg.tls, side.verifier
    assert verifier is not None  # contexts() gives each role one
    if not tls.binds_session:
        return Deny(Reason.HANDSHAKE_FAILED, "TLS 1.2 without the extended master secret (RFC 7627)")
    peer = verifier.meet(tls.peer_chain())
    if isinstance(peer, Deny):
        return peer
    now = time.time()
    if tls.resumed or not verifier.handshake_suffices(now):
        found = verifier.check(peer.chain, not side.server, now)
    else:
        found = verifier.foreign(peer.id) or peer.id
    if isinstance(found, Deny):
        return found
    return Session(leg, peer.id, peer.facts.serial, TlsFacts(*tls.agreed()), peer.chain, peer.facts.not_after)


def _last_alert(sock: socket.socket, tls: Tls) -> None:
    """Tell the peer why, if its socket takes it at once."""
    if alert := tls.take():
        with contextlib.suppress(OSError):
            sock.send(alert)


def denial(error: TlsError, server: bool) -> Deny:
    """OpenSSL's error in our words."""
    said = error.reason
    if error.verify_code:
        return Deny(reason(error.verify_code), f"the peer's certificate: {error.why}")
    if said == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return Deny(Reason.NO_CERTIFICATE, "the caller sent no client certificate")
    if "ALERT" in said:
        return Deny(
            Reason.REFUSED_BY_PEER, f"the peer refused with the TLS alert {said.partition('ALERT_')[2].lower()}"
        )
    if said in _NOT_TLS and not server:
        return Deny(Reason.PEER_NOT_TLS, "the destination answered something that is not TLS")
    return Deny(Reason.HANDSHAKE_FAILED, f"OpenSSL says {error.why}")
