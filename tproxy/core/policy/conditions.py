"""What a rule of Istio's asks of a connection, or at a gateway of a request: texts, networks, ports, what must not be.

Source: Istio's AuthorizationPolicy (security.istio.io/v1), without the attributes that a JWT has.

>>> Text.parse("cluster.local/ns/shop/*").matches("cluster.local/ns/shop/sa/web")
True
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Protocol

from tproxy.core.address import Address, Network, contains
from tproxy.core.identity import SpiffeId


@dataclass(frozen=True, slots=True)
class Call:
    """A connection that asks to be let in; ``peer`` is None for plaintext, an alias of our trust domain is our own."""

    port: int
    peer: SpiffeId | None
    source: Address
    target: Address
    shown: SpiffeId | None = None  # as the certificate says it, where that is another name
    visit: Visit | None = None
    ids: tuple[SpiffeId, ...] = ()  # where there are several, and nobody can say who of them it is

    @property
    def principals(self) -> tuple[str, ...]:
        """Without spiffe://, as Istio writes them: as shown, then as we know it if that differs; () for plaintext."""
        if self.peer is None:
            return ()
        names = (self.peer,) if self.shown in (None, self.peer) else (self.shown, self.peer)
        return tuple(str(name).removeprefix("spiffe://") for name in names)

    def __str__(self) -> str:
        return f"{self.peer or 'a caller without identity'} at {self.source}"


class Visit(Protocol):
    """What only a gateway knows of a caller."""

    @property
    def asks(self) -> bool:
        """Whether this is a request; bytes else."""

    def facts(self, condition: Condition, strict: bool) -> tuple[str | Address, ...]:
        """What a condition is about; ``strict``: in that reading alone in which it counts for the caller."""


class _Match(StrEnum):
    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    PRESENCE = "presence"


@dataclass(frozen=True, slots=True)
class Text:
    """``abc`` exactly, ``abc*`` its beginning, ``*abc`` its end, ``*`` anything but nothing."""

    text: str  # without the star
    kind: _Match = _Match.EXACT

    @classmethod
    def parse(cls, text: str) -> Text:
        """ValueError for an empty text, and for a star in the middle, which Istio reads as a character of the name."""
        if not text or not text.isprintable():
            raise ValueError("expected a name, or one with * at its start or end")
        bare = text.strip("*")
        if text == "*":
            return cls("", _Match.PRESENCE)
        if "*" in bare or len(text) - len(bare) > 1:
            raise ValueError("* may stand once, at the start or at the end")
        return cls(bare, _Match.PREFIX if text[-1] == "*" else _Match.SUFFIX if text[0] == "*" else _Match.EXACT)

    def matches(self, value: str) -> bool:
        """Case counts."""
        match self.kind:
            case _Match.EXACT:
                return value == self.text
            case _Match.PREFIX:
                return value.startswith(self.text)
            case _Match.SUFFIX:
                return value.endswith(self.text)
            case _Match.PRESENCE:
                return value != ""

    def __str__(self) -> str:
        before, after = self.kind in (_Match.SUFFIX, _Match.PRESENCE), self.kind is _Match.PREFIX
        return f"{'*' * before}{self.text}{'*' * after}"


class Attribute(StrEnum):
    """Which fact of a call a condition is about; the names are those of Istio's ``when``."""

    PRINCIPAL = "source.principal"
    NAMESPACE = "source.namespace"
    ACCOUNT = "source.serviceAccount"  # our name: Istio has it in ``source`` only
    SOURCE_IP = "source.ip"
    TARGET_IP = "destination.ip"
    PORT = "destination.port"
    # the rest is a gateway's
    REMOTE_IP = "remote.ip"
    SNI = "connection.sni"
    HOST = "request.host"  # this name and the next two are ours: Istio has them in ``operation`` only
    METHOD = "request.method"
    PATH = "request.path"
    HEADER = "request.headers"


Value = Text | Network | int
_OF_REQUESTS = (Attribute.HOST, Attribute.METHOD, Attribute.PATH, Attribute.HEADER)


@dataclass(frozen=True, slots=True)
class Condition:
    """Holds if any of the values matches (none: always) and none of the others does.

    A namespace or an account of another trust domain, and an alias's true name, count against a caller, never for it.
    So does a question about requests where there are none: it lets nobody in, and spares nobody (Istio's TCP filter).
    """

    attribute: Attribute
    values: tuple[Value, ...]
    others: tuple[Value, ...]  # what it must not be
    field: str  # where it stands, such as from[0].source.principals
    domain: str  # our own trust domain
    lets_in: bool = True  # a condition of an ALLOW rule
    name: str = ""  # of the header

    def holds(self, call: Call) -> bool:
        """Of a caller whose id, if any, is verified already."""
        if self.attribute in _OF_REQUESTS and not (call.visit is not None and call.visit.asks):
            return not self.lets_in
        wanted = not self.values or self._any(self.values, call, strict=self.lets_in)
        return wanted and not self._any(self.others, call, strict=not self.lets_in)

    def _any(self, values: tuple[Value, ...], call: Call, strict: bool) -> bool:
        if not values:
            return False
        facts = _facts(self, call, self.domain if strict else "")
        return any(_matches(value, fact) for value in values for fact in facts)

    def found(self, call: Call) -> str:
        """What the caller has instead, for people."""
        facts = [str(fact) for fact in _facts(self, call, "")]
        wanted = ", ".join(map(str, self.values))
        parts = [f"wants {wanted}" if wanted else "", f"not {', '.join(map(str, self.others))}" if self.others else ""]
        return f"{self.field} {' but '.join(filter(None, parts))}, found {' '.join(facts) or 'none'}"


def _facts(condition: Condition, call: Call, domain: str) -> tuple[str | Address | int, ...]:
    """``domain``: names count in Istio's form of ids and in this trust domain alone; empty: as Istio finds them."""
    match condition.attribute:
        case Attribute.PRINCIPAL:
            return call.principals[:1] if domain else call.principals
        case Attribute.NAMESPACE:
            return tuple(namespace for namespace, _ in _names(call.peer, domain))
        case Attribute.ACCOUNT:
            return tuple(f"{namespace}/{account}" for namespace, account in _names(call.peer, domain) if account)
        case Attribute.SOURCE_IP:
            return (call.source,)
        case Attribute.TARGET_IP:
            return (call.target,)
        case Attribute.PORT:
            return (call.port,)
        case _:
            return call.visit.facts(condition, bool(domain)) if call.visit is not None else ()


def _names(peer: SpiffeId | None, domain: str) -> tuple[tuple[str, str], ...]:
    """Namespace and account of an id. Istio takes any /ns/x/ in any trust domain, and any /sa/y behind it."""
    if peer is None:
        return ()
    if domain:
        own = peer.namespace is not None and peer.trust_domain == domain
        return ((peer.path[1], peer.path[3]),) if own else ()
    found = []
    for index, (key, namespace) in enumerate(pairwise(peer.path[:-1])):
        if key == "ns":
            behind = peer.path[index + 2 :]
            accounts = [account for word, account in pairwise(behind) if word == "sa"]
            found += [(namespace, account) for account in accounts or [""]]
    return tuple(found)


def _matches(value: Value, fact: str | Address | int) -> bool:
    if isinstance(value, Text):
        return value.matches(str(fact))
    if isinstance(value, int) or isinstance(fact, int | str):
        return value == fact
    return contains((value,), fact)
