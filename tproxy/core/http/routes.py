"""Which rule an HTTP request meets: hosts, paths, headers, methods, query parameters; and why the others do not match.

PURE. Two orders: Istio's (as written, catch-alls last) and Gateway API's (by precedence). A reader sorts once, with
``gateway_api_order`` or ``istio_order``, and puts behind a host's entries those of wider hosts where its dialect wants
that; asking is one look-up and a walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from tproxy.core.balance.session import Session
from tproxy.core.hostnames import HostTable
from tproxy.core.http.filters import NO_FILTERS, NO_TIMEOUTS, Direct, Fault, Filters, Flavour, Retry, Timeouts
from tproxy.core.http.index import Index

if TYPE_CHECKING:
    from tproxy.core.http.facts import Asked
    from tproxy.core.routes import Backend


class Kind(StrEnum):
    """How a text is compared."""

    EXACT = "exact"
    PREFIX = "prefix"  # of characters: /v2 matches /v2example (Istio)
    SEGMENTS = "segments"  # of path segments: /v2 matches /v2/x only (Gateway API PathPrefix)
    REGEX = "regex"  # of the whole text
    PRESENT = "present"


@dataclass(frozen=True, slots=True)
class Text:
    """A condition on a text that may be missing; ``regex`` is a full match, made by who reads the configuration."""

    kind: Kind
    value: str = ""
    ignore_case: bool = False
    regex: Callable[[str], object] | None = None

    def matches(self, text: str | None) -> bool:
        """A missing text matches nothing."""
        if text is None:
            return False
        want, have = (self.value.lower(), text.lower()) if self.ignore_case else (self.value, text)
        match self.kind:
            case Kind.PRESENT:
                return True
            case Kind.EXACT:
                return have == want
            case Kind.PREFIX:
                return have.startswith(want)
            case Kind.SEGMENTS:
                bare = want.rstrip("/")
                return have == bare or have.startswith(f"{bare}/")
            case Kind.REGEX:
                return self.regex is not None and bool(self.regex(text))

    def __str__(self) -> str:
        return self.kind.value if self.kind is Kind.PRESENT else f"{self.kind.value} {self.value!r}"


Named = tuple[tuple[str, Text], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """The facts of a request: the path without query, header names in lower case, the host without port."""

    host: str
    path: str = "/"
    method: str = "GET"
    scheme: str = "http"
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def authority(self) -> str:
        """The host as it was asked for, with its port."""
        return self.host

    def lines(self, name: str) -> tuple[str, ...]:
        """A header's, which are one here."""
        return (self.headers[name],) if name in self.headers else ()


@dataclass(frozen=True, slots=True)
class Match:
    """Conditions that hold together; none at all holds always."""

    path: Text | None = None
    method: Text | None = None
    headers: Named = ()
    without: Named = ()  # headers that must not match
    query: Named = ()
    scheme: Text | None = None
    authority: Text | None = None

    def failures(self, request: Asked) -> Iterator[str]:
        """Every condition that the request does not meet, in words."""
        single = (
            ("path", self.path, request.path),
            ("method", self.method, request.method),
            ("scheme", self.scheme, request.scheme),
            ("authority", self.authority, request.authority),
        )
        for what, text, found in single:
            if text is not None and not text.matches(found):
                yield f"{what} {found!r} is not {text}"
        for kind, named, have in (("header", self.headers, request.headers), ("query", self.query, request.query)):
            for name, text in named:
                if not text.matches(have.get(name)):
                    yield f"{kind} {name} is {have.get(name)!r}, not {text}"
        for name, text in self.without:
            if _has(text, request.headers.get(name)):
                yield f"header {name} is {text}, which it must not be"

    def holds(self, asked: Asked) -> bool:
        """Whether nothing fails: the same answer as ``failures``, fast."""
        if self.path is not None and not self.path.matches(asked.path):
            return False
        if self.method is not None and not self.method.matches(asked.method):
            return False
        if self.headers and not _hold(self.headers, asked.headers):
            return False
        if self.query and not _hold(self.query, asked.query):
            return False
        if self.scheme is not None and not self.scheme.matches(asked.scheme):
            return False
        if self.authority is not None and not self.authority.matches(asked.authority):
            return False
        return not self.without or not any(_has(text, asked.headers.get(name)) for name, text in self.without)

    def __str__(self) -> str:
        single = (("path", self.path), ("method", self.method), ("scheme", self.scheme), ("authority", self.authority))
        named = (("header ", self.headers), ("query ", self.query), ("not header ", self.without))
        said = [f"{what} {text}" for what, text in single if text is not None]
        said += [f"{what}{name} {text}" for what, pairs in named for name, text in pairs]
        return ", ".join(said)

    @property
    def is_catch_all(self) -> bool:
        """Whether it holds for every request, as far as Istio's order cares."""
        return self in _ALWAYS


