"""A certificate signing request (PKCS#10, RFC 2986) to the one thing that is taken from it: a public key.

Names, extensions and attributes in it are ignored: who the workload is, its credential says.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tproxy.control.authority import PublicKey
from tproxy.control.refusal import Refused, Why

LIMIT = 16 * 1024  # bytes of PEM; RSA 4096 with long names has 2 KiB
CURVES = (ec.SECP256R1, ec.SECP384R1)
RSA_BITS = (2048, 4096)


def public_key(pem: str) -> PublicKey | Refused:
    """The key, whose holder has proven to possess its private half by signing the request."""
    if len(pem) > LIMIT:
        return Refused(Why.BAD_CSR, f"the request has {len(pem)} characters, more than {LIMIT}")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):  # what the parser says may repeat what was sent
        return Refused(Why.BAD_CSR, "the request cannot be read as a PEM PKCS#10 request")
    if not _is_good(key):
        return Refused(Why.BAD_KEY, f"the request's key is {_in_words(key)}")
    try:
        signed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm):
        signed = False
    if not signed:
        return Refused(Why.BAD_CSR, "the request is not signed by its own key, so possession is not proven")
    return key  # type: ignore[return-value]


def _is_good(key: object) -> bool:
    if isinstance(key, rsa.RSAPublicKey):  # before its signature is checked: a huge key would take long
        return RSA_BITS[0] <= key.key_size <= RSA_BITS[1]
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, CURVES)


def _in_words(key: object) -> str:
    match key:
        case rsa.RSAPublicKey():
            return f"RSA of {key.key_size} bits"
        case ec.EllipticCurvePublicKey():
            return f"on the curve {key.curve.name}"
        case _:
            return type(key).__name__.removesuffix("PublicKey")
