"""Who can be reached: Services with EndpointSlices or Endpoints, and static ServiceEntries, by host and port."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from tproxy.core.address import Address, Endpoint, parse_address
from tproxy.core.fields import ConfigError, Fields, parse_port
from tproxy.core.hostnames import parse_hostname
from tproxy.gateway.findings import Findings
from tproxy.gateway.objects import Object

DOMAIN = "svc.cluster.local"
NOT_READY = "has no endpoints that are ready"
_HTTP2 = ("http2", "grpc", "h2c", "kubernetes.io/h2c")  # an appProtocol, or how a port's name begins in Istio


@dataclass(frozen=True, slots=True)
class Member:
    """One address of a service on one of its ports."""

    port: str  # the service port's name
    endpoint: Endpoint
    labels: Mapping[str, str] = field(default_factory=dict)
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Service:
    """What stands behind a host."""

    ports: Mapping[int, str]  # number to name
    members: tuple[Member, ...] = ()
    fault: str = ""
    http2: frozenset[int] = frozenset()  # ports that speak HTTP/2


class Registry:
    """All services by their full host names."""

    def __init__(self, objects: Iterable[Object], findings: Findings, trusting: bool = True) -> None:
        """Who is not trusted reaches nothing that only the gateway's own host does; of slices Kubernetes sees to it."""
        self._ip = _ip if trusting else _elsewhere
        self.services: dict[str, Service] = {}
        self._hints = findings.hints
        found = _Collected()
        for thing in objects:
            try:
                match thing.group, thing.kind:
                    case "", "Service":
                        found.services.append((thing, thing.fields("spec")))
                    case "", "Pod":
                        found.pods[thing.key] = thing.labels
                    case "", "Endpoints":
                        found.endpoints(thing)
                    case "discovery.k8s.io", "EndpointSlice":
                        found.slice(thing)
                    case "networking.istio.io", "ServiceEntry":
                        self._entry(thing)
            except ConfigError as error:
                findings.error(error)
        for thing, spec in found.services:
            try:
                self.services[host_of(*reversed(thing.key))] = found.service(thing, spec)
            except ConfigError as error:
                findings.error(error)

    def find(self, host: str, port: int | None, labels: Mapping[str, str]) -> tuple[tuple[Endpoint, ...], str]:
        """The endpoints of a host's port that have all these labels, or why there are none."""
        members, fault = self._members(host, port, labels)
        return tuple(member.endpoint for member in members), fault

    def weights(self, host: str, port: int | None, labels: Mapping[str, str]) -> tuple[int, ...]:
        """Of the same endpoints, in the same order; none where all weigh the same."""
        found = tuple(member.weight for member in self._members(host, port, labels)[0])
        return found if len(set(found)) > 1 else ()

    def _members(self, host: str, port: int | None, labels: Mapping[str, str]) -> tuple[list[Member], str]:
        service = self.services.get(host)
        if service is None:
            return [], f"there is no such Service or ServiceEntry{self._meant(host)}"
        if service.fault:
            return [], service.fault
        if port is None and len(service.ports) != 1:
            return [], f"has several ports ({_listed(service)}): say which"
        name = service.ports.get(next(iter(service.ports)) if port is None else port)
        if name is None:
            return [], f"has no port {port}; it has {_listed(service)}"
        members = [m for m in service.members if m.port == name and labels.items() <= m.labels.items()]
        return members, "" if members else NOT_READY

    def _meant(self, host: str) -> str:
        """A Service of this name in another namespace, or one of this namespace with nearly this name."""
        name, _, rest = host.partition(".")
        if elsewhere := self._alike.get(name):
            return f"; did you mean {min(elsewhere)!r}?"
        return self._hints.near(name, self._alike.get(f".{rest}", ()), 0.6)

    @cached_property
    def _alike(self) -> dict[str, list[str]]:
        """Hosts by their first label; first labels by a dot and what follows it."""
        found: dict[str, list[str]] = {}
        for host in self.services:
            name, dot, rest = host.partition(".")
            found.setdefault(name, []).append(host)
            found.setdefault(f"{dot}{rest}", []).append(name)
        return found

    def only_port(self, host: str) -> int | None:
        """The port of a host that has one."""
        service = self.services.get(host)
        return next(iter(service.ports)) if service is not None and len(service.ports) == 1 else None

    def http2(self, host: str, port: int | None) -> bool:
        """Whether a host's port speaks HTTP/2, as far as its Service says."""
        service = self.services.get(host)
        return service is not None and (port in service.http2 or (port is None and len(service.http2) == 1))

    def port_name(self, host: str, port: int) -> str:
        """What a host's port is called, if it is there."""
        service = self.services.get(host)
        return service.ports.get(port, "") if service else ""

    def _entry(self, thing: Object) -> None:
        spec = thing.fields("spec")
        fault = ""
        if spec.raw("workloadSelector") is not None:
            fault = "its ServiceEntry selects workloads, which is not supported"
        elif (resolution := spec.text("resolution", "NONE")) != "STATIC":
            fault = f"its ServiceEntry has resolution {resolution}; only STATIC is supported"
        ports = {entry.parsed("number", parse_port, None): entry for entry in spec.each("ports")}
        names = {number: entry.text("name", str(number)) for number, entry in ports.items()}
        members: list[Member] = []
        for entry in () if fault else spec.each("endpoints"):
            own, weight = entry.inner("ports"), entry.integer("weight", 0, 0, 2**32 - 1) or 1
            for number, port in ports.items():
                target = own.parsed(names[number], parse_port, port.parsed("targetPort", parse_port, number))
                labels = {str(key): str(value) for key, value in entry.inner("labels").data.items()}
                members.append(
                    Member(names[number], Endpoint(entry.parsed("address", self._ip, None), target), labels, weight)
                )
        for host in spec.some("hosts", parse_hostname):
            speaks = frozenset(
                number for number, entry in ports.items() if is_http2("", entry.text("protocol").lower())
            )
            self.services[host] = Service(names, tuple(members), fault, speaks)


