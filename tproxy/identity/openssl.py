"""TLS by OpenSSL, as the ``cryptography`` wheel carries it: contexts, and connections that never touch a socket.

That OpenSSL is newer than most distributions', and the same everywhere (ARCHITECTURE.md has the measurements). What
pyOpenSSL does not wrap is called by its C name through the same binding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto

from tproxy.core.identity import Svid
from tproxy.identity.trust import Verifier

CIPHERS = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
CIPHERS_12 = b"ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2, where it is allowed: forward secret, no CBC
RECORD = 16384  # bytes of plaintext in one TLS record, at most (RFC 8446, 5.1)
TICKET_SECONDS = 600  # a chain that was verified longer ago than this is verified again
RELEASE_BUFFERS = 0x10  # openssl/ssl.h: an idle connection keeps no record buffers
UNUSABLE_KEY = "UNUSABLE_KEY"
VERIFY_FAILED = "CERTIFICATE_VERIFY_FAILED"

Ticket: TypeAlias = SSL.Session
_lib, _ffi = SSL._lib, SSL._ffi  # type: ignore[attr-defined]  # no public way to what is not wrapped


class TlsError(OSError):
    """OpenSSL refuses: ``reason`` in its own words (openssl/sslerr.h), for chains also X509_V_ERR_*, else 0."""

    def __init__(self, reason: str, verify_code: int = 0) -> None:
        why = verify_message(verify_code) if verify_code else reason.lower().replace("_", " ")
        super().__init__(why)
        self.reason, self.verify_code, self.why = reason, verify_code, why


def verify_message(code: int) -> str:
    """X509_V_ERR_* in words."""
    text: bytes = _ffi.string(_lib.X509_verify_cert_error_string(code))
    return text.decode("ascii", "replace")


def version() -> str:
    """As OpenSSL names itself."""
    return SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode()


@dataclass(frozen=True, slots=True)
class Role:
    """One side's context, made from one generation of credentials."""

    context: SSL.Context
    server: bool
    verifier: Verifier | None = None  # judges the peer's chain once the handshake is done


def role(
    server: bool,
    svid: Svid,
    bundle: bytes,
    alpn: Sequence[str],
    groups: Sequence[str] = (),
    resumption: bool = False,
    proven: bool = False,
    tls12: bool = False,
    verifier: Verifier | None = None,
) -> Role:
    """TLS 1.3 for one side (1.2 too, if asked). TlsError if key, chain or bundle do not fit. No file is touched.

    ``bundle`` holds every root that may be at the end of a peer's chain; whose root it must be, the verifier knows.

    Host names are not checked, because a SPIFFE id is, before the first byte is forwarded. With ``proven`` our own
    chain has been verified against the bundle: its intermediates, which most peers share, need no second look then.
    Of the protocols in ``alpn`` a server takes the first that is offered, or none.
    """
    made = SSL.Context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
    try:
        made.set_min_proto_version(SSL.TLS1_2_VERSION if tls12 else SSL.TLS1_3_VERSION)
        made.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
        if tls12:
            made.set_cipher_list(CIPHERS_12)
        made.set_tls13_ciphersuites(CIPHERS)
        if groups:
            _lib.SSL_CTX_set1_curves_list(made._context, ":".join(groups).encode())
        made.set_mode(RELEASE_BUFFERS)
        made.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        _credentials(made, svid, bundle, proven)
    except SSL.Error as error:
        raise made_error(error) from None
    _alpn(made, server, [name.encode() for name in alpn])
    _tickets(made, resumption)
    return Role(made, server, verifier)


