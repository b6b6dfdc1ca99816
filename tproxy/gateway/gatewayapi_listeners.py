"""Gateway API's Gateway: its listeners, what routes they take, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tproxy.core.config import parse_port
from tproxy.core.fields import Fields
from tproxy.core.hostnames import ANY, parse_hostname
from tproxy.core.routes import Route, ServerTls, TlsMode
from tproxy.gateway.acme import acme_route
from tproxy.gateway.conditions import Conditions
from tproxy.gateway.grants import GROUP, Ref, World
from tproxy.gateway.objects import Object
from tproxy.gateway.registry import Registry
from tproxy.gateway.secrets import Vault

KINDS = {
    "HTTP": ("HTTPRoute", "GRPCRoute"),
    "HTTPS": ("HTTPRoute", "GRPCRoute"),
    "TLS": ("TLSRoute",),
    "TCP": ("TCPRoute",),
}
# what can share a port; HTTPS and TLS are told apart by name, which users want (section 6 of the reference, row 7)
FAMILY = {"HTTP": "HTTP", "HTTPS": "TLS", "TLS": "TLS", "TCP": "TCP"}


@dataclass(slots=True)
class Listener:
    """One listener of one Gateway."""

    gateway: Object
    path: str
    name: str
    port: int
    protocol: str
    hostname: str  # * where none is given
    address: str
    kinds: tuple[str, ...]
    namespaces: Fields
    tls: ServerTls | None
    conditions: Conditions
    acme: Route | None
    routes: list[Object] = field(default_factory=list)

    @property
    def title(self) -> str:
        """As it stands in records."""
        return f"{self.gateway} {self.name}"

    @property
    def serves(self) -> bool:
        """Whether it carries what it is asked for."""
        return self.conditions.holds("Programmed")

    @property
    def binds(self) -> bool:
        """Whether its port is opened: a TLS name without its certificate is refused, not left to a wider listener."""
        return self.serves or (self.conditions.holds("Accepted") and FAMILY[self.protocol] == "TLS")

    def admits(self, namespace: str, world: World) -> bool:
        """Whether routes of a namespace may attach."""
        match self.namespaces.choice("from", "Same", ("Same", "All", "Selector", "None")):
            case "All":
                return True
            case "Same":
                return namespace == self.gateway.namespace
            case "Selector":
                return selects(self.namespaces.inner("selector"), world.labels(namespace))
            case _:
                return False

    def status(self) -> dict[str, Any]:
        """As it stands in the Gateway's status."""
        kinds = [{"group": GROUP, "kind": kind} for kind in self.kinds]
        found = {"name": self.name, "attachedRoutes": len(self.routes), "supportedKinds": kinds}
        return {**found, "conditions": self.conditions.plain()}


def selects(selector: Fields, labels: dict[str, str]) -> bool:
    """A label selector; an empty one selects everything."""
    wanted = {str(key): str(value) for key, value in selector.inner("matchLabels").data.items()}
    if not wanted.items() <= labels.items():
        return False
    for each in selector.each("matchExpressions"):
        key, values = each.text("key"), each.items("values", str)
        operator = each.choice("operator", "In", ("In", "NotIn", "Exists", "DoesNotExist"))
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not holds[operator]:
            return False
    return True


def read(thing: Object, world: World, registry: Registry, vault: Vault) -> list[Listener]:
    """The listeners of a Gateway with what is wrong in each. ConfigError for what the CRD's schema refuses."""
    spec = thing.fields("spec")
    addresses = [each.text("value") for each in spec.each("addresses") if each.text("type", "IPAddress") == "IPAddress"]
    address, acme = addresses[0] if addresses else "", acme_route(thing, registry)
    found = [_listener(thing, entry, address, acme, world, vault) for entry in spec.each("listeners")]
    for index, listener in enumerate(found):
        if listener.name in [other.name for other in found[:index]]:
            raise spec.error(f"listeners[{index}].name", "stands here twice", listener.name)
    return found


def _listener(thing: Object, entry: Fields, address: str, acme: Route | None, world: World, vault: Vault) -> Listener:
    conditions = Conditions(thing.generation)
    protocol = entry.text("protocol")
    if entry.raw("port") is None:
        raise entry.error("port", "is missing: a number from 1 to 65535")
    if protocol not in KINDS:
        conditions.set("Accepted", False, "UnsupportedProtocol", f"{protocol}; supported are {', '.join(KINDS)}")
    allowed = entry.inner("allowedRoutes")
    made = Listener(
        gateway=thing,
        path=entry.path,
        name=entry.text("name"),
        port=entry.parsed("port", parse_port, None),
        protocol=protocol,
        hostname=entry.parsed("hostname", parse_hostname, None) if entry.raw("hostname") else ANY,
        address=address,
        kinds=_kinds(allowed, protocol, conditions),
        namespaces=allowed.inner("namespaces"),
        tls=_tls(thing, entry, protocol, conditions, world, vault),
        conditions=conditions,
        acme=acme,
    )
    entry.finish()
    return made


