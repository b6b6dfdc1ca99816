"""UDP: a client's port is a flow, a flow has one endpoint and a socket towards it, and ends when nothing moves.

Whoever sends may have made his address up, so flows are bounded, of one address and of all; what is over the bound is
dropped. One record a flow, refused ones too.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tproxy.core.address import Address, Endpoint
from tproxy.core.policy.policy import Policy
from tproxy.core.reason import Deny, Reason
from tproxy.core.record import Direction, Outcome, Record
from tproxy.core.routes import UdpListener, choose
from tproxy.gateway.admission import denied
from tproxy.kernel.datagram import LARGEST, Datagram, answer, receive, towards
from tproxy.proxy.pump import Moved
from tproxy.proxy.server import Choice
from tproxy.proxy.trace import Trace

log = logging.getLogger("tproxy")
IDLE = 30.0  # seconds without a datagram
SWEEP = 1.0
MOST, MOST_OF_ONE = 16_384, 1024  # flows of a port, and of one address
BURST = 64  # datagrams before others get their turn
_Key = tuple[Any, Address]


@dataclass(slots=True, eq=False)
class Flow:
    """One client's port."""

    key: _Key
    trace: Trace
    up: socket.socket | None  # None: it is refused, and its datagrams are dropped
    last: float
    sent: int = 0
    received: int = 0


class Datagrams:
    """One UDP port. ``listener`` is asked for each new flow; None when the port is being taken away."""

    def __init__(
        self,
        sock: socket.socket,
        listener: Callable[[], UdpListener | None],
        finished: Callable[[Record], None],
        clock: Callable[[], float] = time.monotonic,
        policy: Callable[[], Policy | None] = lambda: None,
    ) -> None:
        self._sock, self._listener, self._finished, self._clock = sock, listener, finished, clock
        self._policy = policy
        self._flows: OrderedDict[_Key, Flow] = OrderedDict()  # the one that has been still longest first
        self._of_one: Counter[str] = Counter()
        self._loop, self._full = asyncio.get_running_loop(), False
        self._sweeping: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to read."""
        self._loop.add_reader(self._sock, self._readable)

    def stop(self) -> None:
        """Close the port and end all flows."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock)
        if self._sweeping is not None:
            self._sweeping.cancel()
        for flow in list(self._flows.values()):
            self._end(flow, Outcome.CUT)
        self._sock.close()

    def cut(self, chosen: Choice) -> None:
        """End the flows that are chosen."""
        carried = {flow.trace: flow for flow in self._flows.values() if flow.up is not None}
        for trace, verdict in list(chosen(carried)):
            trace.verdict = verdict
            self._end(carried[trace], Outcome.CUT)

    def __len__(self) -> int:
        return len(self._flows)

    def _readable(self) -> None:
        for _ in range(BURST):
            try:
                came = receive(self._sock)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error of some answer of ours: ip(7)
                continue
            flow = self._flows.get((came.source, came.local)) or self._begin(came)
            if flow is not None and flow.up is not None:
                self._forward(flow, flow.up, came.data)

    def _forward(self, flow: Flow, up: socket.socket, data: bytes) -> None:
        self._touch(flow)
        try:
            with suppress(BlockingIOError):  # dropped, as any router may
                flow.sent += up.send(data)
        except OSError as error:
            self._end(flow, Outcome.FAILED, error)

    def _touch(self, flow: Flow) -> None:
        flow.last = self._clock()
        self._flows.move_to_end(flow.key)

    def _begin(self, came: Datagram) -> Flow | None:
        address = str(came.source[0])
        if len(self._flows) >= MOST or self._of_one[address] >= MOST_OF_ONE:
            if not self._full:
                log.warning("%s: too many flows (%d, %d of it); more are dropped", address, MOST, MOST_OF_ONE)
            self._full = True
            return None
        listener = self._listener()
        if listener is None:
            return None
        target = Endpoint(came.local, listener.port)
        trace = Trace(Direction.GATEWAY, Endpoint.of_socket(came.source), target)
        up = self._chosen(listener, trace)
        key = came.source, came.local
        made = Flow(key, trace, up if isinstance(up, socket.socket) else None, self._clock())
        self._flows[key] = made
        trace.carrying = made.up is not None
        self._of_one[address] += 1
        if isinstance(up, Deny):
            self._finished(trace.refused(up))
        else:
            self._loop.add_reader(up, self._answered, made, up)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(SWEEP, self._sweep)
        return made

    def _chosen(self, listener: UdpListener, trace: Trace) -> socket.socket | Deny:
        if listener.route is None:
            return Deny(Reason.NO_ROUTE, f"no UDPRoute is bound to port {listener.port}", listener.server)
        trace.rule = listener.route.name
        if (deny := denied(self._policy(), trace)) is not None:
            return deny
        backend = choose(listener.route, random.random())
        if isinstance(backend, Deny):
            return backend
        trace.backend = random.choice(backend.endpoints)
        try:
            return towards(trace.backend)
        except OSError as error:
            return Deny(Reason.CONNECT_FAILED, f"{trace.backend}: {error.strerror}")

    def _answered(self, flow: Flow, up: socket.socket) -> None:
        for _ in range(BURST):
            try:
                data = up.recv(LARGEST)
            except BlockingIOError:
                return
            except OSError as error:  # nobody listens there: ICMP said so
                self._end(flow, Outcome.FAILED, error)
                return
            self._touch(flow)
            flow.received += len(data)
            with suppress(OSError):  # dropped
                answer(self._sock, data, *flow.key)

    def _sweep(self) -> None:
        now = self._clock()
        while self._flows and (flow := next(iter(self._flows.values()))).last + IDLE <= now:
            self._end(flow, Outcome.CLOSED)
        self._full = self._full and len(self._flows) >= MOST
        self._sweeping = self._loop.call_later(SWEEP, self._sweep) if self._flows else None

    def _end(self, flow: Flow, outcome: Outcome, error: OSError | None = None) -> None:
        del self._flows[flow.key]
        address = str(flow.key[0][0])
        self._of_one[address] -= 1
        if not self._of_one[address]:
            del self._of_one[address]
        if flow.up is None:
            return  # its record has been written
        self._loop.remove_reader(flow.up)
        flow.up.close()
        if error is not None:
            deny = Deny(Reason.CONNECT_FAILED, f"{flow.trace.backend}: {error.strerror}")
            self._finished(flow.trace.refused(deny))
        else:
            self._finished(flow.trace.moved(Moved(flow.sent, flow.received, outcome, "sidecar")))
