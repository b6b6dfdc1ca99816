"""Istio's AuthorizationPolicy, its part below HTTP: an object's spec becomes an ``Authorization``, or a ConfigError.

Whatever this part does not have is refused, never skipped: a rule with one condition fewer lets more callers in. So are
values that could never match, since a DENY with one denies nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from tproxy.core.address import parse_network
from tproxy.core.fields import ConfigError, Fields, parse_port, text_of
from tproxy.core.identity import SpiffeId, is_segment
from tproxy.core.policy.authorization import Action, Authorization, AuthorizationRule, Clause
from tproxy.core.policy.conditions import Attribute, Condition, Text, Value
from tproxy.core.policy.manifest import Manifest

T = TypeVar("T")
_HTTP = "is a condition of HTTP or of a gateway, which this sidecar does not read; without it the rule would match more"
_SOURCE = ("requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks")
_OPERATION = ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
_ANY_LOCAL = "cluster.local"  # in principals Istio takes it for the mesh's own trust domain, whatever that is called


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


def authorization(manifest: Manifest, names: Names) -> Authorization:
    """ConfigError names file, object, field and value."""
    spec = manifest.fields()
    for key in ("targetRef", "targetRefs"):
        if spec.raw(key) is not None:
            raise spec.error(key, "aims at a gateway or a waypoint; a sidecar is selected by selector", spec.raw(key))
    if spec.raw("provider") is not None or spec.raw("action") == "CUSTOM":
        raise spec.error("action", "asks an external authorizer, which this sidecar cannot", spec.raw("action"))
    action = Action(spec.choice("action", Action.ALLOW, list(Action)))
    rules = tuple(_Reader(entry, manifest.namespace, action, names).rule() for entry in spec.each("rules"))
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

    def rule(self) -> AuthorizationRule:
        """``from``, ``to`` and ``when``; each may be left out, none may be empty."""
        sources = tuple(self._source(_inside(entry, "source")) for entry in _some(self.fields, "from"))
        operations = tuple(self._operation(_inside(entry, "operation")) for entry in _some(self.fields, "to"))
        when = tuple(self._when(entry) for entry in _some(self.fields, "when"))
        self.fields.finish()
        return AuthorizationRule(sources, operations, when)

    def _source(self, source: Fields) -> Clause:
        _refuse(source, _SOURCE)
        accounts = self._condition(source, "serviceAccounts", "notServiceAccounts", Attribute.ACCOUNT)
        named = self._condition(source, "principals", "notPrincipals", Attribute.PRINCIPAL)
        spaces = self._condition(source, "namespaces", "notNamespaces", Attribute.NAMESPACE)
        if accounts and (named or spaces):
            raise source.error("serviceAccounts", "cannot stand beside principals or namespaces, says Istio")
        blocks = self._condition(source, "ipBlocks", "notIpBlocks", Attribute.SOURCE_IP)
        return _clause(source, (*accounts, *named, *spaces, *blocks))

    def _operation(self, operation: Fields) -> Clause:
        _refuse(operation, _OPERATION)
        return _clause(operation, self._condition(operation, "ports", "notPorts", Attribute.PORT))

    def _when(self, entry: Fields) -> Condition:
        keys = [each.value for each in Attribute if each is not Attribute.ACCOUNT]
        key = entry.raw("key", "")
        if key not in keys:
            raise entry.error("key", f"{_HTTP}. Known here: {', '.join(keys)}", key, keys)
        found = _clause(entry, self._condition(entry, "values", "notValues", Attribute(key)))
        return found[0]

    def _condition(self, fields: Fields, key: str, other: str, attribute: Attribute) -> Clause:
        """One condition, or none if neither list is there."""
        parse = self._parser(attribute)
        values, others = (
            tuple(value for found in _list(fields, name, parse) for value in found) for name in (key, other)
        )
        if not values and not others:
            return ()
        where = fields.name(key if values else other).removeprefix("spec.")
        return (Condition(attribute, values, others, where, self.names.own, self.action is Action.ALLOW),)

    def _parser(self, attribute: Attribute) -> Callable[[Any], tuple[Value, ...]]:
        match attribute:
            case Attribute.PRINCIPAL:
                return text_of(lambda text: tuple(map(Text.parse, self.names.principals(_principal(text)))))
            case Attribute.NAMESPACE:
                return text_of(lambda text: (Text.parse(_without_slash(text)),))
            case Attribute.ACCOUNT:
                return text_of(lambda text: (Text.parse(self._account(text)),))
            case Attribute.SOURCE_IP | Attribute.TARGET_IP:
                return text_of(lambda text: (parse_network(text),))
            case Attribute.PORT:
                return lambda value: (parse_port(value),)

    def _account(self, text: str) -> str:
        """``name`` in the object's own namespace, or ``namespace/name``."""
        namespace, slash, name = text.rpartition("/")
        if not is_segment(name) or (slash and not is_segment(namespace)):
            raise ValueError("expected a service account, or namespace/account, without wildcards")
        return f"{namespace or self.namespace}/{name}"


def _refuse(fields: Fields, unsupported: Collection[str]) -> None:
    for key in unsupported:
        if fields.raw(key) is not None:
            raise fields.error(key, _HTTP, fields.raw(key))


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


def _principal(text: str) -> str:
    if text.startswith("spiffe://"):
        raise ValueError("Istio writes principals without spiffe://; with it this would never match")
    if "*" not in text:
        try:
            SpiffeId.parse(f"spiffe://{text}")
        except ValueError:
            raise ValueError("expected trust-domain/ns/namespace/sa/account; this would never match") from None
    return text
