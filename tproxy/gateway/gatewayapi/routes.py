"""Gateway API's routes: to which listeners they attach, under which names, and where their backends are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tproxy.core.fields import ConfigError, Fields, parse_port
from tproxy.core.hostnames import ANY, intersection, is_address, parse_hostname
from tproxy.core.routes import Backend, Route
from tproxy.gateway.findings import spelt, then
from tproxy.gateway.gatewayapi.backend_policies import Policies
from tproxy.gateway.gatewayapi.conditions import CONTROLLER, Conditions
from tproxy.gateway.gatewayapi.grants import GROUP, Ref, World
from tproxy.gateway.gatewayapi.listeners import Listener
from tproxy.gateway.objects import Object
from tproxy.gateway.registry import NOT_READY, Registry, host_of

_NO_LISTENER = "it has no listener that is served"
Parents = Mapping[tuple[str, str, str], list[Listener]]  # by kind, namespace and name


@dataclass(frozen=True, slots=True)
class Parent:
    """One parentRef: where it attached, and its status."""

    ref: Mapping[str, Any]
    path: str
    conditions: Conditions
    attached: tuple[tuple[Listener, tuple[str, ...]], ...]  # with the names that both mean

    def status(self) -> dict[str, Any]:
        """As it stands in the route's status."""
        return {
            "parentRef": dict(self.ref),
            "controllerName": CONTROLLER,
            "conditions": self.conditions.plain(),
        }


@dataclass(slots=True)
class References:
    """Backends of one route, and what is wrong with its references."""

    thing: Object
    world: World
    registry: Registry
    policies: Policies
    services: set[tuple[str, str]] = field(default_factory=set)  # namespace and name of each that is meant
    faults: list[tuple[str, str]] = field(default_factory=list)  # reason and message
    places: list[str] = field(default_factory=list)  # of each of them
    remarks: list[tuple[str, str]] = field(default_factory=list)  # field and sentence, of which no status speaks

    def route(self, rule: Fields, index: int) -> Route:
        """The backends of one rule."""
        spelt(rule, "name", "backendRefs")
        backends = tuple(self.backends(rule))
        return Route(f"{self.thing} rules[{index}]", backends, rule.place(rule.path))

    def backends(self, rule: Fields) -> Iterator[Backend]:
        """One after the other; who cannot be reached keeps its share."""
        for entry in rule.each("backendRefs"):
            entry.raw("filters")
            yield self.backend(entry)

    def backend(self, entry: Fields) -> Backend:
        """A backendRef, also a mirror's."""
        ref = Ref.read(entry, "Service", self.thing.namespace)
        weight, port = entry.integer("weight", 1, 0, 1_000_000), entry.parsed("port", _port, None)
        entry.finish()
        name = f"{ref.namespace}/{ref.name}:{port}"
        if reason := self._fault(ref):
            self.faults.append((reason[0], reason[1]))
            self.places.append(entry.path)
            return Backend(name, (), weight, fault=reason[1])
        if port is None:
            raise entry.error("port", "is missing: a Service is named with its port")
        self.services.add((ref.namespace, ref.name))
        host = host_of(ref.name, ref.namespace)
        endpoints, fault = self.registry.find(host, port, {})
        fault = "" if fault == NOT_READY else fault
        if fault:
            self.remarks.append((entry.path, then(f"{host}: {fault}", "requests for it are refused")))
        policy = self.policies.find(ref.namespace, ref.name, self.registry.port_name(host, port))
        if policy is not None:
            fault = fault or policy.fault
        http2 = self.thing.kind == "GRPCRoute" or self.registry.http2(host, port)
        return Backend(name, endpoints, weight, policy.tls() if policy else None, fault=fault, http2=http2)

    def _fault(self, ref: Ref) -> tuple[str, str] | None:
        if (ref.group, ref.kind) != ("", "Service"):
            return "InvalidKind", f"{ref.group or 'core'}/{ref.kind} is no backend; Service is"
        if not self.world.permits(GROUP, self.thing.kind, self.thing.namespace, ref):
            return "RefNotPermitted", self.world.refused(self.thing.kind, self.thing.namespace, ref)
        if (ref.namespace, ref.name) not in self.world.services:
            return "BackendNotFound", f"{ref} does not exist{self.world.meant(ref)}"
        return None


