"""The configuration of ``tproxy control``: parsed once, passed whole.

>>> Control.parse({"dir": "ca", "maxTtl": "1h"}, "example").max_ttl
3600
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tproxy.control import webhook_config
from tproxy.control.webhook_config import WebhookConfig
from tproxy.core.address import Address, parse_address
from tproxy.core.config import parse_port
from tproxy.core.fields import Fields
from tproxy.core.identity import SpiffeId, is_segment, parse_trust_domain
from tproxy.core.identity_config import parse_seconds
from tproxy.kube.where import SECRETS, SERVER, Kubernetes, parse_api_server

NAMES = ("istiod.istio-system.svc", "tproxy-control.tproxy-system.svc", "localhost", "127.0.0.1", "::1")
_DNS = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
Name = str | Address


@dataclass(frozen=True, slots=True)
class Directory:
    """Telling sidecars who stands at which address; it is read from the Kubernetes API."""

    port: int
    streams: int  # sidecars at once; more are refused


@dataclass(frozen=True, slots=True)
class Policies:
    """Telling sidecars Istio's policy objects, on the directory's port."""

    root: str  # the namespace whose objects are for the whole mesh


@dataclass(frozen=True, slots=True)
class Control:
    """Everything that the server knows; seconds are whole."""

    dir: str
    trust_domain: str  # "" for the authority's own
    address: str  # to listen on; "" for any
    port: int
    health: int  # port of health and metrics
    names: tuple[Name, ...]  # of the serving certificate
    max_ttl: int
    audience: str
    kubernetes: Kubernetes | None
    directory: Directory | None
    policies: Policies | None
    join_tokens: bool
    impersonators: frozenset[SpiffeId]
    keep: int  # seconds that an expired certificate stays in the log
    concurrency: int  # calls at once; more are refused
    deadline: float  # seconds for one call
    drain: float  # seconds for the calls under way at the end
    webhook: WebhookConfig | None

    @classmethod
    def parse(cls, data: Mapping[str, Any] | None, where: str = "control") -> Control:
        """From the YAML's mapping; ConfigError names file, field, value and the nearest valid one."""
        top = Fields(data, where)
        listen, limits = top.inner("listen"), top.inner("limits")
        webhook = webhook_config.parse(top.raw("injection"), top.inner("webhook"), top.text("audience", "istio-ca"))
        found = cls(
            dir=top.text("dir"),
            trust_domain=top.parsed("trustDomain", _optional_domain, ""),
            address=listen.parsed("address", _address, ""),
            port=listen.parsed("port", parse_port, 15012),
            health=listen.parsed("health", parse_port, 15021),
            names=top.items("names", parse_name, NAMES),
            max_ttl=top.parsed("maxTtl", parse_seconds, "24h"),
            audience=top.text("audience", "istio-ca"),
            kubernetes=_kubernetes(top.inner("kubernetes")) if top.raw("kubernetes") is not None else None,
            directory=_directory(top.inner("directory")) if top.raw("directory") is not None else None,
            policies=_policies(top.inner("policies")) if top.raw("policies") is not None else None,
            join_tokens=top.flag("joinTokens", True),
            impersonators=frozenset(top.items("impersonators", _id)),
            keep=top.parsed("keep", parse_seconds, "7d"),
            concurrency=limits.integer("concurrency", 256, 1, 10_000),
            deadline=limits.number("deadline", 10, 0.1, 300),
            drain=limits.number("drain", 10, 0.1, 300),
            webhook=webhook,
        )
        if found.port == found.health:
            raise listen.error("health", "the port is taken by listen.port", found.health)
        if found.directory is not None and found.kubernetes is None:
            raise top.error("directory", "needs the section kubernetes: pods are read from its API")
        if found.directory is not None and found.directory.port in (found.port, found.health):
            raise top.error("directory.port", "the port is taken by listen", found.directory.port)
        if found.policies is not None and found.directory is None:
            raise top.error("policies", "needs the section directory: policies are told on its port")
        if webhook and webhook.port in (found.port, found.health):
            raise top.error("webhook.port", "the port is taken by listen", webhook.port)
        for fields in (listen, limits, top):
            fields.finish()
        if not found.names:
            raise top.error("names", "is empty: clients check the name that they dial")
        if webhook and webhook.host not in found.names:
            found = replace(found, names=(*found.names, webhook.host))
        return found


def _kubernetes(fields: Fields) -> Kubernetes | None:
    host, port = fields.parsed("apiServer", parse_api_server, SERVER)
    found = Kubernetes(
        host=host,
        port=port,
        token_file=fields.text("tokenFile", f"{SECRETS}/token"),
        ca_file=fields.text("caFile", f"{SECRETS}/ca.crt"),
        check_address=fields.flag("checkAddress", True),
    )
    enabled = fields.flag("enabled", True)
    fields.finish()
    return found if enabled else None


def _directory(fields: Fields) -> Directory:
    found = Directory(fields.parsed("port", parse_port, 15013), fields.integer("streams", 10_000, 1, 1_000_000))
    fields.finish()
    return found


def _policies(fields: Fields) -> Policies:
    found = Policies(fields.text("rootNamespace", "istio-system"))
    if not is_segment(found.root):
        raise fields.error("rootNamespace", "is no name in Kubernetes", found.root)
    fields.finish()
    return found


def parse_name(value: object) -> Name:
    """A DNS name in lower case, or an address."""
    text = value if isinstance(value, str) else ""
    try:
        return parse_address(text)
    except ValueError:
        if not _DNS.fullmatch(text):
            raise ValueError("expected a DNS name in lower case or an IP address") from None
    return text


def _optional_domain(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text")
    return parse_trust_domain(value) if value else ""


def _address(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("expected an IP address, or '' for any")
    return str(parse_address(value)) if value else ""


def _id(value: object) -> SpiffeId:
    if not isinstance(value, str):
        raise ValueError("expected a SPIFFE id")
    return SpiffeId.parse(value)
