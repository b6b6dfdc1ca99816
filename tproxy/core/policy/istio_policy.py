"""Istio's AuthorizationPolicy: an object's spec becomes an ``Authorization``, or a ConfigError.

A sidecar reads the part below HTTP, a gateway all but what JWTs say.

Whatever this part does not have is refused, never skipped: a rule with one condition fewer lets more callers in. So are
values that could never match, since a DENY with one denies nobody.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from tproxy.core.address import parse_network
from tproxy.core.fields import ConfigError, Fields, parse_port, text_of
from tproxy.core.identity import SpiffeId, is_segment
from tproxy.core.policy.authorization import Action, Authorization, AuthorizationRule, Clause
from tproxy.core.policy.conditions import Attribute, Condition, Text, Value
from tproxy.core.policy.manifest import Manifest

T = TypeVar("T")
_SOURCE = ("requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks")
_OPERATION = ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
_ANY_LOCAL = "cluster.local"  # in principals Istio takes it for the mesh's own trust domain, whatever that is called


@dataclass(frozen=True, slots=True)
class Reach:
    """What one kind of reader can ask of a caller, besides ids, addresses and ports."""

    why: str  # a condition cannot be read
    targets: bool = False  # objects may aim at it by name (targetRefs)
    sources: tuple[tuple[str, str, Attribute], ...] = ()
    operations: tuple[tuple[str, str, Attribute], ...] = ()
    when: tuple[Attribute, ...] = ()


SIDECAR = Reach(
    "is a condition of HTTP or of a gateway, which this sidecar does not read; without it the rule would match more"
)
GATEWAY = Reach(
    "is a condition that this gateway does not read; without it the rule would match more",
    True,
    (("remoteIpBlocks", "notRemoteIpBlocks", Attribute.REMOTE_IP),),
    (
        ("hosts", "notHosts", Attribute.HOST),
        ("methods", "notMethods", Attribute.METHOD),
        ("paths", "notPaths", Attribute.PATH),
    ),
    (Attribute.REMOTE_IP, Attribute.SNI, Attribute.HEADER),
)
_WHEN = (Attribute.PRINCIPAL, Attribute.NAMESPACE, Attribute.SOURCE_IP, Attribute.TARGET_IP, Attribute.PORT)
_HEADER = re.compile(r"request\.headers\[([A-Za-z0-9!#$%&'*+.^_`|~-]+)\]")


@dataclass(frozen=True, slots=True)
class Names:
    """The trust domains that principals may name."""

    own: str
    aliases: tuple[str, ...] = ()
    federated: tuple[str, ...] = ()

    def principals(self, text: str) -> tuple[str, ...]:
        """The same principal under each name of our own trust domain, as Istio expands trustDomainAliases."""
        domain, *path = text.split("/")
        if len(path) != 4:
            return (text,)
        known = (self.own, *self.aliases)
        suffix = domain[1:] if domain.startswith("*") else None
        ours = domain in known or (suffix is not None and any(name.endswith(suffix) for name in known))
        if domain == _ANY_LOCAL and domain in self.federated:
            raise ValueError("means our own trust domain to Istio, but trust.federated has another one of this name")
        if not ours and domain != _ANY_LOCAL:
            return (text,)
        keeps = (suffix is not None and name.endswith(suffix) for name in known)
        named = (text if keep else "/".join((name, *path)) for keep, name in zip(keeps, known, strict=True))
        return tuple(dict.fromkeys(named))


def authorization(manifest: Manifest, names: Names, reach: Reach = SIDECAR) -> Authorization:
    """ConfigError names file, object, field and value."""
    spec = manifest.fields()
    for key in ("targetRef", "targetRefs"):
        if spec.raw(key) is not None and not reach.targets:
            raise spec.error(key, "aims at a gateway or a waypoint; a sidecar is selected by selector", spec.raw(key))
    if spec.raw("provider") is not None or spec.raw("action") == "CUSTOM":
        raise spec.error("action", "asks an external authorizer, which is not supported", spec.raw("action"))
    action = Action(spec.choice("action", Action.ALLOW, list(Action)))
    rules = tuple(_Reader(entry, manifest.namespace, action, names, reach).rule() for entry in spec.each("rules"))
    if action is not Action.ALLOW and not rules:
        raise spec.error("rules", f"is empty, so this {action} would never match; [{{}}] matches everyone")
    if action is Action.AUDIT and manifest.dry_run:
        raise spec.error("action", "decides nothing, so there is nothing to try without force", action.value)
    spec.finish()
    return Authorization(f"{manifest.namespace}/{manifest.name}", action, rules)


@dataclass(frozen=True, slots=True)
class _Reader:
    """One rule of one object."""

    fields: Fields
    namespace: str
    action: Action
    names: Names
    reach: Reach

    def rule(self) -> AuthorizationRule:
        """``from``, ``to`` and ``when``; each may be left out, none may be empty."""
        sources = tuple(self._source(_inside(entry, "source")) for entry in _some(self.fields, "from"))
        operations = tuple(self._operation(_inside(entry, "operation")) for entry in _some(self.fields, "to"))
        when = tuple(self._when(entry) for entry in _some(self.fields, "when"))
        self.fields.finish()
        return AuthorizationRule(sources, operations, when)

    def _source(self, source: Fields) -> Clause:
        more = self._more(source, self.reach.sources, _SOURCE)
        accounts = self._condition(source, "serviceAccounts", "notServiceAccounts", Attribute.ACCOUNT)
        named = self._condition(source, "principals", "notPrincipals", Attribute.PRINCIPAL)
        spaces = self._condition(source, "namespaces", "notNamespaces", Attribute.NAMESPACE)
        if accounts and (named or spaces):
            raise source.error("serviceAccounts", "cannot stand beside principals or namespaces, says Istio")
        blocks = self._condition(source, "ipBlocks", "notIpBlocks", Attribute.SOURCE_IP)
        return _clause(source, (*accounts, *named, *spaces, *blocks, *more))

    def _operation(self, operation: Fields) -> Clause:
        more = self._more(operation, self.reach.operations, _OPERATION)
        return _clause(operation, (*self._condition(operation, "ports", "notPorts", Attribute.PORT), *more))

    def _more(self, fields: Fields, pairs: Iterable[tuple[str, str, Attribute]], all_of_it: Iterable[str]) -> Clause:
        """What this reader can ask besides; ConfigError for the rest of what Istio knows here."""
        known = {key for *keys, _ in pairs for key in keys}
        for key in all_of_it:
            if key not in known and fields.raw(key) is not None:
                raise fields.error(key, self.reach.why, fields.raw(key))
        return tuple(each for key, other, attribute in pairs for each in self._condition(fields, key, other, attribute))

    def _when(self, entry: Fields) -> Condition:
        known = (*_WHEN, *self.reach.when)
        key, name = str(entry.raw("key", "")), ""
        if Attribute.HEADER in known and (found := _HEADER.fullmatch(key)):
            key, name = Attribute.HEADER.value, found[1].lower()
        elif key not in known or key == Attribute.HEADER:
            keys = [f"{each}[name]" if each is Attribute.HEADER else each.value for each in known]
            raise entry.error("key", f"{self.reach.why}. Known here: {', '.join(keys)}", key, keys)
        return _clause(entry, self._condition(entry, "values", "notValues", Attribute(key), name))[0]

    def _condition(self, fields: Fields, key: str, other: str, attribute: Attribute, name: str = "") -> Clause:
        """One condition, or none if neither list is there."""
        parse = self._parser(attribute)
        values, others = (
            tuple(value for found in _list(fields, name, parse) for value in found) for name in (key, other)
        )
        if not values and not others:
            return ()
        where = fields.name(key if values else other).removeprefix("spec.")
        lets_in = self.action is Action.ALLOW
        return (Condition(attribute, values, others, where, self.names.own, lets_in, name),)

    def _parser(self, attribute: Attribute) -> Callable[[Any], tuple[Value, ...]]:
        match attribute:
            case Attribute.PRINCIPAL:
                return text_of(lambda text: tuple(map(Text.parse, self.names.principals(_principal(text)))))
            case Attribute.NAMESPACE:
                return text_of(lambda text: (Text.parse(_without_slash(text)),))
            case Attribute.ACCOUNT:
                return text_of(lambda text: (Text.parse(self._account(text)),))
            case Attribute.SOURCE_IP | Attribute.TARGET_IP | Attribute.REMOTE_IP:
                return text_of(lambda text: (parse_network(text),))
            case Attribute.PORT:
                return lambda value: (parse_port(value),)
            case Attribute.HOST:
                return text_of(lambda text: (Text.parse(text.lower()),))
            case Attribute.PATH:
                return text_of(lambda text: (Text.parse(_path(text)),))
            case Attribute.METHOD | Attribute.HEADER | Attribute.SNI:
                return text_of(lambda text: (Text.parse(text),))

    def _account(self, text: str) -> str:
        """``name`` in the object's own namespace, or ``namespace/name``."""
        namespace, slash, name = text.rpartition("/")
        if not is_segment(name) or (slash and not is_segment(namespace)):
            raise ValueError("expected a service account, or namespace/account, without wildcards")
        return f"{namespace or self.namespace}/{name}"


