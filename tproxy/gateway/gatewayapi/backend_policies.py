"""Gateway API's BackendTLSPolicy: which Services are spoken to by TLS, whose certificates they must show.

Of several policies for one Service or port the oldest counts (GEP-713); one for a port goes before one for the Service.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tproxy.core.fields import ConfigError, Fields
from tproxy.core.hostnames import parse_hostname
from tproxy.core.routes import BackendTls
from tproxy.gateway.findings import Findings, spelt
from tproxy.gateway.gatewayapi.conditions import CONTROLLER, Conditions
from tproxy.gateway.gatewayapi.grants import GROUP, Ref, World
from tproxy.gateway.objects import Object

_MOST = 16  # ancestors in a status (policy_types.go)
_Target = tuple[str, str, str]  # a Service's namespace and name, a port's name or nothing


@dataclass(slots=True)
class Policy:
    """One policy, and the Gateways whose routes lead to what it is for."""

    thing: Object
    conditions: Conditions
    hostname: str = ""  # SNI, and the name in the backend's certificate where no other is demanded
    authorities: tuple[Ref, ...] = ()  # ConfigMaps or Secrets with ``ca.crt``; none: the system's
    names: tuple[str, ...] = ()  # one of them must stand in the certificate: DNS names and URIs
    ancestors: list[tuple[str, str]] = field(default_factory=list)

    @property
    def fault(self) -> str:
        """Why nobody can be spoken to under it."""
        if self.conditions.holds("Accepted"):
            return ""
        return f"{self.thing}: {'; '.join(self.conditions.bad())}"

    def tls(self) -> BackendTls:
        """As a handshake wants it; where other names are demanded the host name is SNI only (BackendTLSPolicy)."""
        authorities = tuple(ref.material for ref in self.authorities)
        return BackendTls("SIMPLE", self.hostname, self.names or (self.hostname,), authorities, fault=self.fault)

    def status(self) -> dict[str, Any]:
        """As it stands in the cluster."""
        return {
            "ancestors": [
                {
                    "ancestorRef": {"group": GROUP, "kind": "Gateway", "namespace": namespace, "name": name},
                    "controllerName": CONTROLLER,
                    "conditions": self.conditions.plain(),
                }
                for namespace, name in self.ancestors[:_MOST]
            ]
        }


@dataclass(slots=True)
class Policies:
    """All of them, the oldest first."""

    every: list[Policy] = field(default_factory=list)
    targets: dict[_Target, list[Policy]] = field(default_factory=dict)

    @classmethod
    def of(cls, things: Iterable[Object], world: World, findings: Findings) -> Policies:
        """Read; one that cannot be read counts still: what it is for is not spoken to in plaintext."""
        made = cls()
        for thing in things:
            try:
                made._add(thing, world, findings)
            except ConfigError as error:
                findings.error(error)
        return made

    def _add(self, thing: Object, world: World, findings: Findings) -> None:
        spec, policy = thing.fields("spec"), Policy(thing, Conditions(thing.generation))
        targets = []
        for each in spec.each("targetRefs"):
            try:
                targets.append(_target(thing, each))
            except ConfigError as error:  # for the others it counts
                findings.error(error)
        try:
            _read(policy, spec.inner("validation"), world)
        except ConfigError as error:
            findings.error(error)
            policy.conditions.set("Accepted", False, "Invalid", str(error))
        lost = [target for target in targets if self.targets.setdefault(target, [])]
        if lost and len(lost) == len(targets):
            message = f"{self.targets[lost[0]][0].thing} is older and is for {'/'.join(lost[0]).rstrip('/')}, too"
            policy.conditions.set("Accepted", False, "Conflicted", message)
        if targets and not any(target[:2] in world.services for target in targets):
            policy.conditions.set("Accepted", False, "TargetNotFound", "there is no such Service")
        for target in targets:
            self.targets[target].append(policy)
        policy.conditions.default("Accepted", True, "Accepted")
        policy.conditions.default("ResolvedRefs", True, "ResolvedRefs")
        for sentence in policy.conditions.bad():
            findings.warn(thing, "spec", sentence)
        self.every.append(policy)

    def find(self, namespace: str, name: str, port: str) -> Policy | None:
        """What counts for a Service's port."""
        found = self.targets.get((namespace, name, port)) or self.targets.get((namespace, name, ""))
        return found[0] if found else None

    def leads(self, gateway: tuple[str, str], service: tuple[str, str]) -> None:
        """A route of a Gateway leads to a Service."""
        for target, policies in self.targets.items():
            if target[:2] == service:
                for policy in policies:
                    if gateway not in policy.ancestors:
                        policy.ancestors.append(gateway)


def _target(thing: Object, each: Fields) -> _Target:
    spelt(each, "group", "kind", "name", "sectionName")
    ref = Ref.read(each, "Service", thing.namespace)
    if (ref.group, ref.kind) != ("", "Service") or ref.namespace != thing.namespace:
        raise each.error("kind", "only Services of its own namespace can be meant", f"{ref.group}/{ref.kind}")
    return thing.namespace, ref.name, each.text("sectionName")


def _read(policy: Policy, fields: Fields, world: World) -> None:
    policy.hostname = fields.parsed("hostname", parse_hostname, None)
    policy.names = tuple(
        each.text("uri") if each.text("type") == "URI" else each.parsed("hostname", parse_hostname, None)
        for each in fields.each("subjectAltNames")
    )
    system = fields.choice("wellKnownCACertificates", "", ("", "System"))
    refs = [Ref.read(each, "ConfigMap", policy.thing.namespace) for each in fields.each("caCertificateRefs")]
    fields.finish()
    if bool(refs) is bool(system):
        raise fields.error("caCertificateRefs", "is needed, or wellKnownCACertificates, and not both")
    good = []
    for ref in refs:
        kind, why = _fault(ref, world)
        if why:
            policy.conditions.set("ResolvedRefs", False, kind, why)
        else:
            good.append(ref)
    policy.authorities = tuple(good)
    if refs and not good:
        policy.conditions.set("Accepted", False, "NoValidCACertificate", "no caCertificateRef can be used")


def _fault(ref: Ref, world: World) -> tuple[str, str]:
    if (ref.group, ref.kind) not in (("", "ConfigMap"), ("", "Secret")):
        return "InvalidKind", f"{ref.kind} is not supported; ConfigMap and Secret are"
    return "InvalidCACertificateRef", world.authority_fault(ref)
