"""Which rule a name or a request meets, and why not the others: the same look-ups as for traffic, told in words.

PURE. It looks at everything that is configured for a port, so it is for people, not for connections.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tproxy.core.hostnames import why_not
from tproxy.core.http.routes import Entry, HttpTable, Request
from tproxy.core.reason import Deny
from tproxy.core.routes import (
    Backend,
    Chain,
    Closed,
    HttpListener,
    Listener,
    Passthrough,
    Route,
    TcpListener,
    Terminate,
    TlsListener,
    UdpListener,
    by_port,
    by_sni,
    nearest,
)


@dataclass(frozen=True, slots=True)
class Line:
    """One rule on one port: which host it is for, what is done, and why it is not taken (empty: it is)."""

    port: int
    kind: str  # passthrough, terminate, closed, tcp, udp, http
    host: str
    server: str
    rule: str
    where: str
    backends: tuple[Backend, ...]
    why_not: str = ""
    match: str = ""  # what a request must be besides


@dataclass(frozen=True, slots=True)
class Told:
    """The whole answer for one port: the rule that is taken, or the refusal; then the others."""

    port: int
    taken: Line | None
    refusal: str
    others: tuple[Line, ...]


def lines(listener: Listener | UdpListener) -> Iterator[Line]:
    """Every rule of a port."""
    match listener:
        case UdpListener(port, server, route):
            yield _line(port, "udp", "*", server, route)
        case TcpListener(port, server, route):
            yield _line(port, "tcp", "*", server, route)
        case HttpListener(port, table):
            yield from _requests(port, "", table)
        case TlsListener(port, names):
            tables: list[HttpTable] = []  # names of one server share theirs
            for host, chain in names.items():
                yield from _chain(port, host, chain)
                inside = chain.inside if isinstance(chain, Terminate) else None
                if isinstance(inside, HttpTable) and not any(inside is table for table in tables):
                    tables.append(inside)
                    yield from _requests(port, chain.server, inside)


def told(listener: Listener, name: str | None, request: Request | None) -> Told:
    """What a client that asks for this name, and then perhaps sends this request, gets on a port."""
    match listener:
        case TcpListener(port, server, route):
            answer = by_port(listener)
            taken = None if isinstance(answer, Deny) else _line(port, "tcp", "*", server, route)
            return Told(port, taken, answer.why if isinstance(answer, Deny) else "", ())
        case HttpListener(port, table):
            return _request(port, "", table, request or Request(name or ""))
        case TlsListener():
            return _hello(listener, name, request)


def _hello(listener: TlsListener, name: str | None, request: Request | None) -> Told:
    port, found, answer = listener.port, listener.names.find(name), by_sni(listener, name)
    if isinstance(answer, Terminate) and isinstance(answer.inside, HttpTable) and request is not None:
        return _request(port, answer.server, answer.inside, request)
    taken = found[0] if found else ""
    rest = [line for host, chain in listener.names.items() if host != taken for line in _chain(port, host, chain)]
    others = tuple(replace(line, why_not=_unmatched(line.host, name, taken)) for line in rest)
    if found is None or isinstance(answer, Deny):
        near = nearest(listener, name) if name and found is None else ""
        said = answer.why if isinstance(answer, Deny) else ""
        return Told(port, None, f"{said}; did you mean {near}?" if near else said, others)
    return Told(port, next(_chain(port, *found)), "", others)


def _unmatched(host: str, name: str | None, taken: str) -> str:
    return why_not(host, name) or f"covers it, too; {taken} is more specific"


def _line(port: int, kind: str, host: str, server: str, route: Route | None) -> Line:
    if route is None:
        return Line(port, kind, host, server, "", "", (), "no route is bound")
    return Line(port, kind, host, server, route.name, route.where, route.backends)


def _chain(port: int, host: str, chain: Chain) -> Iterator[Line]:
    match chain:
        case Passthrough(server, route):
            yield _line(port, "passthrough", host, server, route)
        case Closed(server, why):
            yield Line(port, "closed", host, server, "", "", (), why)
        case _ if isinstance(chain.inside, Route):
            yield _line(port, chain.tls.mode.value, host, chain.server, chain.inside)
        case _:
            yield Line(port, chain.tls.mode.value, host, chain.server, "", "", ())


def _requests(port: int, server: str, table: HttpTable) -> Iterator[Line]:
    for host, entries in table.hosts.items():
        for entry in entries:
            yield _entry(port, host, server, entry)


def _entry(port: int, host: str, server: str, entry: Entry, why_not: str = "") -> Line:
    rule = entry.rule
    return Line(port, "http", host, server, rule.name, rule.where, rule.backends, why_not, str(entry.match))


def _request(port: int, server: str, table: HttpTable, request: Request) -> Told:
    seen = [_entry(port, host, server, entry, why) for host, entry, why in table.explain(request)]
    taken = seen.pop() if seen and not seen[-1].why_not else None
    refusal = "" if taken else f"404: no HTTP rule holds for {request.method} {request.host}{request.path}"
    return Told(port, taken, refusal, tuple(seen))
