"""Istio's DestinationRule: what is said of a host, of one of its ports, and of a subset of its endpoints.

A port's settings take the place of all that is said above them, and what they leave out has its default; a subset's
take the place of the host's one by one (pilot/pkg/networking/util, MergeTrafficPolicy).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tproxy.core.balance.limits import NO_CARE, Care
from tproxy.core.balance.outlier import Outlier
from tproxy.core.fields import ConfigError, Fields, parse_port
from tproxy.core.hostnames import is_address, parse_hostname
from tproxy.core.routes import Backend, BackendTls, ProxyProtocol
from tproxy.gateway.findings import Findings, ignore, refuse
from tproxy.gateway.istio.balancers import DEFAULT, Balancer, balancer
from tproxy.gateway.istio.limits import NO_POOL, Connections, connection_pool, outlier_detection
from tproxy.gateway.istio.tls import client_tls
from tproxy.gateway.objects import Object
from tproxy.gateway.registry import full_host
from tproxy.gateway.secrets import Vault

_PROXY = {"V1": ProxyProtocol.V1, "V2": ProxyProtocol.V2}


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be said of a port."""

    tls: BackendTls | None = None
    balancer: Balancer = DEFAULT
    pool: Connections = NO_POOL
    outlier: Outlier | None = None

    @property
    def care(self) -> Care | None:
        """What is to be bounded and watched."""
        found = Care(self.pool.caps, self.outlier)
        return None if found == NO_CARE else found


@dataclass(frozen=True, slots=True)
class Policy:
    """What a DestinationRule says of a host or of one subset of it."""

    labels: Mapping[str, str] = field(default_factory=dict)
    proxy: ProxyProtocol = ProxyProtocol.NONE
    common: Settings = Settings()
    ports: Mapping[int, Settings] = field(default_factory=dict)
    fault: str = ""  # why nobody may be spoken to under it

    def applied(self, backend: Backend, host: str, port: int | None, weights: tuple[int, ...]) -> Backend:
        """The backend, a port of the host, as it is spoken to; weights are those of its endpoints, if they have any."""
        found = self.common if port is None else self.ports.get(port, self.common)
        return replace(
            backend,
            tls=None if found.tls is None else replace(found.tls, host=host),
            proxy=self.proxy,
            balance=found.balancer.simple,
            affinity=found.balancer.affinity(backend.endpoints, weights),
            http2=backend.http2 or found.pool.http2,
            care=found.care,
        )


Policies = dict[tuple[str, str], Policy]  # by host and subset ("" is the host itself)
_NOTHING = Policy()


def policy_of(policies: Policies, host: str, subset: str) -> Policy | None:
    """The host's own, or of the longest wildcard; None where a subset is asked for that nobody has."""
    for pattern in (host, *(f"*.{host.split('.', cut)[cut]}" for cut in range(1, host.count(".") + 1)), "*"):
        if (found := policies.get((pattern, subset))) is not None:
            return found
    return None if subset else _NOTHING


def policies(things: Iterable[Object], findings: Findings, vault: Vault) -> Policies:
    """All DestinationRules; of two for one host the first counts."""
    found: Policies = {}
    unread: list[Object] = []
    for thing in things:
        try:
            for key, policy in _policies(thing, findings, vault).items():
                found.setdefault(key, policy)
        except ConfigError as error:
            findings.error(error)
            unread.append(thing)
    for thing in unread:
        _close(thing, found)
    return found


def _close(thing: Object, found: Policies) -> None:
    """A host of TLS is not spoken to in plaintext because its rule cannot be read."""
    spec = thing.body.get("spec")
    host = spec.get("host") if isinstance(spec, Mapping) else None
    if isinstance(host, str) and _asks_for_tls(spec):
        fault = f"{thing} asks for TLS and cannot be read"
        found.setdefault(
            (full_host(host.lower(), thing.namespace), ""),
            Policy(common=Settings(BackendTls("SIMPLE", fault=fault)), fault=fault),
        )


def _asks_for_tls(value: object) -> bool:
    if isinstance(value, Mapping):
        return "tls" in value or any(map(_asks_for_tls, value.values()))
    return isinstance(value, list) and any(map(_asks_for_tls, value))


def _policies(thing: Object, findings: Findings, vault: Vault) -> Policies:
    spec = thing.fields("spec")
    host = full_host(spec.parsed("host", parse_host, None), thing.namespace)
    refuse(spec, ("workloadSelector",))
    ignore(thing, spec, ("exportTo",), findings)
    reader = _Traffic(thing, host, findings, vault)
    base = reader.policy(spec, {}, _NOTHING)
    found = {(host, ""): base}
    for entry in spec.each("subsets"):
        labels = {str(key): str(value) for key, value in entry.inner("labels").data.items()}
        if not (name := entry.text("name")):
            raise entry.error("name", "is missing")
        found[host, name] = reader.policy(entry, labels, base)
        entry.finish()
    spec.finish()
    return found


@dataclass(frozen=True, slots=True)
class _Traffic:
    """Of one DestinationRule."""

    thing: Object
    host: str
    findings: Findings
    vault: Vault

    def policy(self, entry: Fields, labels: Mapping[str, str], base: Policy) -> Policy:
        """A subset's policy, or the host's own where ``base`` says nothing."""
        traffic = entry.inner("trafficPolicy")
        refuse(traffic, ("tunnel",))
        given = self._given(traffic)
        ports = {number: replace(settings, **given) for number, settings in base.ports.items()}
        common, proxy = replace(base.common, **given), base.proxy
        for each in traffic.each("portLevelSettings"):
            number = each.inner("port").parsed("number", parse_port, None)
            each.raw("port")
            ports[number] = Settings(**self._given(each))
            each.finish()
            if common.tls is not None and each.raw("tls") is None:
                why = "says nothing of tls, and a port inherits nothing: it is spoken to in plaintext"
                self.findings.warn(self.thing, each.path, why)
        if traffic.raw("proxyProtocol") is not None:
            version = traffic.inner("proxyProtocol")
            proxy = _PROXY[version.choice("version", "V1", _PROXY)]
            version.finish()
        traffic.finish()
        return Policy(labels, proxy, common, ports)

    def _given(self, traffic: Fields) -> dict[str, Any]:
        """Fields of ``Settings`` that are given here."""
        given: dict[str, Any] = {}
        if traffic.raw("tls") is not None:
            given["tls"] = client_tls(self.thing, traffic.inner("tls"), self.host, self.findings, self.vault)
        if traffic.raw("loadBalancer") is not None:
            given["balancer"] = balancer(self.thing, traffic.inner("loadBalancer"), self.findings)
        if traffic.raw("connectionPool") is not None:
            given["pool"] = connection_pool(self.thing, traffic.inner("connectionPool"), self.findings)
        if traffic.raw("outlierDetection") is not None:
            given["outlier"] = outlier_detection(self.thing, traffic.inner("outlierDetection"), self.findings)
        return given


def parse_host(text: object) -> str:
    """A host name or an address."""
    return str(text) if isinstance(text, str) and is_address(text) else parse_hostname(text)
