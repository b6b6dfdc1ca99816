"""One connection that the application opened: original destination -> decide -> dial -> TLS -> who is it -> relay."""

from __future__ import annotations

import socket
from typing import assert_never

from tproxy.core import decide
from tproxy.core.config import Config
from tproxy.core.egress.routes import Otherwise
from tproxy.core.hello import Hello
from tproxy.core.reason import Deny
from tproxy.core.record import Outcome, Record
from tproxy.kernel.sock import abort, is_local
from tproxy.proxy import peek
from tproxy.proxy.dial import dial
from tproxy.proxy.legs import Leg, PlainLeg, TlsLeg
from tproxy.proxy.live import admit
from tproxy.proxy.relay import relay
from tproxy.proxy.side import Side, State
from tproxy.proxy.trace import Trace
from tproxy.proxy.unavailable import refuse


async def egress(down: socket.socket, trace: Trace, side: Side) -> Record:
    """Carry it to where it wanted to go, or refuse it with RST; either way there is one record."""
    state = side.state
    trace.own, trace.own_serial = state.own, f"{state.serial:x}"
    match await upstream(down, trace, state, side):
        case Deny() as deny:
            await refuse(down, deny, trace, state.config, side.reactor)
            return trace.refused(deny)
        case up:
            fallen = admit(trace, state, side)
            if fallen is not None:
                for sock in (down, up.sock):
                    abort(sock)
                return trace.refused(fallen)
            moved = await relay(side.app_leg(down), up, side.reactor)
            if isinstance(up, TlsLeg) and moved.outcome is Outcome.CLOSED and state.config.fast.resumption:
                state.contexts.sessions.keep(trace.target, up.tls.ticket())
            return trace.moved(moved)


async def upstream(down: socket.socket, trace: Trace, state: State, side: Side) -> Leg | Deny:
    """The leg towards the destination that the decision asks for."""
    config = state.config
    trace.local = _own(trace, config)
    trace.found = side.directory(trace.target.ip)
    match await _decided(down, trace, config, side):
        case Deny() as deny:
            return deny
        case decide.Plain(target, rule):
            trace.rule = rule
            sock = await dial(target, config, side.reactor)
            return sock if isinstance(sock, Deny) else PlainLeg(sock)
        case decide.Routed(target, rule):
            trace.rule = rule.name
            found = await side.routers.dial(rule, trace, config, side.reactor)
            if isinstance(found, Deny) and rule.otherwise is Otherwise.DIRECT:
                trace.via, trace.router = "", ""
                found = await dial(target, config, side.reactor)
            return found if isinstance(found, Deny) else PlainLeg(found)
        case decide.Mtls() as wanted:
            trace.rule = wanted.rule
            return await _secure(wanted, trace, state, side)
        case never:
            assert_never(never)


async def _decided(down: socket.socket, trace: Trace, config: Config, side: Side) -> decide.Decided:
    """With a look at the ClientHello where a rule asks for the name in it; the bytes stay where they are."""
    facts = trace.target, trace.local, config, trace.found, trace.source
    answer = decide.egress(*facts)
    if isinstance(answer, decide.Look):
        first = await peek.first(down, config.limits.peek, side.reactor)
        name = first.sni if isinstance(first, Hello) else None
        trace.sni = name or ""
        answer = decide.egress(*facts, name)
        assert not isinstance(answer, decide.Look)  # the name is known now
    return answer


async def _secure(wanted: decide.Mtls, trace: Trace, state: State, side: Side) -> Leg | Deny:
    sock = await dial(wanted.target, state.config, side.reactor)
    if isinstance(sock, Deny):
        return sock
    try:
        session = await side.shake(sock, state.contexts.client, state.contexts.sessions.take(wanted.target))
        if not isinstance(session, Deny):
            trace.session(session)
            answer = decide.expected(session.peer, wanted.expect, state.config, wanted.rule)
            if not isinstance(answer, Deny):
                return session.leg
            session = answer
    except BaseException:
        abort(sock)
        raise
    state.contexts.sessions.drop(wanted.target)
    abort(sock)
    return session


def _own(trace: Trace, config: Config) -> bool:
    """Only a connection to one of our ports is worth the question whether the address is ours."""
    return trace.target.port in config.ports.private and is_local(trace.target.ip)
