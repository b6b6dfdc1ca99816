"""TLS that a gateway ends, and TLS that it begins: the handshake, what was agreed on, and the transport behind it.

    match await secure(down, chain, lambda told: Http1(told), trace, door):
        case Deny() as deny: ...
        case line: ...  # the protocol has been told connection_made

Both leave the socket to the caller when they refuse: after an alert, if there is one to be sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tproxy.core.certificates.subject import PeerCertificate
from tproxy.core.certificates.xfcc import xfcc
from tproxy.core.hostnames import is_address
from tproxy.core.http.routes import HttpTable
from tproxy.core.reason import Deny, Reason
from tproxy.core.record import TlsFacts
from tproxy.core.routes import BackendTls, Terminate, TlsMode
from tproxy.gateway.contexts import Contexts
from tproxy.gateway.mesh import NOWHERE
from tproxy.identity import fronts
from tproxy.identity.fronts import Notes
from tproxy.identity.leaf import peer_certificate
from tproxy.identity.openssl import Tls, TlsError, verify_message
from tproxy.identity.trust import reason
from tproxy.proxy.compiled import AnyLine, AnyReactor
from tproxy.proxy.legs import TlsLeg
from tproxy.proxy.tls import Contexts as MeshContexts
from tproxy.proxy.tls import denial, handshake, session, shaken
from tproxy.proxy.trace import Trace
from tproxy.proxy.transport import LINGER

if TYPE_CHECKING:
    from tproxy.gateway.gate import Door

CERT_REVOKED = 23  # openssl/x509_vfy.h
HTTP = ("h2", "http/1.1")


@dataclass(frozen=True, slots=True)
class Told:
    """What a handshake agreed on."""

    sni: str
    alpn: str  # "" where none was agreed on
    facts: TlsFacts
    peer: PeerCertificate | None = None
    own: str = ""  # our SPIFFE id, where it was shown

    @property
    def xfcc(self) -> str:
        """As X-Forwarded-Client-Cert says it; empty without a verified certificate."""
        peer = self.peer
        return "" if peer is None else xfcc(peer.hash, peer.pem, peer.subject, peer.uris, peer.dns, self.own)


async def secure(
    sock: socket.socket,
    chain: Terminate,
    factory: Callable[[Told], asyncio.Protocol],
    trace: Trace,
    door: Door,
) -> AnyLine | Deny:
    """The server's handshake on a socket whose ClientHello is still unread, then the protocol on what it agreed on."""
    leg = await accept(sock, chain, trace, door)
    if isinstance(leg, Deny):
        return leg
    leg.sock = socket.socket(fileno=sock.detach())  # the transport's alone, which may outlive the connection's task
    told = Told(trace.sni, leg.tls.alpn, TlsFacts(*leg.tls.agreed()), proven(leg, trace), trace.own)
    return door.gate.reactor.attach(leg, factory(told), told)


async def accept(sock: socket.socket, chain: Terminate, trace: Trace, door: Door) -> TlsLeg | Deny:
    """The server's handshake alone, for bytes that a relay carries."""
    alpn = HTTP if isinstance(chain.inside, HttpTable) else ()  # bytes may be any protocol: none is chosen for them
    if chain.tls.mode is TlsMode.MESH:
        return await _of_mesh(sock, chain, alpn, trace, door)
    role = door.gate.contexts.server(chain.tls, trace.sni or door.gate.settings.default_sni, alpn)
    if isinstance(role, Deny):
        return role
    tls, notes = fronts.connection(role)
    leg = TlsLeg(sock, tls)
    with door.gate.half_open(trace.source.ip) as full:
        refused = full or await _shake(
            leg, partial(_of_client, notes=notes), door.gate.settings.hello, door.gate.reactor, LINGER
        )
    if refused is None:
        trace.tls = TlsFacts(*tls.agreed())
    return refused or leg


async def _of_mesh(
    sock: socket.socket, chain: Terminate, alpn: tuple[str, ...], trace: Trace, door: Door
) -> TlsLeg | Deny:
    """With our own SVID, to who has one."""
    if (mesh := door.gate.mesh) is None:
        return NOWHERE
    role = mesh.server(alpn, chain.tls.minimum)
    leg = TlsLeg(sock, Tls(role))
    with door.gate.half_open(trace.source.ip) as full:
        told = partial(denial, server=True)
        refused = full or await _shake(leg, told, door.gate.settings.hello, door.gate.reactor, LINGER)
    found = refused or session(leg, role)
    if isinstance(found, Deny):
        return found
    if (deny := mesh.admit(trace, found, chain.tls.check)) is not None:
        return deny
    now = door.gate.mesh  # which may be another by now
    return next((deny for _, deny in now.fallen((trace,))), leg) if now is not None else NOWHERE


@dataclass(frozen=True, slots=True)
class Means:
    """With what backends are called."""

    contexts: Contexts
    mesh: MeshContexts | None
    reactor: AnyReactor
    seconds: float  # for a handshake


