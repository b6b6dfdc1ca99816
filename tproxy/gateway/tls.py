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
from dataclasses import dataclass, field

from tproxy.core.http_routes import HttpTable
from tproxy.core.reason import Deny, Reason
from tproxy.core.record import TlsFacts
from tproxy.core.routes import BackendTls, Terminate
from tproxy.gateway.gate import Door
from tproxy.identity.openssl import Role, Tls, TlsError
from tproxy.proxy.compiled import AnyLine
from tproxy.proxy.legs import TlsLeg
from tproxy.proxy.tls import MAX_HANDSHAKE, denial
from tproxy.proxy.trace import Trace

HTTP = ("h2", "http/1.1")


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """A client's certificate, as X-Forwarded-Client-Cert names its parts. Only verified ones come here."""

    hash: str  # SHA-256 of the DER, hexadecimal
    subject: str  # RFC 2253
    uris: tuple[str, ...]
    dns: tuple[str, ...]
    pem: str = field(repr=False)
    chain: str = field(repr=False)  # PEM: leaf and what the client sent with it


@dataclass(frozen=True, slots=True)
class Told:
    """What a handshake agreed on."""

    sni: str
    alpn: str  # "" where none was agreed on
    facts: TlsFacts
    peer: PeerCertificate | None = None


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
    told = told_of(leg, trace.sni)
    return door.gate.reactor.attach(leg, factory(told), told)


async def accept(sock: socket.socket, chain: Terminate, trace: Trace, door: Door) -> TlsLeg | Deny:
    """The server's handshake alone, for bytes that a relay carries."""
    role = door.gate.contexts.server(chain.tls, trace.sni, HTTP if isinstance(chain.inside, HttpTable) else ())
    if isinstance(role, Deny):
        return role
    leg = TlsLeg(sock, Tls(role))
    refused = await _shake(leg, role, door.gate.settings.hello, door)
    if refused is None:
        trace.tls = TlsFacts(*leg.tls.agreed())
    return refused or leg


async def begin(
    sock: socket.socket,
    tls: BackendTls,
    factory: Callable[[Told], asyncio.Protocol],
    door: Door,
    host: str = "",
    alpn: tuple[str, ...] = ("http/1.1",),
) -> AnyLine | Deny:
    """The client's handshake on a connected socket. ``host``: of the request, the SNI where ``tls`` sets none."""
    leg = await connect(sock, tls, door, host, alpn)
    if isinstance(leg, Deny):
        return leg
    told = told_of(leg, tls.sni or host)
    return door.gate.reactor.attach(leg, factory(told), told)


async def connect(
    sock: socket.socket, tls: BackendTls, door: Door, host: str = "", alpn: tuple[str, ...] = ()
) -> TlsLeg | Deny:
    """The client's handshake alone."""
    role = door.gate.contexts.client(tls, alpn)
    if isinstance(role, Deny):
        return role
    leg = TlsLeg(sock, Tls(role))
    leg.tls.ask_for(tls.sni or host)
    return await _shake(leg, role, door.gate.settings.connect, door) or leg


async def _shake(leg: TlsLeg, role: Role, seconds: float, door: Door) -> Deny | None:
    try:
        async with asyncio.timeout(seconds):
            await door.gate.reactor.shake(leg, MAX_HANDSHAKE)
    except TimeoutError:
        return Deny(Reason.HANDSHAKE_TIMEOUT, f"the handshake did not end in {seconds:g} s")
    except TlsError as error:
        if alert := leg.tls.take():
            with contextlib.suppress(OSError):
                leg.sock.send(alert)
        return denial(error, role.server)
    except OSError as error:
        return Deny(Reason.HANDSHAKE_FAILED, f"the peer broke off the handshake: {error.strerror or error}")
    return None


def told_of(leg: TlsLeg, sni: str) -> Told:
    """What the handshake of a leg agreed on."""
    return Told(sni, leg.tls.alpn, TlsFacts(*leg.tls.agreed()))
