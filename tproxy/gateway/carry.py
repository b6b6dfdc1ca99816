"""One connection of a gateway: accept -> who is it -> what does it ask for -> route -> dial -> relay -> record."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from tproxy.core import routes
from tproxy.core.address import Endpoint, contains
from tproxy.core.decide import First
from tproxy.core.hello import Hello
from tproxy.core.http.routes import HttpTable
from tproxy.core.proxy_protocol import v1, v2
from tproxy.core.reason import Deny, Reason
from tproxy.core.record import Record
from tproxy.core.routes import (
    Backend,
    HttpListener,
    Passthrough,
    ProxyProtocol,
    Route,
    TcpListener,
    Terminate,
    TlsListener,
)
from tproxy.gateway.admission import denied
from tproxy.gateway.gate import Door
from tproxy.gateway.greeting import header
from tproxy.gateway.guards import Guard
from tproxy.gateway.serve import ended, plain
from tproxy.gateway.tls import accept, connect, proven
from tproxy.kernel.sock import abort, keep_alive
from tproxy.proxy import peek
from tproxy.proxy.dial import reach
from tproxy.proxy.legs import Leg, PlainLeg, TlsLeg
from tproxy.proxy.relay import relay
from tproxy.proxy.trace import Trace

TRIES = 3  # endpoints of a backend; the client's bytes are still unread


async def carry(down: socket.socket, trace: Trace, door: Door) -> Record:
    """Carry it to a backend, or refuse it; either way there is one record. Before TLS: RST, and no alert."""
    refused = await _told(down, trace, door)
    if refused is None and isinstance(door.listener, HttpListener):
        return await plain(down, trace, door)
    wanted = refused or await _asked(down, trace, door)
    if not isinstance(wanted, Deny) and isinstance(wanted[0], Terminate) and isinstance(wanted[0].inside, HttpTable):
        return await ended(down, wanted[0], trace, door)
    held: list[Guard] = []  # of a backend whose connections are counted
    try:
        legs = wanted if isinstance(wanted, Deny) else await _legs(*wanted, down, trace, door, held)
        if isinstance(legs, Deny):
            abort(down)
            if isinstance(door.listener, TlsListener):
                door.gate.web.journal.no_connection(legs, trace)
            return trace.refused(legs)
        return trace.moved(await relay(*legs, door.gate.reactor))
    finally:
        for guard in held:
            guard.relayed -= 1


async def _legs(
    wanted: Route | Passthrough | Terminate,
    hello: Hello | None,
    down: socket.socket,
    trace: Trace,
    door: Door,
    held: list[Guard],
) -> tuple[Leg, Leg] | Deny:
    """Both sides, ready to be joined. Where we end TLS, no backend hears of a client that fails in it."""
    match wanted:
        case Terminate(server, _, HttpTable()):
            return Deny(Reason.NOT_CARRIED, "requests would be read here", server)
        case Terminate(_, _, Route() as route):
            leg: Leg | Deny = await accept(down, wanted, trace, door)
        case Passthrough(_, route) | (Route() as route):
            leg = PlainLeg(down)
    if isinstance(leg, Deny):
        return leg
    if isinstance(leg, TlsLeg) and (certificate := proven(leg, trace)) is not None:
        trace.uris = certificate.uris
    if (refused := denied(door.policy, trace)) is not None:
        return refused
    trace.carrying = True  # from here on another policy may cut it
    up = await _upstream(route, hello, trace, door, held)
    return up if isinstance(up, Deny) else (leg, up)


async def _told(down: socket.socket, trace: Trace, door: Door) -> Deny | None:
    """Where PROXY headers are spoken, they are demanded, and believed only of who may send them."""
    settings = door.gate.settings
    if not settings.proxy_from:
        return None
    if not contains(settings.proxy_from, trace.source.ip):
        return Deny(Reason.PROXY_HEADER, f"{trace.source.ip} is not in --proxy-from")
    found = await header(down, settings.hello, door.gate.reactor)
    if isinstance(found, Deny):
        return found
    if found.source is not None:
        trace.source, trace.carrier = found.source, trace.source
    return None


async def _asked(
    down: socket.socket, trace: Trace, door: Door
) -> tuple[Route | Passthrough | Terminate, Hello | None] | Deny:
    """What is done with it, by the port alone or by the first bytes; they stay unread."""
    if isinstance(door.listener, TcpListener):
        return _wanted(door, None)
    with door.gate.half_open(trace.source.ip) as full:
        if full is not None:
            return full
        first = await peek.first(down, door.gate.settings.hello, door.gate.reactor)
    if isinstance(first, Hello):
        trace.sni = first.sni or ""
        first = first if first.sni else replace(first, sni=door.gate.settings.default_sni or None)
    return _wanted(door, first)


def _wanted(door: Door, first: First | None) -> tuple[Route | Passthrough | Terminate, Hello | None] | Deny:
    match door.listener:
        case None:
            return Deny(Reason.NO_ROUTE, f"port {door.bind[1]} was taken out of the configuration")
        case TcpListener() as listener:
            route = routes.by_port(listener)
            return route if isinstance(route, Deny) else (route, None)
        case HttpListener(port):
            return Deny(Reason.NOT_CARRIED, f"port {port} is HTTP")
        case listener:
            if first is None:  # it was a TCP port when the connection came
                return Deny(Reason.NO_ROUTE, f"port {door.bind[1]} has become a TLS port")
    chain = routes.by_hello(listener, first)
    return chain if isinstance(chain, Deny) else (chain, first if isinstance(first, Hello) else None)


async def _upstream(route: Route, hello: Hello | None, trace: Trace, door: Door, held: list[Guard]) -> Leg | Deny:
    """A leg to an endpoint of one of the backends, which has been told of the client where it asks."""
    trace.rule = route.name
    backend = routes.choose(route, random.random())
    if isinstance(backend, Deny):
        return backend
    if backend.care is None:
        up = await _dial(backend, _order(backend, backend.endpoints, trace), trace, door)
    else:
        up = await _guarded(backend, door.gate.web.engine.guards.of(backend), trace, door, held)
    if isinstance(up, Deny):
        return up
    leg: Leg | Deny | None = _introduce(up, backend, hello, trace)
    if leg is None:
        leg = PlainLeg(up) if backend.tls is None else await connect(up, backend.tls, door.gate.means, trace.sni)
    refused = leg if isinstance(leg, Deny) else None
    if refused is not None:
        abort(up)
    if held and trace.backend is not None:
        held[-1].joined(trace.backend, refused)
    return leg


def _introduce(up: socket.socket, backend: Backend, hello: Hello | None, trace: Trace) -> Deny | None:
    """The PROXY header, where the backend asks for one."""
    alpn = hello.alpn[0] if hello is not None and hello.alpn else ""
    match backend.proxy:
        case ProxyProtocol.NONE:
            return None
        case ProxyProtocol.V1:
            told = v1(trace.source, trace.target)
        case ProxyProtocol.V2:
            told = v2(trace.source, trace.target, trace.sni, alpn)
    try:
        up.send(told)  # into an empty send buffer, so all of it
    except OSError as error:
        return Deny(Reason.CONNECT_FAILED, f"telling {backend.name} of the client: {error.strerror}")
    return None


async def _guarded(backend: Backend, guard: Guard, trace: Trace, door: Door, held: list[Guard]) -> socket.socket | Deny:
    """Dial within the backend's limits, and past the endpoints that are left out."""
    left = guard.left(backend.endpoints)
    if not left:
        return Deny(Reason.NO_BACKEND, f"all endpoints of {backend.name} are left out for failing")
    if over := guard.no_connection():
        return Deny(Reason.BACKEND_LIMIT, over)
    guard.relayed += 1
    held.append(guard)
    found = await _dial(backend, _order(backend, left, trace), trace, door, guard)
    if guard.caps.keepalive is not None and not isinstance(found, Deny):
        keep_alive(found, guard.caps.keepalive)
    return found


async def _dial(
    backend: Backend, order: list[Endpoint], trace: Trace, door: Door, guard: Guard | None = None
) -> socket.socket | Deny:
    """These endpoints, until one answers."""
    found: socket.socket | Deny = Deny(Reason.NO_BACKEND, f"{backend.name} has no endpoints")
    seconds = door.gate.settings.connect if guard is None else guard.caps.connect or door.gate.settings.connect
    for endpoint in order:
        trace.backend = endpoint
        found = await reach(endpoint, 0, seconds, door.gate.reactor)
        if not isinstance(found, Deny):
            break
        if guard is not None:
            guard.joined(endpoint, found)
    return found


def _order(backend: Backend, among: Sequence[Endpoint], trace: Trace) -> list[Endpoint]:
    """By the client's address, where that is the key; else by chance."""
    hashed = None if backend.affinity is None else backend.affinity.of_address(str(trace.source.ip))
    if hashed is None:
        return random.sample(among, min(TRIES, len(among)))
    return list(islice((endpoint for endpoint in hashed.ring.walk(hashed.key) if endpoint in among), TRIES))
