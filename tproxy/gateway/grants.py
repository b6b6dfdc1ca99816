"""Gateway API's references: what a name means, whether it may be meant from another namespace, whether it is there."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tproxy.core.fields import ConfigError, Fields
from tproxy.gateway.findings import Findings
from tproxy.gateway.objects import Object

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

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(slots=True)
class World:
    """What references may lead to."""

    secrets: dict[tuple[str, str], Object] = field(default_factory=dict)
    maps: dict[tuple[str, str], Object] = field(default_factory=dict)
    services: set[tuple[str, str]] = field(default_factory=set)
    namespaces: dict[str, Mapping[str, str]] = field(default_factory=dict)
    grants: list[tuple[str, set[tuple[str, str, str]], set[tuple[str, str, str]]]] = field(default_factory=list)

    @classmethod
    def of(cls, objects: Iterable[Object], findings: Findings) -> World:
        """Collect; a grant that cannot be read grants nothing."""
        made = cls()
        for thing in objects:
            match thing.group, thing.kind:
                case "", "Secret":
                    made.secrets[thing.key] = thing
                case "", "ConfigMap":
                    made.maps[thing.key] = thing
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

    def labels(self, namespace: str) -> dict[str, str]:
        """Of a namespace, its name among them, as the API server adds it."""
        return {"kubernetes.io/metadata.name": namespace, **self.namespaces.get(namespace, {})}

    def certificate_fault(self, ref: Ref) -> str:
        """Why a reference is no TLS Secret; its contents are never repeated."""
        if (ref.group, ref.kind) != ("", "Secret"):
            return f"{ref.kind} is not supported; Secret is"
        secret = self.secrets.get((ref.namespace, ref.name))
        if secret is None:
            return f"{ref} does not exist"
        return _pem_fault(ref, secret, "tls.crt") or _pem_fault(ref, secret, "tls.key")

    def authority_fault(self, ref: Ref) -> str:
        """Why a ConfigMap or Secret holds no certificates of authorities."""
        found = (self.maps if ref.kind == "ConfigMap" else self.secrets).get((ref.namespace, ref.name))
        return _pem_fault(ref, found, "ca.crt") if found is not None else f"{ref} does not exist"


def _pem_fault(ref: Ref, thing: Object, key: str) -> str:
    data = thing.body.get("data")
    text = str(data.get(key, "")) if isinstance(data, Mapping) else ""
    if thing.kind == "Secret":
        try:
            text = base64.b64decode(text, validate=True).decode("latin-1")
        except ValueError:
            return f"{ref}: {key} is not base64"
    return "" if "-----BEGIN " in text else f"{ref}: {key} is not PEM"


def _grant(thing: Object) -> tuple[str, set[tuple[str, str, str]], set[tuple[str, str, str]]]:
    spec = thing.fields("spec")
    sources = {(str(each.raw("group", "")), each.text("kind"), each.text("namespace")) for each in spec.each("from")}
    targets = {(str(each.raw("group", "")), each.text("kind"), each.text("name")) for each in spec.each("to")}
    return thing.namespace, sources, targets