async def begin(
    sock: socket.socket,
    tls: BackendTls,
    factory: Callable[[Told], asyncio.Protocol],
    means: Means,
    host: str = "",
    alpn: tuple[str, ...] = ("http/1.1",),
) -> AnyLine | Deny:
    """The client's handshake on a connected socket. ``host``: of the request, the SNI where ``tls`` sets none."""
    leg = await connect(sock, tls, means, host, alpn)
    if isinstance(leg, Deny):
        return leg
    told = Told(tls.sni or host or tls.host, leg.tls.alpn, TlsFacts(*leg.tls.agreed()))
    return means.reactor.attach(leg, factory(told), told)


async def connect(
    sock: socket.socket, tls: BackendTls, means: Means, host: str = "", alpn: tuple[str, ...] = ()
) -> TlsLeg | Deny:
    """The client's handshake alone. A backend is verified unless the configuration says in so many words not to."""
    if tls.mode == "ISTIO_MUTUAL":
        return await _workload(sock, tls, means)
    role = means.contexts.client(tls, alpn)
    if isinstance(role, Deny):
        return role
    name = tls.sni or host or tls.host
    made, notes = fronts.connection(role, tls.names or ((name,) if name else ()))
    if not is_address(name):
        made.ask_for(name)
    leg = TlsLeg(sock, made)
    return await _shake(leg, partial(_of_backend, notes=notes), means.seconds, means.reactor) or leg


async def _workload(sock: socket.socket, tls: BackendTls, means: Means) -> TlsLeg | Deny:
    """With our own SVID to a sidecar, whose id must be one that is wanted, if some are."""
    if means.mesh is None:
        return Deny(Reason.NO_CREDENTIALS, "the gateway has no identity in the mesh: --mesh gives it one")
    found = await handshake(sock, means.mesh.client, means.seconds, means.reactor)
    if isinstance(found, Deny):
        return found
    if tls.names and str(found.peer) not in tls.names:
        return Deny(Reason.PEER_UNEXPECTED, f"it is {found.peer}, not {' or '.join(tls.names)}")
    return found.leg


async def _shake(
    leg: TlsLeg, told: Callable[[TlsError], Deny], seconds: float, reactor: AnyReactor, linger: float = 0
) -> Deny | None:
    """``linger``: seconds in which a peer that is refused may still read why."""
    try:
        return await shaken(leg, seconds, reactor)
    except TlsError as error:
        await _last_words(leg, reactor, linger)
        return told(error)


async def _last_words(leg: TlsLeg, reactor: AnyReactor, seconds: float) -> None:
    """The alert, and a while in which it can be read: in TLS 1.3 a client may have sent its request already."""
    sock, alert = leg.sock, leg.tls.take()
    with contextlib.suppress(OSError, TimeoutError):
        sock.send(alert)
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(seconds):
            while alert:
                await reactor.readable(sock)
                if not sock.recv(65536):
                    return


def _of_client(error: TlsError, notes: Notes) -> Deny:
    """Why a client's handshake failed."""
    if notes.why:
        return Deny(Reason.CLIENT_UNTRUSTED, notes.why)
    if notes.code:
        return Deny(
            _reason(notes.code, Reason.CLIENT_UNTRUSTED), f"the client's certificate: {verify_message(notes.code)}"
        )
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return Deny(Reason.NO_CERTIFICATE, "the client shows no certificate")
    if "ALERT" in error.reason:
        alert = error.reason.partition("ALERT_")[2].lower().replace("_", " ")
        return Deny(Reason.REFUSED_BY_CLIENT, f"the client ended the handshake with the TLS alert {alert!r}")
    return Deny(Reason.HANDSHAKE_FAILED, f"OpenSSL says {error.why}")


def _of_backend(error: TlsError, notes: Notes) -> Deny:
    """Why a backend's did."""
    if notes.why:
        return Deny(Reason.BACKEND_UNTRUSTED, notes.why)
    if notes.code:
        return Deny(_reason(notes.code, Reason.BACKEND_UNTRUSTED), f"its certificate: {verify_message(notes.code)}")
    return denial(error, False)


def _reason(code: int, otherwise: Reason) -> Reason:
    """Of X509_V_ERR_*; what is only about the chain is ``otherwise``."""
    found = Reason.PEER_REVOKED if code == CERT_REVOKED else reason(code)
    return otherwise if found is Reason.PEER_UNTRUSTED else found


def proven(leg: TlsLeg, trace: Trace) -> PeerCertificate | None:
    """The client's certificate, if it showed one and that holds."""
    if trace.proven is not None:
        return peer_certificate(trace.proven.chain)
    notes = leg.tls.connection.get_app_data()
    verified = isinstance(notes, Notes) and notes.seen and not notes.code and not notes.why
    return peer_certificate(leg.tls.peer_chain()) if verified else None
