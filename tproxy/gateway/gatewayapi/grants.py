"""Gateway API's references: what a name means, whether it may be meant from another namespace, whether it is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tproxy.core.fields import ConfigError, Fields
from tproxy.gateway.findings import Findings, Hints, spelt
from tproxy.gateway.objects import Object
from tproxy.gateway.secrets import Vault

GROUP = "gateway.networking.k8s.io"


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to an object."""

    group: str
    kind: str
    namespace: str
    name: str

    @classmethod
    def read(cls, fields: Fields, kind: str, namespace: str, group: str = "") -> Ref:
        """With its defaults."""
        if not (name := fields.text("name")):
            raise fields.error("name", "is missing")
        given = fields.raw("group", group)
        where = fields.text("namespace") or namespace
        return cls(str(given), fields.text("kind", kind), where, name)

    @property
    def material(self) -> str:
        """A Secret or ConfigMap, as the vault names it."""
        return f"{'configmap ' if self.kind == 'ConfigMap' else ''}{self.namespace}/{self.name}"

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(slots=True)
class World:
    """What references may lead to."""

    vault: Vault
    hints: Hints
    services: set[tuple[str, str]] = field(default_factory=set)
    names: dict[str, list[str]] = field(default_factory=dict)  # of services by namespace, made when asked for
    namespaces: dict[str, Mapping[str, str]] = field(default_factory=dict)
    grants: list[tuple[str, set[tuple[str, str, str]], set[tuple[str, str, str]]]] = field(default_factory=list)

    @classmethod
    def of(cls, objects: Iterable[Object], findings: Findings, vault: Vault) -> World:
        """Collect; a grant that cannot be read grants nothing."""
        made = cls(vault, findings.hints)
        for thing in objects:
            match thing.group, thing.kind:
                case "", "Service":
                    made.services.add(thing.key)
                case "", "Namespace":
                    made.namespaces[thing.name] = thing.labels
                case group, "ReferenceGrant" if group == GROUP:
                    try:
                        made.grants.append(_grant(thing))
                    except ConfigError as error:
                        findings.error(error)
        return made

    def permits(self, group: str, kind: str, namespace: str, to: Ref) -> bool:
        """Whether an object there may refer to ``to``: in its own namespace always, else where a grant says so."""
        if namespace == to.namespace:
            return True
        return any(
            where == to.namespace
            and (group, kind, namespace) in sources
            and not {(to.group, to.kind, ""), (to.group, to.kind, to.name)}.isdisjoint(targets)
            for where, sources, targets in self.grants
        )

    def refused(self, kind: str, namespace: str, to: Ref) -> str:
        """What is missing where ``permits`` says no."""
        return f"no ReferenceGrant permits {to}: none in {to.namespace} is from {kind} of {namespace} to {to.kind}"

    def meant(self, ref: Ref) -> str:
        """The Service of that namespace which has nearly this name."""
        if not self.names:
            for namespace, name in self.services:
                self.names.setdefault(namespace, []).append(name)
        return self.hints.near(ref.name, self.names.get(ref.namespace, ()), 0.6)

    def labels(self, namespace: str) -> dict[str, str]:
        """Of a namespace, its name among them, as the API server adds it."""
        return {"kubernetes.io/metadata.name": namespace, **self.namespaces.get(namespace, {})}

    def certificate_fault(self, ref: Ref) -> str:
        """Why a reference is no TLS Secret; its contents are never repeated."""
        if (ref.group, ref.kind) != ("", "Secret"):
            return f"{ref.kind} is not supported; Secret is"
        return self.vault.fault(f"{ref.namespace}/{ref.name}")

    def authority_fault(self, ref: Ref) -> str:
        """Why a ConfigMap or Secret holds no certificates of authorities."""
        return self.vault.ca_fault(ref.material)


def _grant(thing: Object) -> tuple[str, set[tuple[str, str, str]], set[tuple[str, str, str]]]:
    spec = thing.fields("spec")
    spelt(spec, "from", "to")
    for each in spec.each("from"):
        spelt(each, "group", "kind", "namespace")
    for each in spec.each("to"):
        spelt(each, "group", "kind", "name")
    sources = {(str(each.raw("group", "")), each.text("kind"), each.text("namespace")) for each in spec.each("from")}
    targets = {(str(each.raw("group", "")), each.text("kind"), each.text("name")) for each in spec.each("to")}
    return thing.namespace, sources, targets
