"""From objects to the table that is served, whichever dialect they speak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tproxy.core.fields import ConfigError
from tproxy.core.routes import Table
from tproxy.gateway.findings import Finding, Findings
from tproxy.gateway.gatewayapi import dialect as gatewayapi
from tproxy.gateway.istio import dialect as istio
from tproxy.gateway.istio.telemetry import access_log
from tproxy.gateway.objects import Object
from tproxy.gateway.policies import Pod, guards
from tproxy.gateway.registry import Registry
from tproxy.gateway.secrets import Material, Vault
from tproxy.gateway.site import ANYWHERE, Site
from tproxy.gateway.strangers import strangers


@dataclass(frozen=True, slots=True)
class Loaded:
    """A table, and what is to be said about its sources."""

    table: Table
    findings: tuple[Finding, ...]
    statuses: gatewayapi.Statuses
    material: Mapping[str, Material] = field(default_factory=dict, repr=False)

    @property
    def errors(self) -> list[Finding]:
        """Those with which it must not be served."""
        return [finding for finding in self.findings if finding.level == "error"]


def compile_table(
    objects: Iterable[Object],
    faults: Iterable[ConfigError],
    labels: Mapping[str, str],
    site: Site = ANYWHERE,
) -> Loaded:
    """Everything that can be used, for a gateway pod with these labels (none: of any)."""
    findings = Findings()
    things = _unique(objects, findings)
    for error in faults:
        findings.error(error)
    strangers(things, site.secrets.namespace, labels, findings)
    registry, vault = Registry(things, findings, site.trusting), Vault(things, site.secrets, site.session_key)
    served = istio.listeners(things, registry, labels, findings, vault)
    others, owners, statuses = gatewayapi.tables(things, registry, findings, vault, site)
    for bind, listener in others.listeners.items():
        if served.setdefault(bind, listener) is not listener:
            findings.error(ConfigError("", f"port {bind[1]}", "both Istio's and Gateway API's Gateways want it"))
    logged = access_log(things, labels, findings, site.secrets.namespace)
    binds = (*served, *others.datagrams)
    policies = guards(things, binds, Pod(site.secrets.namespace, labels), owners, site.names, findings)
    return Loaded(Table(served, others.datagrams, logged, policies), tuple(findings.found), statuses, vault.material)


def _unique(objects: Iterable[Object], findings: Findings) -> list[Object]:
    """Of an object that stands in several files the last counts, as if they had been applied in order."""
    found: dict[tuple[str, str, str, str], Object] = {}
    for thing in objects:
        key = thing.group, thing.kind, *thing.key
        if (before := found.get(key)) is not None:
            findings.warn(
                before, "metadata.name", f"stands in {thing.fields().place('metadata.name')}, too, which counts"
            )
        found[key] = thing
    return list(found.values())
