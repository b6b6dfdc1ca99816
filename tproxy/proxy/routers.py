"""The routers that rules of egress lead to: who is up, whose turn it is, and the connection to one of them.

A router that refuses or does not answer is passed over: until a check reaches it, or, where nobody checks, for ``rest``
seconds, unless all others are, too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tproxy.core.address import Address, Endpoint
from tproxy.core.config import Config
from tproxy.core.egress.routes import EgressRule, last_octet, order
from tproxy.core.reason import Deny, Reason
from tproxy.kernel.sock import reset_on_close
from tproxy.proxy.compiled import AnyReactor
from tproxy.proxy.dial import reach
from tproxy.proxy.lookup import lookup
from tproxy.proxy.trace import Trace

log = logging.getLogger("tproxy")
REMEMBERED = 5.0  # seconds that the addresses of a name hold
Hop = tuple[str, int]  # a router's host and one of its ports


@dataclass(slots=True)
class Routers:
    """Health by hop, whatever generation of the configuration names it."""

    down: dict[Hop, tuple[float, str]] = field(default_factory=dict)  # since when, and why
    _known: dict[str, tuple[float, list[Address]]] = field(default_factory=dict)

    def up(self, hop: Hop, config: Config) -> bool:
        """Whether it is worth trying."""
        found = self.down.get(hop)
        routes = config.egress_routes
        return found is None or (not routes.check and time.monotonic() - found[0] >= routes.rest)

    async def dial(self, rule: EgressRule, trace: Trace, config: Config, reactor: AnyReactor) -> socket.socket | Deny:
        """A connected socket to the router whose turn it is, or to the next that answers."""
        wanted, tried = trace.target.port, list[str]()
        turns = order(rule, wanted, lambda host, port: self.up((host, port), config), random.random)
        if not turns and not config.egress_routes.check:  # nobody would find out that one is back
            turns = order(rule, wanted, lambda *_: True, random.random)
        for router, port in turns:
            found = await self._reach((router.host, port), config, reactor)
            trace.via, trace.router = router.name, router.cluster(port, config.egress_routes.names)
            if not isinstance(found, Deny):
                sock, trace.backend = found
                _tell(trace, rule, f"connected to {trace.backend}", config)
                return sock
            _tell(trace, rule, found.why, config)
            tried.append(f"{router.name}: {found.why}")
        return Deny(Reason.NO_ROUTER, "; ".join(tried) or self._nobody(rule, wanted), rule.name)

    def _nobody(self, rule: EgressRule, wanted: int) -> str:
        """Why there was nobody to try."""
        hops = [(router.name, router.host, router.port(wanted)) for router, _ in rule.routers]
        return "; ".join(
            f"{name} has no port for {wanted}" if port is None else f"{name} is down: {self.down[host, port][1]}"
            for name, host, port in hops
        )

    async def watch(self, config: Callable[[], Config], reactor: AnyReactor) -> None:
        """Check every hop of the configuration of the moment, for ever."""
        last = -math.inf
        while True:
            now = config()
            check, hops = now.egress_routes.check, now.egress_routes.hops
            self.down = {hop: found for hop, found in self.down.items() if hop in hops}
            if check and time.monotonic() - last >= check:
                await asyncio.gather(*(self._check(hop, now, reactor) for hop in sorted(hops)))
                last = time.monotonic()
            await asyncio.sleep(min(check or 1.0, 1.0))

    async def _check(self, hop: Hop, config: Config, reactor: AnyReactor) -> None:
        found = await self._reach(hop, config, reactor)
        if not isinstance(found, Deny):
            reset_on_close(found[0], False)  # nothing was asked, so nothing is broken off
            found[0].close()

    async def _reach(self, hop: Hop, config: Config, reactor: AnyReactor) -> tuple[socket.socket, Endpoint] | Deny:
        host, port = hop
        found = await self._addresses(host, config.egress_routes.connect)
        if isinstance(found, Deny):
            self._saw(hop, found.why)
            return found
        refusal = Deny(Reason.CONNECT_FAILED, "it has no address")
        for address in random.sample(found, len(found)):
            endpoint = Endpoint(address, port)
            sock = await reach(endpoint, config.marks.own, config.egress_routes.connect, reactor)
            if not isinstance(sock, Deny):
                self._saw(hop, "")
                return sock, endpoint
            refusal = sock
        self._saw(hop, refusal.why)
        return refusal

    async def _addresses(self, host: str, seconds: float) -> list[Address] | Deny:
        """Looked up now and then; an older answer is better than none."""
        clock, known = self._known.get(host, (-math.inf, []))
        if time.monotonic() - clock > REMEMBERED:
            found = await lookup(host, seconds)
            if isinstance(found, Deny) and not known:
                return found
            known = known if isinstance(found, Deny) else found
            self._known[host] = time.monotonic(), known
        return known

    def _saw(self, hop: Hop, trouble: str) -> None:
        """Say it when it changes, not each time."""
        if trouble and hop not in self.down:
            log.warning("router %s port %d is down: %s", *hop, trouble)
        elif not trouble and hop in self.down:
            log.info("router %s port %d is up again", *hop)
        if trouble:
            self.down[hop] = time.monotonic(), trouble
        else:
            self.down.pop(hop, None)


def _tell(trace: Trace, rule: EgressRule, status: str, config: Config) -> None:
    """One line a choice; its tag is what people grep for."""
    octet = last_octet(str(trace.source))
    log.info(
        "[%s] Source address: %s; Source IP last octet: %s, intercepting %s by rule %s; Routing to %s; status: %s; "
        "Rerouting to %s",
        config.egress_routes.tag,
        trace.source,
        "none" if octet is None else octet,
        trace.target,
        rule.name,
        trace.via,
        status,
        trace.router,
    )
