"""Certification paths by OpenSSL: from a leaf to one bundle, and to nothing else (RFC 5280, section 6).

What the bundle holds is an anchor, an intermediate too (6.1.1, d). Key sizes and hashes are those of OpenSSL's
security level 2, which a handshake asks for as well.
"""

from __future__ import annotations

import calendar
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from OpenSSL import SSL, crypto

_lib = SSL._lib  # type: ignore[attr-defined]  # no public way to what is not wrapped
_CLIENT, _SERVER = 1, 2  # openssl/x509v3.h: X509_PURPOSE_SSL_CLIENT, X509_PURPOSE_SSL_SERVER
UNREADABLE, EE_KEY_TOO_SMALL, CA_KEY_TOO_SMALL, CA_MD_TOO_WEAK = 1, 66, 67, 68  # openssl/x509_vfy.h
_BITS = {crypto.TYPE_RSA: 2048, crypto.TYPE_DSA: 2048, crypto.TYPE_EC: 224}  # openssl/ssl.h: security level 2
_WEAK = (b"md5", b"sha1")


@dataclass(frozen=True, slots=True)
class Path:
    """A verified path, leaf first, its anchor last, and when all of it is valid, in unix seconds."""

    certificates: tuple[crypto.X509, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class NoPath:
    """X509_V_ERR_*, the certificate's place in the chain (0 is the leaf), and a sentence."""

    code: int
    depth: int
    why: str


class Anchors:
    """The bundle of one trust domain."""

    def __init__(self, bundle: bytes) -> None:
        """PEM certificates; ValueError if one of them cannot be read."""
        self._store, self._second = crypto.X509Store(), -1
        blocks = bundle.split(b"-----END CERTIFICATE-----")[:-1]
        try:
            self.certificates = tuple(
                crypto.load_certificate(crypto.FILETYPE_PEM, block + b"-----END CERTIFICATE-----\n") for block in blocks
            )
        except crypto.Error as error:
            raise ValueError("the bundle holds a certificate that OpenSSL cannot read") from error

    def parsed(self) -> list[x509.Certificate]:
        """Those that ``cryptography`` can read."""
        return [found for one in self.certificates if (found := parsed(one))]

    def path(self, chain: Sequence[bytes], server: bool, now: float) -> Path | NoPath:
        """From the leaf, chain[0], DER, of a peer in that role; whatever else the chain holds may help or not."""
        try:
            leaf, *others = (crypto.load_certificate(crypto.FILETYPE_ASN1, der) for der in chain)
        except crypto.Error:
            return NoPath(UNREADABLE, 0, "a certificate that cannot be read")
        store = self._at(int(now))
        _lib.X509_STORE_set_purpose(store._store, _SERVER if server else _CLIENT)
        try:
            found = crypto.X509StoreContext(store, leaf, others).get_verified_chain()
            return _weakness(found) or Path(tuple(found), max(map(_begin, found)), min(map(_end, found)))
        except crypto.X509StoreContextError as error:
            code, depth, why = error.errors
            return NoPath(code, depth, why)
        except crypto.Error:
            return NoPath(UNREADABLE, 0, "a key that cannot be read")

    def _at(self, second: int) -> crypto.X509Store:
        """A store for this second: the time of a store can be set only once (OpenSSL keeps the first)."""
        if second != self._second:
            self._store, self._second = crypto.X509Store(), second
            self._store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
            self._store.set_time(datetime.fromtimestamp(second, UTC).replace(tzinfo=None))
            for one in self.certificates:
                self._store.add_cert(one)
        return self._store


def parsed(one: crypto.X509) -> x509.Certificate | None:
    """For ``cryptography``, which cannot read all that OpenSSL can."""
    try:
        with warnings.catch_warnings(action="ignore"):  # serials below one, which old roots have
            found = one.to_cryptography()
        _ = found.subject, found.issuer  # decoded only when asked for
    except (ValueError, x509.InvalidVersion):
        return None
    return found


def _weakness(path: Sequence[crypto.X509]) -> NoPath | None:
    """The anchor's own signature proves nothing, so its hash does not count."""
    for depth, one in enumerate(path):
        key = one.get_pubkey()
        if key.bits() < _BITS.get(key.type(), 0):
            code = CA_KEY_TOO_SMALL if depth else EE_KEY_TOO_SMALL
            return NoPath(code, depth, f"a key of {key.bits()} bits is too small")
        algorithm = one.get_signature_algorithm()
        if depth < len(path) - 1 and any(weak in algorithm.lower() for weak in _WEAK):
            return NoPath(
                CA_MD_TOO_WEAK, depth, f"signed with {algorithm.decode('ascii', 'replace')}, which is too weak"
            )
    return None


def _begin(certificate: crypto.X509) -> int:
    return _seconds(certificate.get_notBefore())


def _end(certificate: crypto.X509) -> int:
    return _seconds(certificate.get_notAfter())


def _seconds(moment: bytes | None) -> int:
    """Of a GENERALIZEDTIME in the form that RFC 5280 (4.1.2.5.2) allows; OpenSSL has checked it."""
    assert moment is not None  # every certificate has both
    year, rest = int(moment[:4]), [int(moment[at : at + 2]) for at in range(4, 14, 2)]
    return calendar.timegm((year, *rest))
