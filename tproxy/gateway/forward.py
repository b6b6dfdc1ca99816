"""Every connection of one port to one target, as socat's ``fork`` does it, without a process for each.

accept -> dial -> who the client is, where the target asks -> relay -> record. Bytes are not looked at.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

from tproxy.core.address import Endpoint
from tproxy.core.proxy_protocol import V1_LOCAL, V2_LOCAL, v1, v2
from tproxy.core.reason import Deny, Reason
from tproxy.core.record import Record
from tproxy.core.routes import ProxyProtocol
from tproxy.core.socat import Target
from tproxy.kernel.sock import abort, reset_on_close
from tproxy.proxy.compiled import AnyReactor
from tproxy.proxy.dial import reach
from tproxy.proxy.legs import PlainLeg
from tproxy.proxy.lookup import lookup
from tproxy.proxy.relay import relay
from tproxy.proxy.trace import Trace

log = logging.getLogger("tproxy")


@dataclass(slots=True)
class Forwarder:
    """Where they go, and what was seen of it last. Made inside the event loop."""

    target: Target
    finished: Callable[[Record], None]
    reactor: AnyReactor
    most: int = 65_536  # connections at once
    seconds: float = 10.0  # for the target to answer
    proxy: ProxyProtocol = ProxyProtocol.NONE
    trouble: str = ""  # why the target cannot be reached; empty: it can

    async def dial(self) -> tuple[socket.socket, Endpoint] | Deny:
        """A connected socket and whom it reached: the name's addresses in their order, until one answers."""
        found = await lookup(self.target.host, self.seconds)
        if isinstance(found, Deny):
            self._saw(found.why)
            return found
        refusal = Deny(Reason.CONNECT_FAILED, "it has no address")
        for address in found:
            endpoint = Endpoint(address, self.target.port)
            sock = await reach(endpoint, 0, self.seconds, self.reactor)
            if not isinstance(sock, Deny):
                self._saw("")
                return sock, endpoint
            refusal = sock
        self._saw(refusal.why)
        return refusal

    def _saw(self, trouble: str) -> None:
        """Say it when it changes, not each time."""
        if trouble and not self.trouble:
            log.warning("target %s: %s", self.target, trouble)
        elif self.trouble and not trouble:
            log.info("target %s answers again", self.target)
        self.trouble = trouble

    def introduction(self, trace: Trace) -> bytes:
        """What the target is told of the client first."""
        if self.proxy is ProxyProtocol.NONE:
            return b""
        return (v1 if self.proxy is ProxyProtocol.V1 else v2)(trace.source, trace.target)


async def carry(down: socket.socket, trace: Trace, forwarder: Forwarder) -> Record:
    """Carry it to the target, or refuse it with RST; either way there is one record."""
    found = await forwarder.dial()
    if isinstance(found, Deny):
        abort(down)
        return trace.refused(found)
    up, trace.backend = found
    try:
        if said := forwarder.introduction(trace):
            up.send(said)  # into an empty send buffer, so all of it
    except OSError as error:
        abort(up)
        abort(down)
        return trace.refused(Deny(Reason.CONNECT_FAILED, f"telling {trace.backend} of the client: {error.strerror}"))
    return trace.moved(await relay(PlainLeg(down), PlainLeg(up), forwarder.reactor))


async def watch(forwarder: Forwarder, every: float) -> None:
    """Connect to the target every so many seconds, for ever; a target of PROXY headers hears that nobody calls."""
    hello = {ProxyProtocol.NONE: b"", ProxyProtocol.V1: V1_LOCAL, ProxyProtocol.V2: V2_LOCAL}[forwarder.proxy]
    while True:
        found = await forwarder.dial()
        if not isinstance(found, Deny):
            sock = found[0]
            try:
                if hello:
                    sock.send(hello)
                reset_on_close(sock, False)  # nothing was asked, so nothing is broken off
            except OSError:
                pass
            finally:
                sock.close()
        await asyncio.sleep(every)