def _some(fields: Fields, key: str) -> list[Fields]:
    found = fields.each(key)
    if not found and fields.raw(key) is not None:
        raise fields.error(key, "is empty; leave it out to mean any")
    return found


def _inside(entry: Fields, key: str) -> Fields:
    inner = entry.inner(key)
    entry.finish()
    return inner


def _clause(fields: Fields, conditions: Clause) -> Clause:
    fields.finish()
    if not conditions:
        raise ConfigError(fields.where, fields.path, "is empty; it would match everyone")
    return conditions


def _list(fields: Fields, key: str, parse: Callable[[Any], T]) -> tuple[T, ...]:
    value = fields.raw(key)
    if value is not None and not isinstance(value, list):
        raise fields.error(key, "expected a list", value)
    return fields.some(key, parse)


def _without_slash(text: str) -> str:
    if "/" in text:
        raise ValueError("a namespace has no slash")
    return text


def _path(text: str) -> str:
    if "{" in text:
        raise ValueError("templates ({*}) are not supported; * may stand once, at the start or at the end")
    if "?" in text:
        raise ValueError("paths are compared without their query; this would never match")
    return text


def _principal(text: str) -> str:
    if text.startswith("spiffe://"):
        raise ValueError("Istio writes principals without spiffe://; with it this would never match")
    if "*" not in text:
        try:
            SpiffeId.parse(f"spiffe://{text}")
        except ValueError:
            raise ValueError("expected trust-domain/ns/namespace/sa/account; this would never match") from None
    return text
