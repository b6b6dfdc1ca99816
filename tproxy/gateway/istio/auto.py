"""AUTO_PASSTHROUGH: SNI itself says which Service, as sidecars of other networks do; no VirtualService is asked.

    outbound_.8080_.v1_.web.shop.svc.cluster.local     port 8080, subset v1 of web in shop

Sources: istio.io, ServerTLSSettings.TLSmode; pilot/pkg/networking/core, gateway.go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tproxy.core.hostnames import covers
from tproxy.core.routes import Backend, Passthrough, Route
from tproxy.gateway.istio.destinations import Policies
from tproxy.gateway.istio.gateway import Server
from tproxy.gateway.registry import DOMAIN, NOT_READY, Registry

_NO_LABELS: Mapping[str, str] = {}
_Subsets = Mapping[str, Mapping[str, Mapping[str, str]]]  # labels by pattern of hosts, and subset


@dataclass(frozen=True, slots=True)
class Auto:
    """Whoever can be asked for so."""

    registry: Registry
    policies: Policies

    def chains(self, server: Server) -> Iterator[tuple[str, Passthrough]]:
        """Every port and subset of every host that the server's hosts cover, by its SNI. They are not the world's."""
        where, subsets = server.gateway.fields().place(server.path), self._by_pattern()
        for host, service in self.registry.services.items():
            if any(_meant(host, *wanted) for wanted in server.hosts):
                for subset, labels in {"": _NO_LABELS, **_subsets(host, subsets)}.items():
                    for port in service.ports:
                        backend = self._backend(host, port, subset, labels)
                        route = Route(f"{server.name} AUTO_PASSTHROUGH {host}:{port}", (backend,), where)
                        yield f"outbound_.{port}_.{subset}_.{host}", Passthrough(server.name, route, mesh=True)

    def _by_pattern(self) -> _Subsets:
        found: dict[str, dict[str, Mapping[str, str]]] = {}
        for (pattern, subset), policy in self.policies.items():
            if subset:
                found.setdefault(pattern, {})[subset] = policy.labels
        return found

    def _backend(self, host: str, port: int, subset: str, labels: Mapping[str, str]) -> Backend:
        endpoints, fault = self.registry.find(host, port, labels)
        return Backend(f"outbound|{port}|{subset}|{host}", endpoints, fault="" if fault == NOT_READY else fault)


def _subsets(host: str, by_pattern: _Subsets) -> Mapping[str, Mapping[str, str]]:
    """Of the host's own DestinationRule, or of the longest wildcard's."""
    labels = host.split(".")
    wider = (f"*.{'.'.join(labels[cut:])}" for cut in range(1, len(labels)))
    return next((by_pattern[pattern] for pattern in (host, *wider, "*") if pattern in by_pattern), {})


def _meant(host: str, namespace: str, pattern: str) -> bool:
    """Whether a server's host, in whichever namespace it looks, covers a service's."""
    of = host.removesuffix(f".{DOMAIN}").rpartition(".")[2] if host.endswith(f".{DOMAIN}") else ""
    return covers(pattern, host) and namespace in ("*", of)
