"""Gateway API's listeners on the ports of this process: Gateways without addresses of their own share them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tproxy.core.routes import Bind
from tproxy.gateway.findings import Findings
from tproxy.gateway.gatewayapi.conflicts import clash
from tproxy.gateway.gatewayapi.gateways import Served
from tproxy.gateway.gatewayapi.listeners import Listener


@dataclass(slots=True)
class Ports:
    """Who listens where; TCP and UDP ports are different ones."""

    streams: dict[Bind, list[Listener]] = field(default_factory=dict)
    datagrams: dict[Bind, list[Listener]] = field(default_factory=dict)

    @classmethod
    def of(cls, served: Iterable[Served], findings: Findings) -> Ports:
        """The older Gateway goes first; whoever comes too late is told in his status."""
        made = cls()
        for each in served:
            for one in each.listeners if each.bound else ():
                if one.binds:
                    made._add(one, findings)
        return made

    def _add(self, one: Listener, findings: Findings) -> None:
        kind = self.datagrams if one.protocol == "UDP" else self.streams
        places = [kind.setdefault((address, one.port), []) for address in one.addresses or ("",)]
        other = next((other for there in places for other in there if clash(one, other)), None)
        if other is None:
            for there in places:
                there.append(one)
            return
        why = f"port {one.port} is taken by {other.title} ({other.protocol} {other.hostname}); it is not served"
        one.conditions.set("Accepted", False, "PortUnavailable", why)
        one.conditions.set("Programmed", False, "Invalid", why)
        findings.warn(one.owner, one.path, why)
