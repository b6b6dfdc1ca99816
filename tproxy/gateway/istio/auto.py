"""AUTO_PASSTHROUGH: SNI itself says which Service, as sidecars of other networks do; no VirtualService is asked.

    outbound_.8080_.v1_.web.shop.svc.cluster.local     port 8080, subset v1 of web in shop

Sources: istio.io, ServerTLSSettings.TLSmode; pilot/pkg/networking/core, gateway.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tproxy.core.hostnames import covers
from tproxy.core.routes import Backend, Passthrough, Route
from tproxy.gateway.istio.destinations import Policies
from tproxy.gateway.istio.gateway import Server
from tproxy.gateway.registry import DOMAIN, NOT_READY, Registry


@dataclass(frozen=True, slots=True)
class Auto:
    """Whoever can be asked for so."""

    registry: Registry
    policies: Policies

    def chains(self, server: Server) -> Iterator[tuple[str, Passthrough]]:
        """Every port and subset of every host that the server's hosts cover, by its SNI. They are not the world's."""
        where = server.gateway.fields().place(server.path)
        for host, service in self.registry.services.items():
            if any(_meant(host, *wanted) for wanted in server.hosts):
                for subset in ("", *self._subsets(host)):
                    for port in service.ports:
                        backend = self._backend(host, port, subset)
                        route = Route(f"{server.name} AUTO_PASSTHROUGH {host}:{port}", (backend,), where)
                        yield f"outbound_.{port}_.{subset}_.{host}", Passthrough(server.name, route, mesh=True)

    def _subsets(self, host: str) -> set[str]:
        return {subset for pattern, subset in self.policies if subset and covers(pattern, host)}

    def _backend(self, host: str, port: int, subset: str) -> Backend:
        labels = next(
            (
                made.labels
                for (pattern, name), made in self.policies.items()
                if name == subset and covers(pattern, host)
            ),
            {},
        )
        endpoints, fault = self.registry.find(host, port, labels if subset else {})
        return Backend(f"outbound|{port}|{subset}|{host}", endpoints, fault="" if fault == NOT_READY else fault)


def _meant(host: str, namespace: str, pattern: str) -> bool:
    """Whether a server's host, in whichever namespace it looks, covers a service's."""
    of = host.removesuffix(f".{DOMAIN}").rpartition(".")[2] if host.endswith(f".{DOMAIN}") else ""
    return covers(pattern, host) and namespace in ("*", of)
