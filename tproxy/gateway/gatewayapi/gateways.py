"""Gateway API's Gateway and ListenerSet as a whole: addresses, what is wrong with them, their statuses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tproxy.core.address import parse_address
from tproxy.core.fields import ConfigError, Fields
from tproxy.gateway.findings import Findings, spelt
from tproxy.gateway.gatewayapi.conditions import Conditions
from tproxy.gateway.gatewayapi.conflicts import conflicts, overlaps, settle
from tproxy.gateway.gatewayapi.frontend import Frontend
from tproxy.gateway.gatewayapi.grants import GROUP, Ref, World
from tproxy.gateway.gatewayapi.listeners import Listener, read, selects
from tproxy.gateway.objects import Object
from tproxy.gateway.registry import Registry
from tproxy.gateway.site import Site


@dataclass(slots=True)
class Set:
    """A ListenerSet of one Gateway of ours."""

    thing: Object
    conditions: Conditions
    listeners: list[Listener] = field(default_factory=list)

    @property
    def attached(self) -> bool:
        """Whether its listeners count."""
        return self.conditions.holds("Accepted")

    def status(self) -> dict[str, Any]:
        """As it stands in the cluster."""
        return {
            "conditions": self.conditions.plain(),
            "listeners": [one.status() for one in self.listeners],
        }


@dataclass(slots=True)
class Served:
    """A Gateway of ours."""

    thing: Object
    conditions: Conditions
    addresses: tuple[str, ...] = ()  # where it binds; none: where all do
    bound: bool = True  # False: it is not accepted, or none of its addresses can be had
    reported: tuple[str, ...] = ()  # where clients reach it
    client: str = ""  # the Secret with its certificate towards backends, as namespace/name
    frontend: Frontend = field(default_factory=Frontend)
    own: list[Listener] = field(default_factory=list)
    sets: list[Set] = field(default_factory=list)

    @property
    def listeners(self) -> list[Listener]:
        """All, its ListenerSets' too."""
        return [*self.own, *(one for each in self.sets if each.attached for one in each.listeners)]

    def status(self) -> dict[str, Any]:
        """As it stands in the cluster."""
        addresses = [{"type": "IPAddress" if _is_ip(each) else "Hostname", "value": each} for each in self.reported]
        return {
            "conditions": self.conditions.plain(),
            "listeners": [one.status() for one in self.own],
            "addresses": addresses,
            "attachedListenerSets": sum(each.attached for each in self.sets),
        }


def gateway(thing: Object, sets: list[Object], world: World, registry: Registry, site: Site) -> Served:
    """All of a Gateway but its routes; ``finish`` comes next. ConfigError for what its CRD's schema refuses."""
    spec, made = thing.fields("spec"), Served(thing, Conditions(thing.generation))
    spelt(spec, "gatewayClassName", "listeners", "addresses", "infrastructure", "allowedListeners", "tls")
    _addresses(made, spec, site)
    if spec.inner("infrastructure").raw("parametersRef") is not None:
        made.conditions.set("Accepted", False, "InvalidParameters", "no kind of parameters is supported")
    tls = spec.inner("tls")
    made.frontend = Frontend.read(thing, tls.inner("frontend"), world)
    _client(made, tls.inner("backend"), world)
    made.own = read(thing, made.addresses, made.frontend, world, registry)
    allowed = spec.inner("allowedListeners").inner("namespaces")
    made.sets = [_set(each, made, allowed, world, registry) for each in sets]
    for one in made.own + [one for each in made.sets for one in each.listeners]:
        if any((address, one.port) in site.taken for address in made.addresses or ("",)):
            one.conditions.set("Accepted", False, "PortUnavailable", f"port {one.port} cannot be had")
    made.bound = made.bound and "Accepted" not in made.conditions.found  # only what is wrong has been said by now
    conflicts([made.own, *(each.listeners for each in made.sets if each.attached)])
    overlaps(made.listeners)
    settle(made.listeners)
    return made


def finish(made: Served) -> None:
    """What follows for the whole from its listeners, when it is known which of them have their ports."""
    for each in made.sets:
        _settle_set(each)
    _settle(made)


def refused(thing: Object, error: ConfigError) -> dict[str, Any]:
    """The status of a Gateway or ListenerSet that cannot be read."""
    conditions = Conditions(thing.generation)
    conditions.set("Accepted", False, "Invalid", str(error))
    conditions.set("Programmed", False, "Invalid", "it is not accepted")
    return {"conditions": conditions.plain()}


