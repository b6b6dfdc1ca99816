"""TLS versions, ciphers and renegotiation of our ends, against OpenSSL's own program and peers who want more."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from OpenSSL import SSL

from tests.forge import DOMAIN, ID, ca, leaf
from tests.handshakes import OWN_ROOT, between, lenient, ours, svid
from tproxy.core.config import Config
from tproxy.core.identity import Snapshot
from tproxy.core.reason import Deny, Reason
from tproxy.identity.openssl import Role, Tls, TlsError
from tproxy.proxy.reactor import Reactor
from tproxy.proxy.tls import Contexts, Session, contexts, handshake

BUNDLES = {DOMAIN: OWN_ROOT.pem}
OLD = {"tls": {"minVersion": "1.2"}}
MIDDLE = ca("our middle", OWN_ROOT)
PEER = (leaf(MIDDLE), MIDDLE)
RSA_PEER = (leaf(MIDDLE, key_name="rsa2048-leaf"), MIDDLE)
TLS12 = SSL.TLS1_2_VERSION
NO_EMS = 1 << 0  # openssl/ssl.h: SSL_OP_NO_EXTENDED_MASTER_SECRET
ROLES = pytest.mark.parametrize("server", [False, True], ids=["client", "server"])


def peer(server: bool, ciphers: bytes = b"", options: int = 0, chain: Sequence[object] = PEER) -> Role:
    """A peer that speaks TLS 1.2 at most."""
    made = lenient(chain, server, TLS12)  # type: ignore[arg-type]
    made.context.set_options(options)
    if ciphers:
        made.context.set_cipher_list(ciphers)
    return made


@ROLES
def test_tls_1_2_is_refused_by_default(server: bool) -> None:
    answer = asyncio.run(between(ours(BUNDLES), peer(server)))
    assert isinstance(answer, Deny) and answer.reason in (Reason.HANDSHAKE_FAILED, Reason.REFUSED_BY_PEER)
    assert "protocol" in answer.why


@ROLES
def test_tls_1_2_works_where_it_is_allowed_and_1_3_is_still_preferred(server: bool) -> None:
    old = asyncio.run(between(ours(BUNDLES, **OLD), peer(server)))
    new = asyncio.run(between(ours(BUNDLES, **OLD), lenient(PEER, server)))
    assert isinstance(old, Session) and isinstance(new, Session)
    assert (old.facts.version, new.facts.version) == ("TLSv1.2", "TLSv1.3")
    assert str(old.peer) == ID and len(old.chain) == 2


@ROLES
@pytest.mark.parametrize(
    ("cipher", "works"),
    [
        (b"ECDHE-ECDSA-AES128-GCM-SHA256", True),
        (b"ECDHE-ECDSA-AES256-GCM-SHA384", True),
        (b"ECDHE-ECDSA-CHACHA20-POLY1305", True),
        (b"ECDHE-ECDSA-AES128-SHA256", False),  # CBC
        (b"ECDHE-ECDSA-AES128-CCM", False),
        (b"ECDHE-RSA-AES128-GCM-SHA256", True),
        (b"AES128-GCM-SHA256", False),  # not forward secret
        (b"DHE-RSA-AES128-GCM-SHA256", False),
    ],
)
def test_tls_1_2_is_forward_secret_over_curves_and_authenticated(cipher: bytes, works: bool, server: bool) -> None:
    chain = PEER if b"ECDSA" in cipher else RSA_PEER
    end = ours(BUNDLES, **OLD) if server or chain is PEER else _rsa()
    answer = asyncio.run(between(end, peer(server, cipher + b":@SECLEVEL=0", chain=chain)))
    assert isinstance(answer, Session) is works, answer


def _rsa() -> Contexts:
    """Our server with an RSA certificate, which a suite with RSA in its name needs."""
    made = Snapshot(svid(RSA_PEER, ID), BUNDLES)
    return contexts(made, Config.parse({"trustDomain": DOMAIN, **OLD}))


@ROLES
def test_tls_1_2_without_the_extended_master_secret_is_refused(server: bool) -> None:
    answer = asyncio.run(between(ours(BUNDLES, **OLD), peer(server, options=NO_EMS)))
    assert isinstance(answer, Deny) and answer.reason is Reason.HANDSHAKE_FAILED and "RFC 7627" in answer.why


@ROLES
def test_nobody_renegotiates(server: bool) -> None:
    end = ours(BUNDLES, **OLD)
    near, far = Tls(end.client if server else end.server), Tls(peer(server))
    for _ in range(4):
        for one, other in ((near, far), (far, near)):
            one.shake()
            other.feed(one.take())
    agreed = near.connection.get_finished()
    assert far.connection.renegotiate()
    with suppress(TlsError):  # who was told "no renegotiation" gives up
        for _ in range(4):
            far.shake()
            for one, other in ((far, near), (near, far)):
                other.feed(one.take())
                other.read_into(memoryview(bytearray(16384)))
    assert near.connection.total_renegotiations() == 0 and near.connection.get_finished() == agreed


# the system's own programs


async def _called_by(end: Contexts, argv: Sequence[str]) -> tuple[Session | Deny, str]:
    """Our server's answer to an ``openssl s_client``, and what that printed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        program = await asyncio.create_subprocess_exec(
            "openssl", "s_client", "-connect", f"127.0.0.1:{listener.getsockname()[1]}", *argv,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
        sock.setblocking(False)
        reactor = Reactor()
        answer = await handshake(sock, end.server, 10, reactor)
        reactor.close()
        if isinstance(answer, Session):
            answer.leg.tls.close_notify()
            sock.sendall(answer.leg.tls.take())
        sock.close()
        out, _ = await asyncio.wait_for(program.communicate(), 10)
        return answer, out.decode(errors="replace")


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("allowed", [False, True])
def test_openssl_s_client_meets_the_versions_that_are_allowed(version: str, allowed: bool, tmp_path: Path) -> None:
    cert, more, roots = (tmp_path / name for name in ("cert.pem", "more.pem", "roots.pem"))
    cert.write_bytes(PEER[0].pem + PEER[0].key_pem)
    more.write_bytes(MIDDLE.pem)
    roots.write_bytes(OWN_ROOT.pem)
    argv = [version, "-cert", str(cert), "-key", str(cert), "-cert_chain", str(more), "-CAfile", str(roots)]
    answer, said = asyncio.run(_called_by(ours(BUNDLES, **(OLD if allowed else {})), [*argv, "-alpn", "istio"]))
    if version == "-tls1_3" or allowed:
        assert isinstance(answer, Session), answer
        assert answer.facts.version == version.replace("-tls", "TLSv").replace("_", ".")
        assert len(answer.chain) == 2 and "Compression: NONE" in said and "Verification: OK" in said
    else:
        assert isinstance(answer, Deny) and "unsupported protocol" in answer.why and "alert protocol version" in said
