"""Contexts for who is not of the mesh: clients from outside, and backends with certificates for host names.

Credentials are PEM in memory; no file is touched. What is not given has the defaults that users of Istio and Envoy
Gateway expect: TLS 1.2 at least, 1.3 preferred, suites with forward secrecy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto

from tproxy.core import pem
from tproxy.identity.openssl import CIPHERS_12, RELEASE_BUFFERS, TICKET_SECONDS, UNUSABLE_KEY, Role, TlsError, _error

VERSIONS = {"1.0": SSL.TLS1_VERSION, "1.1": SSL.TLS1_1_VERSION, "1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate chain, leaf first, and its key; PEM."""

    chain: bytes
    key: bytes

    def __repr__(self) -> str:
        return "KeyPair(...)"


@dataclass(frozen=True, slots=True)
class Leaf:
    """Of a certificate that we show: the names that it is for, and the kind of its key."""

    names: tuple[str, ...]  # DNS SANs, or the common name where there is none; lower case
    kind: str  # rsa, ec, ...


def leaf_of(pair: KeyPair) -> Leaf:
    """TlsError unless certificate and key are what they should be, and of each other."""
    try:
        leaf = x509.load_pem_x509_certificate((pem.certificates(pair.chain) or [b""])[0])
        public = leaf.public_key()
    except ValueError:
        raise TlsError("THE CERTIFICATE CANNOT BE READ") from None
    if _key(pair.key).public_key() != public:
        raise TlsError("THE KEY IS NOT THE CERTIFICATE'S")
    kind = (
        "rsa"
        if isinstance(public, rsa.RSAPublicKey)
        else "ec"
        if isinstance(public, ec.EllipticCurvePublicKey)
        else "other"
    )
    return Leaf(_names(leaf), kind)


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    """X.509 version 1 has no extensions, and so only the common name."""
    try:
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = san.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):
        names = []
    found = names or [str(one.value) for one in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return tuple(name.lower() for name in found)


def server(
    pairs: Sequence[KeyPair], alpn: Sequence[str] = (), minimum: str = "1.2", maximum: str = "", ciphers: str = ""
) -> Role:
    """Certificates of one name, at most one of each kind of key: OpenSSL takes the one that the client can verify."""
    made = _context(SSL.TLS_SERVER_METHOD, minimum, maximum, ciphers)
    for pair in pairs:
        use(made, pair)
    if alpn:
        choices, none = [name.encode() for name in alpn], SSL.NO_OVERLAPPING_PROTOCOLS
        made.set_alpn_select_callback(lambda _, offered: next((one for one in choices if one in offered), none))
    made.set_session_id(b"tproxy")
    made.set_timeout(TICKET_SECONDS)
    made.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return Role(made, True)


def client(alpn: Sequence[str] = (), minimum: str = "1.2", maximum: str = "", ciphers: str = "") -> Role:
    """Towards a backend."""
    made = _context(SSL.TLS_CLIENT_METHOD, minimum, maximum, ciphers)
    if alpn:
        made.set_alpn_protos([name.encode() for name in alpn])
    return Role(made, False)


def _context(method: int, minimum: str, maximum: str, ciphers: str) -> SSL.Context:
    made = SSL.Context(method)
    made.set_min_proto_version(VERSIONS[minimum])
    if maximum:
        made.set_max_proto_version(VERSIONS[maximum])
    made.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    made.set_mode(RELEASE_BUFFERS)
    try:
        made.set_cipher_list(ciphers.encode() if ciphers else CIPHERS_12)
    except SSL.Error as error:
        raise _error(error) from None
    return made


def use(made: SSL.Context, pair: KeyPair) -> None:
    """TlsError if chain and key are not what they should be, or not of each other."""
    try:
        leaf, *others = (x509.load_pem_x509_certificate(block) for block in pem.certificates(pair.chain))
        made.use_certificate(leaf)
        for other in others:
            made.add_extra_chain_cert(other)
        made.use_privatekey(_key(pair.key))  # type: ignore[arg-type]  # a kind that OpenSSL cannot use is refused there
        made.check_privatekey()
    except SSL.Error as error:
        raise _error(error) from None
    except (ValueError, TypeError) as error:
        raise TlsError(f"UNUSABLE: {error}") from None
    except crypto.Error as error:
        raise _error(error) from None


def _key(text: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(text, None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise TlsError(UNUSABLE_KEY) from None
