"""X-Forwarded-Client-Cert: what a backend is told of a client's verified certificate. PURE; Envoy's format.

Source: envoyproxy.io, http_conn_man/headers, as Istio's gateways set it (SANITIZE_SET): By where we showed an
SVID, Hash, Cert, Subject, URI, DNS.

>>> xfcc("ab", "PEM\\n", 'CN=a "b"', ("spiffe://x/y",), ("a.example",))
'Hash=ab;Cert="PEM%0A";Subject="CN=a \\\\"b\\\\"";URI=spiffe://x/y;DNS=a.example'
"""

from __future__ import annotations

from collections.abc import Iterable

_ENCODED = str.maketrans({"\n": "%0A", " ": "%20", "+": "%2B", "/": "%2F", "=": "%3D"})


def xfcc(digest: str, pem: str, subject: str, uris: Iterable[str], dns: Iterable[str], by: str = "") -> str:
    """One element; names with what would end a value are left out. ``by``: our own URI, if we showed one."""
    quoted = subject.replace("\\", "\\\\").replace('"', '\\"')
    quoted = "".join(char if " " <= char <= "~" else f"\\x{ord(char):02x}" for char in quoted)
    parts = [
        *([f"By={by}"] if by else []),
        f"Hash={digest}",
        f'Cert="{pem.translate(_ENCODED)}"',
        f'Subject="{quoted}"',
    ]
    parts += [f"URI={uri}" for uri in uris if _plain(uri)]
    parts += [f"DNS={name}" for name in dns if _plain(name)]
    return ";".join(parts)


def _plain(name: str) -> bool:
    return name.isascii() and name.isprintable() and not set(name) & set(',;="\\ ')