def _key(pem: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        raise TlsError(UNUSABLE_KEY) from None


def _credentials(made: SSL.Context, svid: Svid, bundle: bytes, proven: bool) -> None:
    try:
        leaf, *others = x509.load_pem_x509_certificates(svid.chain_pem)
        key = _key(svid.key_pem)
        made.use_certificate(leaf)
        for other in others:
            made.add_extra_chain_cert(other)
        made.use_privatekey(key)  # type: ignore[arg-type]  # a kind that OpenSSL cannot use is refused there
        made.check_privatekey()
        store = made.get_cert_store()
        assert store is not None  # every context has one
        for block in bundle.split(b"-----END CERTIFICATE-----")[:-1]:
            root = block + b"-----END CERTIFICATE-----\n"
            store.add_cert(crypto.load_certificate(crypto.FILETYPE_PEM, root))
        if proven:
            store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
            for other in others:
                store.add_cert(crypto.X509.from_cryptography(other))
    except (ValueError, TypeError) as error:
        raise TlsError(f"UNUSABLE: {error}") from None
    except crypto.Error as error:
        raise made_error(error) from None


def _alpn(made: SSL.Context, server: bool, names: list[bytes]) -> None:
    if not server:
        made.set_alpn_protos(names)
        return
    none = SSL.NO_OVERLAPPING_PROTOCOLS
    made.set_alpn_select_callback(lambda _, offered: next((name for name in names if name in offered), none))


def _tickets(made: SSL.Context, resumption: bool) -> None:
    """Tickets are sealed with keys that live and die with this context: other credentials, other tickets."""
    made.set_session_id(b"tproxy")
    made.set_timeout(TICKET_SECONDS)
    made.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if not resumption:
        made.set_options(SSL.OP_NO_TICKET)


class Tls:
    """One connection's TLS between memory buffers: ``feed`` what arrived, ``take`` what is to be sent."""

    __slots__ = ("_server", "connection")

    def __init__(self, side: Role, ticket: Ticket | None = None) -> None:
        self.connection, self._server = SSL.Connection(side.context, None), side.server
        if side.server:
            self.connection.set_accept_state()
        else:
            self.connection.set_connect_state()
            if ticket is not None:
                self.connection.set_session(ticket)

    def feed(self, data: bytes | memoryview) -> None:
        """Ciphertext from the peer; all of it is kept until it is used."""
        if data:
            self.connection.bio_write(data)

    def take(self, limit: int = 1 << 20) -> bytes:
        """Ciphertext for the peer, at most ``limit`` bytes; empty if there is none."""
        try:
            return self.connection.bio_read(limit)
        except SSL.WantReadError:
            return b""

    def shake(self) -> bool:
        """Go on with the handshake; True when it is complete. TlsError if it cannot be."""
        try:
            self.connection.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.Error as error:
            raise self._failed(error) from None
        return True

    def read_into(self, buffer: memoryview) -> int | None:
        """Plaintext of one record; 0 when the peer has ended its direction; None: a whole record is not there yet."""
        try:
            return self.connection.recv_into(buffer, min(len(buffer), RECORD))
        except SSL.WantReadError:
            return None
        except SSL.ZeroReturnError:
            return 0
        except SSL.Error as error:
            raise self._failed(error) from None

    def write(self, data: memoryview) -> int:
        """Encrypt; the number of bytes taken, at least one."""
        try:
            return self.connection.send(data)
        except SSL.Error as error:
            raise self._failed(error) from None

    def close_notify(self) -> None:
        """End our direction; the peer may go on with its own (RFC 8446, 6.1)."""
        try:
            self.connection.shutdown()
        except SSL.Error as error:
            raise self._failed(error) from None

    def peer_certificate(self) -> bytes:
        """The peer's leaf, DER; empty if it sent none."""
        found = self.connection.get_peer_certificate()
        return b"" if found is None else crypto.dump_certificate(crypto.FILETYPE_ASN1, found)

    def peer_chain(self) -> tuple[bytes, ...]:
        """What the peer sent, DER, leaf first. A server that resumes has the leaf only."""
        sent = self.connection.get_peer_cert_chain() or ()
        found = tuple(crypto.dump_certificate(crypto.FILETYPE_ASN1, one) for one in sent)
        return (self.peer_certificate(), *found) if self._server else found  # SSL_get_peer_cert_chain(3)

    @property
    def binds_session(self) -> bool:
        """TLS 1.3, or 1.2 with the extended master secret (RFC 7627)."""
        tls13 = self.connection.get_protocol_version() >= SSL.TLS1_3_VERSION
        return tls13 or _lib.SSL_get_extms_support(self.connection._ssl) == 1

    def agreed(self) -> tuple[str, str, str]:
        """Version, cipher suite and group."""
        connection = self.connection
        return (
            connection.get_protocol_version_name(),
            connection.get_cipher_name() or "",
            connection.get_group_name() or "",
        )

    @property
    def alpn(self) -> str:
        """The protocol that was agreed on; empty: none."""
        return self.connection.get_alpn_proto_negotiated().decode("ascii", "replace")

    def ask_for(self, name: str) -> None:
        """A client's SNI, before the handshake."""
        if name:
            self.connection.set_tlsext_host_name(name.encode())

    def ticket(self) -> Ticket | None:
        """What a later connection may resume; there is none before the peer's first bytes, which carry it."""
        return self.connection.get_session()

    @property
    def resumed(self) -> bool:
        """Whether the handshake stood on an earlier one."""
        return bool(_lib.SSL_session_reused(self.connection._ssl))

    def addresses(self) -> tuple[int, int, int]:
        """Where SSL, the BIO for what arrives and the BIO for what leaves are in memory; alive as long as we are."""
        made = self.connection
        ssl, incoming, outgoing = (
            int(_ffi.cast("uintptr_t", it)) for it in (made._ssl, made._into_ssl, made._from_ssl)
        )
        return ssl, incoming, outgoing

    def failure(self) -> TlsError:
        """What went wrong in the call that just failed, from OpenSSL's queue of errors."""
        try:
            SSL._raise_current_error()
        except SSL.Error as error:
            return self._failed(error)
        return TlsError("SYSCALL")

    def _failed(self, error: SSL.Error) -> TlsError:
        made = made_error(error)
        if made.reason != VERIFY_FAILED:
            return made
        return TlsError(made.reason, _lib.SSL_get_verify_result(self.connection._ssl))


def made_error(error: Exception) -> TlsError:
    """pyOpenSSL's list of (library, function, reason); the first is the cause, unless it is why a chain is refused."""
    found = error.args[0] if error.args and isinstance(error.args[0], list) else []
    reasons = [str(one[2]).upper().replace(" ", "_") for one in found]
    if VERIFY_FAILED in reasons:
        return TlsError(VERIFY_FAILED)
    return TlsError(reasons[0] if reasons else (str(error) or type(error).__name__).upper().replace(" ", "_"))


def addresses(names: Sequence[str]) -> dict[str, int]:
    """Where functions of this OpenSSL are in memory. ImportError, or AttributeError, if the binding has changed."""
    from cryptography.hazmat.bindings._rust import _openssl  # the library itself, below pyOpenSSL's view of it

    return {name: _address(_openssl.ffi.addressof(_openssl.lib, name)) for name in names}


def _address(pointer: object) -> int:
    return int(_ffi.cast("uintptr_t", pointer))