def shown(backends: tuple[Backend, ...], client: str) -> tuple[Backend, ...]:
    """With a Gateway's own certificate (a Secret) for those that are spoken to by TLS."""
    return tuple(
        replace(each, tls=replace(each.tls, mode="MUTUAL", secret=client)) if client and each.tls else each
        for each in backends
    )


def parents(
    thing: Object,
    ours: Parents,
    world: World,
    faults: list[tuple[str, str]],
    refused: ConfigError | None,
    dropped: tuple[ConfigError, ...] = (),
) -> list[Parent]:
    """All parentRefs that are Gateways or ListenerSets of ours; a route that is refused attaches nowhere, and of one
    with ``dropped`` rules the rest does."""
    spec = thing.fields("spec")
    found = []
    for entry in spec.each("parentRefs"):
        spelt(entry, "group", "kind", "namespace", "name", "sectionName", "port")
        ref = Ref.read(entry, "Gateway", thing.namespace, GROUP)
        listeners = ours.get((ref.kind, ref.namespace, ref.name)) if ref.group == GROUP else None
        if listeners is None:
            continue
        if refused is None:
            made = _parent(thing, entry, hostnames(thing), listeners, world, faults)
            if dropped and made.attached:
                why = f"Dropped Rule: {'; '.join(map(str, dropped))}; what it matches is answered 500"
                made.conditions.set("PartiallyInvalid", True, "UnsupportedValue", why)
            found.append(made)
        else:
            conditions = Conditions(thing.generation)
            conditions.set("Accepted", False, "UnsupportedValue", str(refused))
            conditions.set("ResolvedRefs", not faults, *(faults[0] if faults else ("ResolvedRefs", "")))
            found.append(Parent(entry.data, entry.path, conditions, ()))
    return found


def hostnames(thing: Object) -> tuple[str, ...]:
    """The names that a route is for; ConfigError where one is none, or a TLSRoute has none."""
    spec = thing.fields("spec")
    spelt(spec, "parentRefs", "hostnames", "rules", "useDefaultGateways")
    names = spec.items("hostnames", _hostname)
    if thing.kind == "TLSRoute" and thing.version != "v1alpha2" and not names:
        raise spec.error("hostnames", f"{thing}: is missing: the names that the route is for")
    return names


def _parent(
    thing: Object,
    entry: Fields,
    names: tuple[str, ...],
    listeners: list[Listener],
    world: World,
    faults: list[tuple[str, str]],
) -> Parent:
    conditions, attached = Conditions(thing.generation), list[tuple[Listener, tuple[str, ...]]]()
    section, port = entry.text("sectionName"), entry.parsed("port", _port, None)
    meant = [one for one in listeners if section in ("", one.name) and port in (None, one.port)]
    allowed = [one for one in meant if thing.kind in one.kinds and one.admits(thing.namespace, world)]
    for one in allowed:
        shared = tuple(filter(None, (intersection(name, one.hostname) for name in names or (ANY,))))
        if shared or one.protocol in ("TCP", "UDP"):
            attached.append((one, shared))
            if thing not in one.routes:
                one.routes.append(thing)
    if attached:
        conditions.set("Accepted", True, "Accepted")
    elif allowed:
        wanted = ", ".join(one.hostname for one in allowed)
        conditions.set("Accepted", False, "NoMatchingListenerHostname", f"the listeners are for {wanted}")
    elif meant:
        why = f"no listener takes a {thing.kind} of namespace {thing.namespace}"
        conditions.set("Accepted", False, "NotAllowedByListeners", why)
    else:
        there = ", ".join(f"{one.name} ({one.port})" for one in listeners[:5])
        why = f"no listener has that sectionName and port; there are {there}" if there else _NO_LISTENER
        conditions.set("Accepted", False, "NoMatchingParent", why)
    if faults:
        conditions.set("ResolvedRefs", False, *faults[0])
    conditions.default("ResolvedRefs", True, "ResolvedRefs")
    return Parent(entry.data, entry.path, conditions, tuple(attached))


def _hostname(text: object) -> str:
    name = parse_hostname(text)
    if name == ANY or is_address(name):
        raise ValueError("expected a host name, perhaps with a wildcard as its first label; no address")
    return name


def _port(value: object) -> int | None:
    return None if value is None else parse_port(value)