def _addresses(made: Served, spec: Fields, site: Site) -> None:
    bad: list[str] = []
    wanted: list[str] = []
    for each in spec.each("addresses"):
        kind, value = each.text("type", "IPAddress"), each.text("value")
        if kind != "IPAddress":
            made.conditions.set("Accepted", False, "UnsupportedAddress", f"{kind} is not supported; IPAddress is")
        elif value in site.published or (value and site.usable(value)):
            wanted.append(value)
        elif value:
            bad.append(value)
    if bad:
        message = f"{', '.join(bad)} can neither be bound here nor is it where this gateway is reached"
        made.conditions.set("Programmed", False, "AddressNotUsable", message)
    given = site.binds.get(f"{made.thing.namespace}/{made.thing.name}")
    made.addresses = tuple(each for each in wanted if each not in site.published) or ((given,) if given else ())
    made.reported = tuple(wanted) or (() if bad else site.published)
    made.bound = bool(wanted) or not bad


def _client(made: Served, backend: Fields, world: World) -> None:
    if backend.raw("clientCertificateRef") is None:
        return
    thing, ref = made.thing, Ref.read(backend.inner("clientCertificateRef"), "Secret", made.thing.namespace)
    if not world.permits(GROUP, "Gateway", thing.namespace, ref):
        made.conditions.set("ResolvedRefs", False, "RefNotPermitted", world.refused("Gateway", thing.namespace, ref))
    elif fault := world.certificate_fault(ref):
        made.conditions.set("ResolvedRefs", False, "InvalidClientCertificateRef", fault)
    else:
        made.client = f"{ref.namespace}/{ref.name}"


def _set(thing: Object, parent: Served, allowed: Fields, world: World, registry: Registry) -> Set:
    made = Set(thing, Conditions(thing.generation))
    if not _admits(allowed, thing.namespace, parent.thing.namespace, world):
        message = f"{parent.thing} does not allow ListenerSets of namespace {thing.namespace}"
        made.conditions.set("Accepted", False, "NotAllowed", message)
    elif "Accepted" in parent.conditions.found:  # only what is wrong has been said by now
        made.conditions.set("Accepted", False, "ParentNotAccepted", f"{parent.thing} is not accepted")
    else:
        try:
            spelt(thing.fields("spec"), "parentRef", "listeners")
            made.listeners = read(thing, parent.addresses, parent.frontend, world, registry)
            made.conditions.set("Accepted", True, "Accepted")
        except ConfigError as error:
            made.conditions.set("Accepted", False, "Invalid", str(error))
    return made


def _admits(allowed: Fields, namespace: str, gateways: str, world: World) -> bool:
    match allowed.choice("from", "None", ("None", "Same", "All", "Selector")):
        case "All":
            return True
        case "Same":
            return namespace == gateways
        case "Selector":
            return selects(allowed, world.labels(namespace))
        case _:
            return False


def _settle_set(each: Set) -> None:
    if not each.attached:
        accepted = each.conditions.found["Accepted"]
        each.conditions.set("Programmed", False, accepted["reason"], "it is not accepted")
        return
    good = [one for one in each.listeners if one.conditions.holds("Accepted")]
    if len(good) < len(each.listeners):
        each.conditions.set("Accepted", bool(good), "ListenersNotValid", "its listeners say why")
    served = any(one.serves for one in each.listeners)
    each.conditions.set("Programmed", served, "Programmed" if served else "ListenersNotValid")


def _settle(made: Served) -> None:
    conditions = made.conditions
    good = [one for one in made.own if one.conditions.holds("Accepted")]
    whole = len(good) == len(made.own)
    if conditions.holds("Accepted") or "Accepted" not in conditions.found:
        conditions.set("Accepted", bool(good) or whole, "Accepted" if whole else "ListenersNotValid")
    accepted = conditions.holds("Accepted")
    served = accepted and any(one.serves for one in made.listeners)
    conditions.default("Programmed", served, "Programmed" if served else "Invalid")
    conditions.default("ResolvedRefs", True, "ResolvedRefs")
    if made.frontend.insecure:
        message = "clients may come with a certificate that nobody vouches for, or without one"
        conditions.set("InsecureFrontendValidationMode", True, "ConfigurationChanged", message)
    if not accepted:
        for one in made.listeners:
            one.conditions.set("Programmed", False, "Invalid", f"{made.thing} is not accepted")


def warn(served: Mapping[tuple[str, str], Served], findings: Findings) -> None:
    """What statuses say that should be otherwise, for people who read files."""
    for made in served.values():
        for sentence in made.conditions.bad():
            findings.warn(made.thing, "spec", sentence)
        for each in made.sets:
            for sentence in [] if each.attached else each.conditions.bad():
                findings.warn(each.thing, "spec", sentence)
        for one in made.listeners:
            for sentence in one.conditions.bad():
                findings.warn(one.owner, one.path, sentence)


def unknown_class(thing: Object, name: str, classes: Iterable[Object], findings: Findings) -> None:
    """Files may hold no classes at all; if they hold some, a cluster would look for this one among them."""
    names = [each.name for each in classes]
    if names and name not in names:
        near = findings.hints.near(name, names, 0.6)
        findings.warn(thing, "spec.gatewayClassName", f"there is no GatewayClass {name or '(none)'}{near}")


def _is_ip(text: str) -> bool:
    try:
        parse_address(text)
    except ValueError:
        return False
    return True
