"""Whether a certificate is for a name that is wanted. PURE; RFC 9525, service identity in TLS.

>>> is_for(Names(dns=("*.example.com",)), ("a.example.com",))
True
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address


@dataclass(frozen=True, slots=True)
class Names:
    """What a certificate says it is for: its subject alternative names by kind."""

    dns: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join((*self.dns, *self.uris, *self.ips)) or "no name"


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """A client's certificate, as X-Forwarded-Client-Cert names its parts. Only verified ones become one."""

    hash: str  # SHA-256 of the DER, hexadecimal
    subject: str  # RFC 2253
    uris: tuple[str, ...]
    dns: tuple[str, ...]
    pem: str = field(repr=False)
    chain: str = field(repr=False)  # PEM: leaf and what the client sent with it
    issuer: str = ""
    serial: str = ""  # hexadecimal


def is_for(names: Names, wanted: Iterable[str]) -> bool:
    """Whether one of the wanted names (DNS, URI or IP address) is among them."""
    return any(_is(names, one) for one in wanted)


def _is(names: Names, wanted: str) -> bool:
    if "://" in wanted:
        return wanted in names.uris  # compared byte by byte, as SPIFFE ids are
    try:
        return str(ip_address(wanted)) in names.ips
    except ValueError:
        return any(dns_covers(name, wanted) for name in names.dns)


def dns_covers(presented: str, wanted: str) -> bool:
    """A wildcard is the whole first label, and stands for just one; a wildcard that is wanted is itself alone."""
    presented, wanted = presented.lower(), wanted.lower()
    if not presented.startswith("*."):
        return presented == wanted
    first, dot, rest = wanted.partition(".")
    return bool(first and dot) and presented[2:] == rest and "." in rest
