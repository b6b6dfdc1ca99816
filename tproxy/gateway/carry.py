"""One connection of a gateway: accept -> who is it -> what does it ask for -> route -> dial -> relay -> record."""

from __future__ import annotations

import random
import socket
from typing import assert_never

from tproxy.core import routes
from tproxy.core.address import contains
from tproxy.core.decide import First
from tproxy.core.hello import Hello
from tproxy.core.proxy_protocol import v1, v2
from tproxy.core.reason import Deny, Reason
from tproxy.core.record import Record
from tproxy.core.routes import Backend, HttpListener, Passthrough, ProxyProtocol, Route, TcpListener, Terminate
from tproxy.gateway.gate import Door
from tproxy.gateway.greeting import header
from tproxy.gateway.serve import plain
from tproxy.kernel.sock import abort
from tproxy.proxy import peek
from tproxy.proxy.legs import PlainLeg
from tproxy.proxy.relay import relay
from tproxy.proxy.side import reach
from tproxy.proxy.trace import Trace

TRIES = 3  # endpoints of a backend; the client's bytes are still unread


async def carry(down: socket.socket, trace: Trace, door: Door) -> Record:
    """Carry it to a backend, or refuse it with RST and without an alert; either way there is one record."""
    refused = await _told(down, trace, door)
    if refused is None and isinstance(door.listener, HttpListener):
        return await plain(down, trace, door)
    wanted = refused or await _asked(down, trace, door)
    up = wanted if isinstance(wanted, Deny) else await _upstream(*wanted, trace, door)
    if isinstance(up, Deny):
        abort(down)
        return trace.refused(up)
    return trace.moved(await relay(PlainLeg(down), PlainLeg(up), door.gate.reactor))


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
    trace.source = found.source or trace.source
    return None


async def _asked(down: socket.socket, trace: Trace, door: Door) -> tuple[Route, Hello | None] | Deny:
    """The route, by the port alone or by the first bytes; they stay unread."""
    if isinstance(door.listener, TcpListener):
        return _route(door, None)
    with door.gate.half_open(trace.source.ip) as full:
        if full is not None:
            return full
        first = await peek.first(down, door.gate.settings.hello, door.gate.reactor)
    trace.sni = (first.sni or "") if isinstance(first, Hello) else ""
    found = _route(door, first)
    if not isinstance(found, Deny):
        trace.rule = found[0].name
    return found


def _route(door: Door, first: First | None) -> tuple[Route, Hello | None] | Deny:
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
    match routes.by_hello(listener, first):
        case Deny() as deny:
            return deny
        case Terminate(server):
            return Deny(Reason.NOT_CARRIED, "TLS would end here", server)
        case Passthrough(_, route):
            return route, first if isinstance(first, Hello) else None
        case never:
            assert_never(never)


async def _upstream(route: Route, hello: Hello | None, trace: Trace, door: Door) -> socket.socket | Deny:
    """A connected socket to an endpoint of one of the backends, which has been told of the client where it asks."""
    trace.rule = route.name
    backend = routes.choose(route, random.random())
    if isinstance(backend, Deny):
        return backend
    if backend.tls is not None:
        return Deny(Reason.NOT_CARRIED, f"{backend.name} wants TLS {backend.tls.mode} from us", route.name)
    up = await _dial(backend, trace, door)
    if isinstance(up, Deny) or backend.proxy is ProxyProtocol.NONE:
        return up
    alpn = hello.alpn[0] if hello is not None and hello.alpn else ""
    told = v1(trace.source, trace.target)
    if backend.proxy is ProxyProtocol.V2:
        told = v2(trace.source, trace.target, trace.sni, alpn)
    try:
        up.send(told)  # into an empty send buffer, so all of it
    except OSError as error:
        abort(up)
        return Deny(Reason.CONNECT_FAILED, f"telling {backend.name} of the client: {error.strerror}")
    return up


async def _dial(backend: Backend, trace: Trace, door: Door) -> socket.socket | Deny:
    """The endpoints in a random order, until one answers."""
    found: socket.socket | Deny = Deny(Reason.NO_BACKEND, f"{backend.name} has no endpoints")
    for endpoint in random.sample(backend.endpoints, min(TRIES, len(backend.endpoints))):
        trace.backend = endpoint
        found = await reach(endpoint, 0, door.gate.settings.connect, door.gate.reactor)
        if not isinstance(found, Deny):
            break
    return found
