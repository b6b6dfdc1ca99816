"""What a gateway knows of a caller: the request, the name that was asked for by SNI, whom a PROXY header names. PURE.

A path has one reading that counts for the caller, the one that rules and backends get. Against the caller counts
another as well, in which escaped slashes are slashes and many are one: some backends read it so.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tproxy.core.address import Address
from tproxy.core.http.filters import Flavour
from tproxy.core.http.path import BadPathError, normal, unescaped
from tproxy.core.identity import SpiffeId
from tproxy.core.policy.conditions import Attribute, Call, Condition

if TYPE_CHECKING:
    from tproxy.core.http.facts import Asked
    from tproxy.core.http.forwarded import Link


@dataclass(frozen=True, slots=True)
class GatewayVisit:
    """``asked`` is None where bytes are carried."""

    remote: Address
    sni: str = ""
    asked: Asked | None = None

    @property
    def asks(self) -> bool:
        """Whether this is a request."""
        return self.asked is not None

    def facts(self, condition: Condition, strict: bool) -> tuple[str | Address, ...]:
        """As ``conditions.Visit`` has it."""
        match condition.attribute:
            case Attribute.REMOTE_IP:
                return (self.remote,)
            case Attribute.SNI:
                return (self.sni,) if self.sni else ()
        return _of(self.asked, condition, strict) if self.asked is not None else ()


def called(link: Link, uris: Iterable[str], sni: str, asked: Asked | None) -> Call:
    """A connection, or a request on it; ``uris``: of the client's certificate, which has been verified.

    Istio's source.ip is who sent the packets, its remote.ip whom that one names.
    """
    visit, packets = GatewayVisit(link.source.ip, sni, asked), link.carrier or link.source
    ids = _identities(uris)
    peer, several = (ids[0], ()) if len(ids) == 1 else (None, ids)
    return Call(link.target.port, peer, packets.ip, link.target.ip, visit=visit, ids=several)


def _identities(uris: Iterable[str]) -> tuple[SpiffeId, ...]:
    """The SPIFFE ids among them."""
    found: list[SpiffeId] = []
    for uri in uris:
        with suppress(ValueError):
            found.append(SpiffeId.parse(uri))
    return tuple(found)


def _of(asked: Asked, condition: Condition, strict: bool) -> tuple[str, ...]:
    match condition.attribute:
        case Attribute.HOST:  # with its port and without: who adds one is not somebody else
            names = (asked.authority.lower(), asked.host)
            return _each(names if strict else (*names, asked.host.rstrip(".")))
        case Attribute.METHOD:
            return (asked.method,)
        case Attribute.PATH:
            return (asked.path,) if strict else _each((asked.path, _other_reading(asked.path)))
        case _:
            return _said(asked.lines(condition.name), strict)


def _said(lines: tuple[str, ...], strict: bool) -> tuple[str, ...]:
    """For the caller counts what all lines of a header say, against him what any does."""
    if len(set(lines)) < 2:
        return lines[:1]
    joined = ",".join(lines)
    return (joined,) if strict else (*lines, joined)


def _each(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _other_reading(path: str) -> str:
    try:
        return normal(unescaped(path) or path, Flavour.GATEWAY_API)
    except BadPathError:
        return path
