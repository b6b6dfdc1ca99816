"""One connection from outside: peek -> decide -> TLS -> may it -> dial the application as the client -> relay."""

from __future__ import annotations

import socket
from typing import assert_never

from tproxy.core import decide
from tproxy.core.config import Config, Mode
from tproxy.core.identity import SpiffeId
from tproxy.core.policy.policy import Allow
from tproxy.core.reason import Deny
from tproxy.core.record import Record
from tproxy.kernel.sock import abort
from tproxy.proxy.dial import dial
from tproxy.proxy.legs import Leg, PlainLeg
from tproxy.proxy.live import admit
from tproxy.proxy.peek import first
from tproxy.proxy.relay import relay
from tproxy.proxy.side import Side, State
from tproxy.proxy.trace import Trace


async def ingress(down: socket.socket, trace: Trace, side: Side) -> Record:
    """Carry it to the application, or refuse it with RST; either way there is one record."""
    state = side.state
    trace.own, trace.own_serial = state.own, f"{state.serial:x}"
    try:
        leg = await _admitted(down, trace, state, side)
        up = leg if isinstance(leg, Deny) else await dial(trace.target, state.config, side.reactor, trace.source.ip)
    except BaseException:
        abort(down)
        raise
    if isinstance(leg, Deny) or isinstance(up, Deny):
        abort(down)
        return trace.refused(leg if isinstance(leg, Deny) else up)  # type: ignore[arg-type]
    if deny := admit(trace, state, side):
        for sock in (down, up):
            abort(sock)
        return trace.refused(deny)
    return trace.moved(await relay(leg, side.app_leg(up), side.reactor))


async def _admitted(down: socket.socket, trace: Trace, state: State, side: Side) -> Leg | Deny:
    """The caller's leg, once the mode, the handshake and the policy agree."""
    config = state.config
    mode = decide.arrival(trace.target, config)
    if isinstance(mode, Deny):
        return mode
    spoken: decide.First = decide.Gone()
    if mode is not Mode.DISABLE:
        spoken = await first(
            down, config.limits.silence if mode is Mode.PERMISSIVE else config.limits.peek, side.reactor
        )
    match decide.ingress(trace.target, mode, spoken, config.mode_rule(trace.target.port)):
        case Deny() as deny:
            return deny
        case decide.Plain():
            answer = _asked(None, trace, config)
            if isinstance(answer, Deny):
                return answer
            trace.rule = answer.rule
            return PlainLeg(down)
        case decide.Terminate():
            return await _proven(down, trace, state, side)
        case never:
            assert_never(never)


async def _proven(down: socket.socket, trace: Trace, state: State, side: Side) -> Leg | Deny:
    session = await side.shake(down, state.contexts.server)
    if isinstance(session, Deny):
        return session
    trace.session(session)
    answer = _asked(session.peer, trace, state.config)
    if isinstance(answer, Deny):
        return answer
    trace.rule = answer.rule
    return session.leg


def _asked(peer: SpiffeId | None, trace: Trace, config: Config) -> Allow | Deny:
    """The policy's answer, and in the trace what it notes beside."""
    call = decide.called(peer, trace.source, trace.target, config)
    trace.dry_run, trace.audit = config.policy.dry_run(call), config.policy.audit(call)
    return decide.authorize(peer, trace.source, trace.target, config)
