"""PEM (RFC 7468): the blocks of a text, without what stands between them. PURE; contents are not looked at.

>>> certificates(b"noise -----BEGIN CERTIFICATE-----AA==-----END CERTIFICATE----- noise")
[b'-----BEGIN CERTIFICATE-----AA==-----END CERTIFICATE-----\\n']
"""

from __future__ import annotations

import base64
import re

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")
_CRL = re.compile(rb"-----BEGIN X509 CRL-----[^-]+-----END X509 CRL-----")
_KEY = re.compile(rb"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.+?-----END \1PRIVATE KEY-----", re.DOTALL)


def certificates(text: bytes) -> list[bytes]:
    """Every certificate, each ending in a newline."""
    return [block + b"\n" for block in _CERTIFICATE.findall(text)]


def crls(text: bytes) -> list[bytes]:
    """Every certificate revocation list."""
    return [block + b"\n" for block in _CRL.findall(text)]


def private_key(text: bytes) -> bytes | None:
    """The first private key of any kind, encrypted ones too (their first line says so)."""
    found = _KEY.search(text)
    return None if found is None else found.group(0) + b"\n"


def encoded(kind: str, der: bytes) -> bytes:
    """One block of DER, such as ``CERTIFICATE`` or ``PRIVATE KEY``, in lines of 64 characters."""
    text = base64.b64encode(der)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"\n".join((f"-----BEGIN {kind}-----".encode(), *lines, f"-----END {kind}-----".encode(), b""))