def _has(text: Text, value: str | None) -> bool:
    """What is not there counts as empty where more than its presence is asked for, as in Istio's withoutHeaders."""
    return text.matches(value) if text.kind is Kind.PRESENT else text.matches(value or "")


def _hold(named: Named, have: Mapping[str, str]) -> bool:
    return all(text.matches(have.get(name)) for name, text in named)


_ALWAYS = (Match(), Match(Text(Kind.PREFIX, "/")), Match(Text(Kind.SEGMENTS, "/")))


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to a request that meets it: a redirect or an answer of our own, or one of the backends."""

    name: str
    backends: tuple[Backend, ...] = ()
    where: str = ""  # file and line
    filters: Filters = NO_FILTERS
    timeouts: Timeouts = NO_TIMEOUTS
    retry: Retry | None = None
    direct: Direct | None = None
    fault: Fault | None = None
    decorator: str = ""  # x-envoy-decorator-operation, which Istio's gateway sends
    session: Session | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One match of one rule. ``age`` orders routes of the same precedence: creation time, then namespace/name."""

    match: Match
    rule: Rule
    age: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class Routed:
    """The host pattern, match and rule that a request met."""

    host: str
    entry: Entry


@dataclass(frozen=True, slots=True)
class HttpTable:
    """Hosts to entries in the order in which they are tried."""

    hosts: HostTable[tuple[Entry, ...]]
    flavour: Flavour = Flavour.ISTIO
    server: str = ""  # whose table it is, among ``owners``
    owners: HostTable[str] | None = None  # all servers of a TLS port by their hosts; a request for another's is 421
    index: HostTable[Index] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        made = ((host, Index(entries)) for host, entries in self.hosts.items())
        object.__setattr__(self, "index", HostTable(made))

    def find(self, request: Request) -> Routed | None:
        """The first entry that holds; None is 404."""
        host, entries = self.hosts.find(request.host) or ("", ())
        for entry in entries:
            if next(entry.match.failures(request), None) is None:
                return Routed(host, entry)
        return None

    def explain(self, request: Request) -> Iterator[tuple[str, Entry, str]]:
        """Host, entry and why it does not hold (empty: it does) for each that is tried, up to the one that holds."""
        host, entries = self.hosts.find(request.host) or ("", ())
        for entry in entries:
            why = "; ".join(entry.match.failures(request))
            yield host, entry, why
            if not why:
                return


def istio_order(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """As written, catch-alls last (SortVHostRoutes)."""
    return tuple(sorted(entries, key=lambda entry: entry.match.is_catch_all))


_RANK = {Kind.EXACT: 0, Kind.REGEX: 1, Kind.PREFIX: 2, Kind.SEGMENTS: 2}


def gateway_api_order(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """HTTPRouteRule.matches: exact path, longest prefix, method, headers, query; then age, then as written."""

    def key(entry: Entry) -> tuple[object, ...]:
        match, path = entry.match, entry.match.path or Text(Kind.SEGMENTS, "/")
        rank = (_RANK[path.kind], -len(path.value), match.method is None, -len(match.headers), -len(match.query))
        return (*rank, *entry.age)

    return tuple(sorted(entries, key=key))
