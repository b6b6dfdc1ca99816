"""PEM (RFC 7468): the blocks of a text, without what stands between them. PURE; contents are not looked at.

>>> certificates(b"noise -----BEGIN CERTIFICATE-----AA==-----END CERTIFICATE----- noise")
[b'-----BEGIN CERTIFICATE-----AA==-----END CERTIFICATE-----\\n']
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

_KEY = re.compile(rb"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.+?-----END \1PRIVATE KEY-----", re.DOTALL)


def certificates(text: bytes) -> list[bytes]:
    """Every certificate, each ending in a newline."""
    return list(_blocks(text, b"CERTIFICATE"))


def crls(text: bytes) -> list[bytes]:
    """Every certificate revocation list."""
    return list(_blocks(text, b"X509 CRL"))


def der(block: bytes) -> bytes:
    """What stands between the first and the last line of a block; ValueError if that is not base64."""
    text = block.decode("ascii")
    return base64.decodebytes(text[text.index("-----", 5) + 5 : text.rindex("-----END")].encode())


def private_key(text: bytes) -> bytes | None:
    """The first private key of any kind, encrypted ones too (their first line says so)."""
    found = _KEY.search(text)
    return None if found is None else found.group(0) + b"\n"


def encoded(kind: str, der: bytes) -> bytes:
    """One block of DER, such as ``CERTIFICATE`` or ``PRIVATE KEY``, in lines of 64 characters."""
    text = base64.b64encode(der)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"\n".join((f"-----BEGIN {kind}-----".encode(), *lines, f"-----END {kind}-----".encode(), b""))


def _blocks(text: bytes, label: bytes) -> Iterator[bytes]:
    """From each BEGIN to the next END, in linear time; a damaged block counts: whoever reads it will say so."""
    begin, end, at = b"-----BEGIN %b-----" % label, b"-----END %b-----" % label, 0
    while (start := text.find(begin, at)) >= 0 and (stop := text.find(end, start)) >= 0:
        at = stop + len(end)
        yield text[start:at] + b"\n"
