"""TLS of the mesh: contexts from a snapshot of credentials, the handshake, and who the peer proved to be.

OpenSSL verifies the chain against our trust domain's bundle; the SPIFFE rules are core.identity's.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from tproxy.core.decide import MESH_ALPN
from tproxy.core.hello import ServerHello, group_name, server_hello
from tproxy.core.identity import Snapshot, SpiffeId, svid_id
from tproxy.core.reason import Deny, Reason
from tproxy.core.record import TlsFacts
from tproxy.core.x509 import LeafFacts, Malformed, leaf_facts
from tproxy.identity.context import context
from tproxy.proxy.legs import TlsLeg
from tproxy.proxy.wait import readable, send_all

FLIGHT = 64 * 1024  # bytes read at once during a handshake
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
    server: ssl.SSLContext
    client: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class Session:
    """A finished handshake."""

    leg: TlsLeg
    peer: SpiffeId
    peer_serial: int
    facts: TlsFacts


def contexts(snapshot: Snapshot, trust_domain: str) -> Contexts:
    """Contexts that trust the bundle of our own trust domain and nothing else. ssl.SSLError if the PEM does not fit."""
    server, client = (
        context(kind, snapshot.svid, snapshot.bundles[trust_domain])
        for kind in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
    )
    for made in (server, client):
        made.set_alpn_protocols([MESH_ALPN])
        made.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    server.num_tickets = 0  # no resumption: every connection proves its identity anew
    return Contexts(snapshot, server, client)


async def handshake(sock: socket.socket, role: ssl.SSLContext, server: bool, seconds: float) -> Session | Deny:
    """A handshake within ``seconds``, then the peer's id. The socket stays the caller's to close."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = role.wrap_bio(incoming, outgoing, server_side=server)
    hello: list[bytes] = []  # the server's first flight, whoever sent it: it names the group
    try:
        async with asyncio.timeout(seconds):
            await _shake(
                sock, tls, incoming, outgoing, lambda data, ours: hello.append(data) if ours is server else None
            )
    except TimeoutError:
        return Deny(Reason.HANDSHAKE_TIMEOUT, f"the handshake did not end in {seconds:g} s")
    except ssl.SSLError as error:
        await _last_alert(sock, outgoing)
        return denial(error, server)
    except OSError as error:
        return Deny(Reason.HANDSHAKE_FAILED, f"the peer broke off the handshake: {error.strerror or error}")
    certificate = tls.getpeercert(binary_form=True) or b""
    match _identify(hashlib.sha256(certificate).digest(), certificate):
        case Deny() as deny:
            return deny
        case (peer, serial):
            return Session(TlsLeg(sock, tls, incoming, outgoing), peer, serial, _facts(tls, hello))


async def _shake(
    sock: socket.socket,
    tls: ssl.SSLObject,
    incoming: ssl.MemoryBIO,
    outgoing: ssl.MemoryBIO,
    saw: Callable[[bytes, bool], None],
) -> None:
    """Flights back and forth until OpenSSL is content; bounded by the caller's deadline and MAX_HANDSHAKE."""
    total = 0
    while True:
        try:
            tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        if outgoing.pending:
            flight = outgoing.read()
            saw(flight, True)
            await send_all(sock, flight)
        if done:
            return
        data = await _receive(sock)
        total += len(data)
        if not data or total > MAX_HANDSHAKE:
            raise ConnectionResetError("closed" if not data else f"more than {MAX_HANDSHAKE} bytes of handshake")
        saw(data, False)
        incoming.write(data)


async def _receive(sock: socket.socket) -> bytes:
    while True:
        try:
            return sock.recv(FLIGHT)
        except BlockingIOError:
            await readable(sock)


async def _last_alert(sock: socket.socket, outgoing: ssl.MemoryBIO) -> None:
    """Tell the peer why, if its socket takes it at once."""
    if outgoing.pending:
        try:
            sock.send(outgoing.read())
        except OSError:
            return


@lru_cache(maxsize=1024)
def _identify(_digest: bytes, certificate: bytes) -> tuple[SpiffeId, int] | Deny:
    match leaf_facts(certificate):
        case Malformed(why):
            return Deny(Reason.PEER_BAD_ID, f"the peer's certificate cannot be read: {why}")
        case LeafFacts() as leaf:
            found = svid_id(leaf)
            return found if isinstance(found, Deny) else (found, leaf.serial)


def denial(error: ssl.SSLError, server: bool) -> Deny:
    """OpenSSL's error in our words."""
    reason, text = error.reason or "", str(error.args[1] if len(error.args) > 1 else error)
    if isinstance(error, ssl.SSLCertVerificationError):
        name = _VERIFY.get(error.verify_code, Reason.PEER_UNTRUSTED)
        return Deny(name, f"the peer's certificate: {error.verify_message}")
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return Deny(Reason.NO_CERTIFICATE, "the caller sent no client certificate")
    if "ALERT" in reason:
        return Deny(
            Reason.REFUSED_BY_PEER, f"the peer refused with the TLS alert {reason.partition('ALERT_')[2].lower()}"
        )
    if reason in _NOT_TLS and not server:
        return Deny(Reason.PEER_NOT_TLS, "the destination answered something that is not TLS")
    return Deny(Reason.HANDSHAKE_FAILED, f"OpenSSL says {reason.lower() or text}")


def _facts(tls: ssl.SSLObject, flights: list[bytes]) -> TlsFacts:
    cipher = tls.cipher()
    found = server_hello(b"".join(flights))
    group = group_name(found.group) if isinstance(found, ServerHello) and found.group is not None else ""
    return TlsFacts(tls.version() or "", cipher[0] if cipher else "", group)
