"""What ``injection:`` and ``webhook:`` in control's configuration say; without ``injection:`` there is no webhook."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tproxy.core.config import parse_port
from tproxy.core.fields import ConfigError, Fields
from tproxy.core.inject.injection import Injection

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_VALUE = r"[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"([a-z0-9][-a-z0-9.]{{0,251}}/)?{_VALUE}(=({_VALUE})?)?")


@dataclass(frozen=True, slots=True)
class WebhookConfig:
    """How the cluster finds us, and how its pods are injected."""

    injection: Injection
    asks: bool  # whether sidecars are native is the API server's version to say
    port: int
    configuration: str  # name of the MutatingWebhookConfiguration
    service: str  # name of the Service in injection.namespace
    namespaces: str  # a label, or label=value: where the roots are published; "": everywhere

    @property
    def host(self) -> str:
        """The name that API servers dial, and verify."""
        return f"{self.service}.{self.injection.namespace}.svc"

    def settled(self, trust_domain: str, native: bool, told: bool = False) -> Injection:
        """The settings of injection, once the authority and the cluster are known. ConfigError if they disagree.

        ``told``: whether we tell policies; then sidecars that can ask us do.
        """
        settings, config = self.injection, self.injection.config
        said = config.get("trustDomain")
        if config.get("identity") is None and not settings.secret and said not in (None, trust_domain):
            why = "sidecars get their certificates from this authority"
            raise ConfigError("configuration", "injection.config.trustDomain", why, said, [trust_domain])
        config = {"trustDomain": trust_domain, **config} if said is None else config
        known = config.get("identity") is None and not settings.secret and config.get("directory") is not None
        if told and known and config.get("policies") is None:
            config = {**config, "policies": {"control": True}}
        return replace(settings, config=config, native=native if self.asks else settings.native)


def parse(injection: Any, fields: Fields, audience: str) -> WebhookConfig | None:
    """From both sections. ConfigError names file, field, value and the nearest valid one."""
    found = WebhookConfig(
        injection=Injection(),
        asks=not isinstance(injection, Mapping) or injection.get("native") is None,
        port=fields.parsed("port", parse_port, 15017),
        configuration=fields.parsed("configuration", _name, "tproxy-injector"),
        service=fields.parsed("service", _name, "tproxy-control"),
        namespaces=fields.parsed("namespaces", _label, "tproxy.dev/inject=true"),
    )
    fields.finish()
    if injection is None:
        if fields.data:
            raise ConfigError(fields.where, "webhook", "there is no webhook without injection: {}")
        return None
    settings = Injection.parse(injection, f"{fields.where}: injection")
    token = injection.get("token")
    if not token or token.get("audience") is None:  # the tokens are for us
        settings = replace(settings, audience=audience)
    return replace(found, injection=settings)


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("expected the name of an object: lower case, digits, - and .")
    return value


def _label(value: object) -> str:
    if not isinstance(value, str) or (value and not _LABEL.fullmatch(value)):
        raise ValueError("expected a label such as tproxy.dev/inject=true, or '' for every namespace")
    return value