@dataclass(slots=True)
class _Collected:
    """What belongs together in Kubernetes stands in several objects."""

    services: list[tuple[Object, Fields]] = field(default_factory=list)
    pods: dict[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)
    members: dict[tuple[str, str], list[tuple[str, Endpoint, str]]] = field(default_factory=dict)

    def slice(self, thing: Object) -> None:
        name = thing.labels.get("kubernetes.io/service-name", "")
        top, into = thing.fields(), self.members.setdefault((thing.namespace, name), [])
        if top.text("addressType", "IPv4") == "FQDN":
            raise top.error("addressType", "is not supported; IPv4 and IPv6 are", "FQDN")
        for port in top.each("ports"):
            for entry in top.each("endpoints"):
                if entry.inner("conditions").flag("ready", True):
                    pod = entry.inner("targetRef").text("name")
                    for address in entry.items("addresses", _ip):
                        into.append((port.text("name"), Endpoint(address, port.parsed("port", parse_port, None)), pod))

    def endpoints(self, thing: Object) -> None:
        into = self.members.setdefault(thing.key, [])
        for subset in thing.fields().each("subsets"):
            for port in subset.each("ports"):
                for entry in subset.each("addresses"):
                    where = Endpoint(entry.parsed("ip", _ip, None), port.parsed("port", parse_port, None))
                    into.append((port.text("name"), where, entry.inner("targetRef").text("name")))

    def service(self, thing: Object, spec: Fields) -> Service:
        entries = [(entry.parsed("port", parse_port, None), entry) for entry in spec.each("ports")]
        ports = {port: entry.text("name") for port, entry in entries}
        http2 = frozenset(port for port, entry in entries if is_http2(entry.text("appProtocol"), ports[port]))
        if spec.text("type", "ClusterIP") == "ExternalName":
            return Service(ports, (), "is an ExternalName Service, which is not supported")
        known = self.members.get(thing.key)
        cluster_ip = spec.text("clusterIP")
        if known is None and cluster_ip not in ("", "None"):  # its endpoints are kube-proxy's business
            address = spec.parsed("clusterIP", _ip, None)
            alone = tuple(Member(name, Endpoint(address, port)) for port, name in ports.items())
            return Service(ports, alone, http2=http2)
        members = (Member(p, where, self.pods.get((thing.namespace, pod), {})) for p, where, pod in known or ())
        return Service(ports, tuple(members), http2=http2)


def is_http2(app_protocol: str, name: str) -> bool:
    """By appProtocol, else by the port's name as Istio reads it: ``grpc-api``, not ``grpc-web``."""
    if app_protocol:
        return app_protocol.lower() in _HTTP2
    return name.partition("-")[0].lower() in _HTTP2 and not name.lower().startswith("grpc-web")


def host_of(name: str, namespace: str) -> str:
    """A Service's full name."""
    return f"{name}.{namespace}.{DOMAIN}"


def full_host(host: str, namespace: str) -> str:
    """As Istio reads a destination: a name without dots is a Service of the rule's namespace."""
    return host_of(host, namespace) if "." not in host else host


def _listed(service: Service) -> str:
    return ", ".join(map(str, service.ports))


def _ip(value: object) -> Address:
    if not isinstance(value, str):
        raise ValueError("expected an IP address")
    return parse_address(value)


def _elsewhere(value: object) -> Address:
    address = _ip(value)
    if address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast:
        raise ValueError("expected an address that others have, too, not one of the gateway's own host")
    return address
