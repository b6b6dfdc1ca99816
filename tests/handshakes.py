"""Handshakes between an end of ours and a peer that is as lenient as OpenSSL can be, over a real socket."""

from __future__ import annotations

import asyncio
import socket
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from OpenSSL import SSL, crypto

from tests.forge import DOMAIN, Signed, ca, leaf
from tproxy.core.config import Config
from tproxy.core.identity import Snapshot, SpiffeId, Svid
from tproxy.core.reason import Deny
from tproxy.identity.openssl import Role, Ticket, Tls, TlsError
from tproxy.proxy.legs import TlsLeg
from tproxy.proxy.reactor import Reactor
from tproxy.proxy.tls import MAX_HANDSHAKE, Contexts, Session, contexts, handshake

OWN_ROOT = ca("our own root")
OWN = leaf(OWN_ROOT, f"spiffe://{DOMAIN}/ns/shop/sa/own", "p256-own")


def svid(chain: Sequence[Signed], spiffe_id: str) -> Svid:
    """Credentials for one of our ends."""
    facts = chain[0].parsed
    begin, end = int(facts.not_valid_before_utc.timestamp()), int(facts.not_valid_after_utc.timestamp())
    pem = b"".join(one.pem for one in chain)
    return Svid(SpiffeId.parse(spiffe_id), pem, chain[0].key_pem, facts.serial_number, begin, end)


def snapshot(bundles: Mapping[str, bytes], crls: tuple[bytes, ...] = ()) -> Snapshot:
    """Ours, with these bundles, whether or not our own root stands in them."""
    return Snapshot(svid([OWN], f"spiffe://{DOMAIN}/ns/shop/sa/own"), bundles, crls)


def ours(bundles: Mapping[str, bytes], crls: tuple[bytes, ...] = (), **data: Any) -> Contexts:
    """Our end's contexts with a configuration."""
    return contexts(snapshot(bundles, crls), Config.parse({"trustDomain": DOMAIN, **data}))


def lenient(chain: Sequence[Signed], server: bool, version: int = SSL.TLS1_3_VERSION) -> Role:
    """A peer that shows any chain and believes anyone."""
    made = SSL.Context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
    made.set_cipher_list(b"ALL:@SECLEVEL=0")
    made.set_max_proto_version(version)
    made.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    made.set_session_id(b"lenient")
    first, *others = (crypto.load_certificate(crypto.FILETYPE_ASN1, one.der) for one in chain)
    with warnings.catch_warnings(action="ignore"):  # pyOpenSSL wants what cryptography can read
        made.use_certificate(first)
        for other in others:
            made.add_extra_chain_cert(other)
    made.use_privatekey(chain[0].key)
    if server:
        made.set_alpn_select_callback(lambda _connection, offered: offered[0])
    else:
        made.set_alpn_protos([b"istio"])
    return Role(made, server)


async def met(end: Contexts, chain: Sequence[Signed], server_peer: bool) -> Session | Deny:
    """What our end says of a peer with this chain in this role."""
    return await between(end, lenient(chain, server_peer))


async def between(end: Contexts, peer: Role) -> Session | Deny:
    """One handshake of our end, in the role that the peer leaves us."""
    near, far = socket.socketpair()
    reactor = Reactor()
    try:
        near.setblocking(False)
        far.setblocking(False)
        other = asyncio.ensure_future(_shaken(TlsLeg(far, Tls(peer)), reactor))
        answer = await handshake(near, end.client if peer.server else end.server, 10, reactor)
        near.close()
        await other
        return answer
    finally:
        reactor.close()
        near.close()
        far.close()


async def _shaken(leg: TlsLeg, reactor: Reactor) -> None:
    """The peer's side; what it does not like, it says."""
    with suppress(OSError):  # our end has hung up
        try:
            await reactor.shake(leg, MAX_HANDSHAKE)
        except TlsError:
            leg.sock.send(leg.tls.take())


async def both(
    server: Contexts, client: Contexts, ticket: Ticket | None = None
) -> tuple[Session | Deny, Session | Deny, Ticket | None]:
    """What two ends of ours say of each other, server first, and what the client may resume next time."""
    near, far = socket.socketpair()
    reactor = Reactor()
    try:
        near.setblocking(False)
        far.setblocking(False)
        answers = await asyncio.gather(
            handshake(near, server.server, 10, reactor), handshake(far, client.client, 10, reactor, ticket)
        )
        return *answers, _ticket(*answers)
    finally:
        reactor.close()
        near.close()
        far.close()


def _ticket(server: Session | Deny, client: Session | Deny) -> Ticket | None:
    """It comes with the server's first bytes."""
    if isinstance(server, Deny) or isinstance(client, Deny):
        return None
    server.leg.tls.write(memoryview(b"x"))
    server.leg.sock.sendall(server.leg.tls.take())
    while client.leg.tls.read_into(memoryview(bytearray(16384))) is None:
        client.leg.sock.setblocking(True)
        client.leg.tls.feed(client.leg.sock.recv(65536))
    return client.leg.tls.ticket()
