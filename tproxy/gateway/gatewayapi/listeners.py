"""Gateway API's Gateway: its listeners, what routes they take, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tproxy.core.fields import Fields, parse_port
from tproxy.core.hostnames import ANY, parse_hostname
from tproxy.core.routes import Route, ServerTls, TlsMode
from tproxy.gateway.acme import acme_route
from tproxy.gateway.findings import spelt
from tproxy.gateway.gatewayapi.conditions import Conditions
from tproxy.gateway.gatewayapi.frontend import Clients, Frontend
from tproxy.gateway.gatewayapi.grants import GROUP, Ref, World
from tproxy.gateway.objects import Object
from tproxy.gateway.registry import Registry

KINDS = {
    "HTTP": ("HTTPRoute", "GRPCRoute"),
    "HTTPS": ("HTTPRoute", "GRPCRoute"),
    "TLS": ("TLSRoute",),
    "TCP": ("TCPRoute",),
    "UDP": ("UDPRoute",),
}
# what can share a port; HTTPS and TLS are told apart by name, which users want (section 6 of the reference, row 7)
FAMILY = {"HTTP": "HTTP", "HTTPS": "TLS", "TLS": "TLS", "TCP": "TCP", "UDP": "UDP"}


@dataclass(slots=True)
class Listener:
    """One listener of one Gateway or ListenerSet."""

    owner: Object
    path: str
    name: str
    port: int
    protocol: str
    hostname: str  # * where none is given
    addresses: tuple[str, ...]  # where it binds; none: where all do
    kinds: tuple[str, ...]
    namespaces: Fields
    tls: ServerTls | None
    conditions: Conditions
    acme: Route | None
    routes: list[Object] = field(default_factory=list)

    @property
    def title(self) -> str:
        """As it stands in records."""
        return f"{self.owner} {self.name}"

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
                return namespace == self.owner.namespace
            case "Selector":
                return selects(self.namespaces, world.labels(namespace))
            case _:
                return False

    def status(self) -> dict[str, Any]:
        """As it stands in its owner's status."""
        kinds = [{"group": GROUP, "kind": kind} for kind in self.kinds]
        found = {"name": self.name, "attachedRoutes": len(self.routes), "supportedKinds": kinds}
        return {**found, "conditions": self.conditions.plain()}


def selects(namespaces: Fields, labels: dict[str, str]) -> bool:
    """By a label selector: an empty one selects everything, none selects nothing (metav1.LabelSelectorAsSelector)."""
    if namespaces.raw("selector") is None:
        return False
    selector = namespaces.inner("selector")
    wanted = {str(key): str(value) for key, value in selector.inner("matchLabels").data.items()}
    found = [wanted.items() <= labels.items()]
    for each in selector.each("matchExpressions"):
        key, values = each.text("key"), each.items("values", str)
        operator = each.choice("operator", "In", ("In", "NotIn", "Exists", "DoesNotExist"))
        each.finish()
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        found.append(holds[operator])
    selector.finish()
    return all(found)


def _namespaces(allowed: Fields) -> Fields:
    """Whose routes may attach; ConfigError for what would be skipped where it is asked."""
    namespaces = allowed.inner("namespaces")
    namespaces.raw("from")
    selects(namespaces, {})
    namespaces.finish()
    allowed.raw("kinds")
    allowed.finish()
    return namespaces


def read(
    thing: Object, addresses: tuple[str, ...], frontend: Frontend, world: World, registry: Registry
) -> list[Listener]:
    """The listeners of an object with what is wrong in each. ConfigError for what the CRD's schema refuses."""
    spec, acme = thing.fields("spec"), acme_route(thing, registry)
    found = [_listener(thing, entry, addresses, frontend, acme, world) for entry in spec.each("listeners")]
    for index, listener in enumerate(found):
        if listener.name in [other.name for other in found[:index]]:
            raise spec.error(f"listeners[{index}].name", "stands here twice", listener.name)
    return found


def _listener(
    thing: Object, entry: Fields, addresses: tuple[str, ...], frontend: Frontend, acme: Route | None, world: World
) -> Listener:
    conditions = Conditions(thing.generation)
    protocol = entry.text("protocol")
    if entry.raw("port") is None:
        raise entry.error("port", "is missing: a number from 1 to 65535")
    if protocol not in KINDS:
        conditions.set("Accepted", False, "UnsupportedProtocol", f"{protocol}; supported are {', '.join(KINDS)}")
    allowed, port = entry.inner("allowedRoutes"), entry.parsed("port", parse_port, None)
    made = Listener(
        owner=thing,
        path=entry.path,
        name=entry.text("name"),
        port=port,
        protocol=protocol,
        hostname=entry.parsed("hostname", parse_hostname, None) if entry.raw("hostname") else ANY,
        addresses=addresses,
        kinds=_kinds(allowed, protocol, conditions),
        namespaces=_namespaces(allowed),
        tls=_tls(thing, entry, frontend.of(port), conditions, world),
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
    thing: Object, entry: Fields, clients: Clients | None, conditions: Conditions, world: World
) -> ServerTls | None:
    tls, protocol = entry.inner("tls"), entry.text("protocol")
    mode = tls.choice("mode", "Terminate", ("Terminate", "Passthrough"))
    tls.raw("options")
    named = tls.each("certificateRefs")
    for each in named:
        spelt(each, "group", "kind", "namespace", "name")
    refs = [Ref.read(each, "Secret", thing.namespace) for each in named]
    if tls.raw("frontendValidation") is not None:  # v1.1 to v1.3; it stands in the Gateway's tls now
        clients = Clients.read(thing, tls.inner("frontendValidation"), world)
    tls.finish()
    if protocol not in ("HTTPS", "TLS"):
        if entry.raw("tls") is not None and protocol in KINDS:
            raise entry.error("tls", f"must not be set with protocol {protocol}")
        return None
    if mode == "Passthrough" and protocol == "HTTPS":
        raise tls.error("mode", "must be Terminate with protocol HTTPS", mode)
    if mode == "Passthrough":
        return ServerTls(TlsMode.PASSTHROUGH)
    if not refs:
        conditions.set("ResolvedRefs", False, "InvalidCertificateRef", "there is no certificateRef")
    for ref in refs:
        if not world.permits(GROUP, thing.kind, thing.namespace, ref):
            conditions.set("ResolvedRefs", False, "RefNotPermitted", world.refused(thing.kind, thing.namespace, ref))
        elif fault := world.certificate_fault(ref):
            conditions.set("ResolvedRefs", False, "InvalidCertificateRef", fault)
    if clients is not None and clients.faults:
        conditions.set("ResolvedRefs", False, *clients.faults[0])
        if not clients.authorities:
            conditions.set("Accepted", False, "NoValidCACertificate", clients.faults[0][1])
    secrets = tuple(f"{ref.namespace}/{ref.name}" for ref in refs)
    return clients.tls(secrets) if clients is not None else ServerTls(TlsMode.TERMINATE, secrets)
