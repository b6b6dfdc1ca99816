"""Joining two legs until both directions have ended, and closing them as they ended."""

from __future__ import annotations

import asyncio
import socket

from tproxy.core.record import Outcome
from tproxy.kernel.sock import abort, reset_on_close, unacknowledged
from tproxy.proxy.compiled import AnyReactor
from tproxy.proxy.legs import Leg
from tproxy.proxy.pump import Moved

LAST_WORDS = 1.0  # seconds that bytes before a reset get to reach the other side


async def relay(down: Leg, up: Leg, reactor: AnyReactor) -> Moved:
    """Carry bytes both ways until both ended or one side broke; then both sockets are closed, with RST if it broke.

    Cancelling it cuts the connection: both sides get RST, and what was carried until then is returned.
    """
    state = reactor.join(down, up)
    try:
        state.start()
        try:
            moved = await state.ended
        except asyncio.CancelledError:
            return state.cut()
        if moved.outcome is not Outcome.CLOSED:
            await _last_words((up if moved.ended_by == "source" else down).sock)
            return moved
        for leg in (down, up):
            reset_on_close(leg.sock, False)
            leg.sock.close()
        return moved
    finally:
        state.detach()
        state.forget()
        for leg in (down, up):
            if leg.sock.fileno() >= 0:
                abort(leg.sock)


async def _last_words(sock: socket.socket) -> None:
    """Let the bytes that were sent before a reset arrive before the reset does, as they would without us."""
    loop = asyncio.get_running_loop()
    deadline, pause = loop.time() + LAST_WORDS, 0.005
    while loop.time() < deadline:
        try:
            if not unacknowledged(sock):
                return
        except OSError:
            return
        await asyncio.sleep(pause)
        pause = 0.045  # a delayed acknowledgement takes 40 ms