def _kinds(allowed: Fields, protocol: str, conditions: Conditions) -> tuple[str, ...]:
    able = KINDS.get(protocol, ())
    asked = [(str(each.raw("group", GROUP)), each.text("kind")) for each in allowed.each("kinds")]
    wrong = [kind for group, kind in asked if group != GROUP or kind not in able]
    if wrong:
        message = f"{', '.join(wrong)} cannot attach to {protocol}; {', '.join(able) or 'nothing'} can"
        conditions.set("ResolvedRefs", False, "InvalidRouteKinds", message)
    return tuple(kind for group, kind in asked if group == GROUP and kind in able) if asked else able


def _tls(
    thing: Object, entry: Fields, protocol: str, conditions: Conditions, world: World, vault: Vault
) -> ServerTls | None:
    tls = entry.inner("tls")
    mode = tls.choice("mode", "Terminate", ("Terminate", "Passthrough"))
    for key in ("options", "frontendValidation"):
        tls.raw(key)
    refs = [Ref.read(each, "Secret", thing.namespace) for each in tls.each("certificateRefs")]
    tls.finish()
    if protocol not in ("HTTPS", "TLS"):
        if entry.raw("tls") is not None and protocol in KINDS:
            raise entry.error("tls", f"must not be set with protocol {protocol}")
        return None
    if mode == "Passthrough" and protocol == "HTTPS":
        raise tls.error("mode", "must be Terminate with protocol HTTPS", mode)
    if mode == "Passthrough":
        return ServerTls(TlsMode.PASSTHROUGH)
    if protocol == "TLS":
        conditions.set("Accepted", False, "UnsupportedValue", "TLS with mode Terminate is not supported yet")
    if not refs:
        conditions.set("ResolvedRefs", False, "InvalidCertificateRef", "there is no certificateRef")
    for ref in refs:
        if not world.permits(GROUP, "Gateway", thing.namespace, ref):
            conditions.set("ResolvedRefs", False, "RefNotPermitted", f"no ReferenceGrant permits {ref}")
        elif fault := _certificate_fault(ref, vault):
            conditions.set("ResolvedRefs", False, "InvalidCertificateRef", fault)
    return ServerTls(TlsMode.TERMINATE, tuple(f"{ref.namespace}/{ref.name}" for ref in refs))


def _certificate_fault(ref: Ref, vault: Vault) -> str:
    if (ref.group, ref.kind) != ("", "Secret"):
        return f"{ref.kind} is not supported; Secret is"
    return vault.fault(f"{ref.namespace}/{ref.name}")


def conflicts(listeners: Iterable[Listener]) -> None:
    """Who cannot share a port within a Gateway: neither wins."""
    found = list(listeners)
    for one in found:
        for other in found:
            if other is one or other.port != one.port or one.protocol not in FAMILY or other.protocol not in FAMILY:
                continue
            if FAMILY[one.protocol] != FAMILY[other.protocol]:
                _conflict(one, "ProtocolConflict", other)
            elif one.hostname == other.hostname or one.protocol == "TCP":
                _conflict(one, "HostnameConflict", other)


def _conflict(one: Listener, reason: str, other: Listener) -> None:
    message = f"port {one.port} is also {other.protocol} {other.hostname} by listener {other.name}"
    one.conditions.set("Accepted", False, reason, message)
    one.conditions.set("Conflicted", True, reason, message)


def settle(listeners: Iterable[Listener]) -> None:
    """What has not been said is well."""
    for one in listeners:
        conditions = one.conditions
        conditions.default("Accepted", True, "Accepted")
        conditions.default("Conflicted", False, "NoConflicts")
        conditions.default("ResolvedRefs", True, "ResolvedRefs")
        good = conditions.holds("Accepted") and (conditions.holds("ResolvedRefs") or _some(one))
        conditions.set("Programmed", good, "Programmed" if good else "Invalid")


def _some(one: Listener) -> bool:
    """Unknown route kinds beside known ones leave a listener usable; a missing certificate does not."""
    return one.conditions.found["ResolvedRefs"]["reason"] == "InvalidRouteKinds" and bool(one.kinds)
