"""Contexts for who is not of the mesh: clients from outside, and backends with certificates for host names.

Credentials are PEM in memory. What is not given has the defaults that users of Istio and Envoy Gateway expect: TLS 1.2
at least, 1.3 preferred, suites with forward secrecy, ECDSA before RSA where a name has both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from cryptography import x509
from OpenSSL import SSL, crypto

from tproxy.core.certificates import pem
from tproxy.identity.leaf import KeyPair, key_of
from tproxy.identity.openssl import CIPHERS_12, RELEASE_BUFFERS, TICKET_SECONDS, Role, Tls, TlsError, made_error

VERSIONS = {"1.0": SSL.TLS1_VERSION, "1.1": SSL.TLS1_1_VERSION, "1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
_OLD = ("1.0", "1.1")  # whose hashes only OpenSSL's security level 0 allows
PRIORITIZE_CHACHA = 1 << 21  # openssl/ssl.h: for clients that prefer it, because they lack AES in hardware
Judge: TypeAlias = Callable[[x509.Certificate, tuple[str, ...]], str]  # why a verified leaf is not wanted, or nothing


@dataclass(frozen=True, slots=True)
class Bounds:
    """Versions and suites; ``ciphers`` are those of TLS 1.2 and before."""

    minimum: str = "1.2"
    maximum: str = ""
    ciphers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """How a peer's certificate is verified. ``ca`` None: by what this machine trusts."""

    ca: bytes | None
    crl: bytes = b""
    judge: Judge | None = None
    required: bool = True
    insecure: bool = False  # what does not hold is noted, and nothing follows from it


@dataclass(slots=True)
class Notes:
    """Of one handshake: what is wanted, and what verification found."""

    wanted: tuple[str, ...] = ()
    code: int = 0  # X509_V_ERR_*
    why: str = ""  # what a judge says
    seen: bool = field(default=False)


def server(pairs: Sequence[KeyPair], alpn: Sequence[str], bounds: Bounds, check: Check | None = None) -> Role:
    """Certificates of one name, at most one of each kind of key: OpenSSL takes the one that the client can verify."""
    made = _context(SSL.TLS_SERVER_METHOD, bounds)
    for pair in pairs:
        _use(made, pair)
    if alpn:
        choices, none = [name.encode() for name in alpn], SSL.NO_OVERLAPPING_PROTOCOLS  # none: goes on without
        made.set_alpn_select_callback(lambda _, offered: next((one for one in choices if one in offered), none))
    made.set_session_id(b"tproxy")
    made.set_timeout(TICKET_SECONDS)
    made.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if check is not None:
        made.set_options(SSL.OP_NO_TICKET)  # who resumed would not be verified again, and its chain not be known
        _verify(made, check)
        for block in pem.certificates(check.ca or b""):
            made.add_client_ca(_certificate(block))
    return Role(made, True)


def client(pair: KeyPair | None, alpn: Sequence[str], bounds: Bounds, check: Check) -> Role:
    """Towards a backend."""
    made = _context(SSL.TLS_CLIENT_METHOD, bounds)
    if pair is not None:
        _use(made, pair)
    if alpn:
        made.set_alpn_protos([name.encode() for name in alpn])
    _verify(made, check)
    return Role(made, False)


def connection(role: Role, wanted: tuple[str, ...] = ()) -> tuple[Tls, Notes]:
    """A connection of such a context, and what will be noted of its handshake."""
    made, notes = Tls(role), Notes(wanted)
    made.connection.set_app_data(notes)
    return made, notes


def _context(method: int, bounds: Bounds) -> SSL.Context:
    made = SSL.Context(method)
    made.set_min_proto_version(VERSIONS[bounds.minimum])
    if bounds.maximum:
        made.set_max_proto_version(VERSIONS[bounds.maximum])
    made.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    made.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE | PRIORITIZE_CHACHA)
    made.set_mode(RELEASE_BUFFERS)
    suites = ":".join(bounds.ciphers).encode() or CIPHERS_12
    try:
        made.set_cipher_list(suites + (b":@SECLEVEL=0" if bounds.minimum in _OLD else b""))
    except SSL.Error as error:
        raise made_error(error) from None
    return made


def _use(made: SSL.Context, pair: KeyPair) -> None:
    """Each certificate keeps its own intermediates: OpenSSL reads those only from a file, so it is one in memory."""
    fd = os.memfd_create("tproxy", os.MFD_CLOEXEC)
    try:
        os.write(fd, pair.chain)
        made.use_certificate_chain_file(f"/proc/self/fd/{fd}")
        made.use_privatekey(key_of(pair.key))  # type: ignore[arg-type]  # what OpenSSL cannot use is refused there
        made.check_privatekey()
    except SSL.Error as error:
        raise made_error(error) from None
    except TypeError:
        raise TlsError("THIS KIND OF KEY IS NOT SUPPORTED") from None
    finally:
        os.close(fd)


def _verify(made: SSL.Context, check: Check) -> None:
    store = made.get_cert_store()
    assert store is not None  # every context has one
    if check.ca is None:
        made.set_default_verify_paths()
    blocks = pem.certificates(check.ca or b"")
    if check.ca is not None and not blocks and not check.insecure:
        raise TlsError("THERE IS NO CERTIFICATE IN THE CA BUNDLE")
    try:
        for block in blocks:
            store.add_cert(crypto.X509.from_cryptography(_certificate(block)))
        for block in pem.crls(check.crl):
            store.add_crl(x509.load_pem_x509_crl(block))
    except ValueError:
        raise TlsError("THE CRL CANNOT BE READ") from None
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    if check.crl:
        store.set_flags(crypto.X509StoreFlags.CRL_CHECK)
    made.set_verify(
        SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if check.required and not check.insecure else 0),
        lambda connection, leaf, code, depth, ok: _judged(check, connection, leaf, code, depth, bool(ok)),
    )


def _judged(check: Check, connection: SSL.Connection, leaf: crypto.X509, code: int, depth: int, holds: bool) -> bool:
    """Whether the handshake goes on; called for each certificate of a path, the leaf last."""
    notes = connection.get_app_data()
    assert isinstance(notes, Notes)
    notes.seen = True
    if not holds:
        notes.code = notes.code or code
    elif depth == 0 and check.judge is not None:
        notes.why = check.judge(leaf.to_cryptography(), notes.wanted)
    return check.insecure or (holds and not notes.why)


def _certificate(block: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(block)
    except ValueError:
        raise TlsError("THE CA BUNDLE CANNOT BE READ") from None
