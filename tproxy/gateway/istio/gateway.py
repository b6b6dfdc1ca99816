"""Istio's Gateway: servers, checked as Istio's webhook does, and with its sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from tproxy.core.address import parse_address
from tproxy.core.fields import Fields, parse_port, text_of
from tproxy.core.hostnames import parse_hostname
from tproxy.core.routes import Route, ServerTls, TlsMode
from tproxy.gateway.acme import acme_route
from tproxy.gateway.findings import Findings, ignore, refuse
from tproxy.gateway.istio.tls import server_tls
from tproxy.gateway.objects import Object
from tproxy.gateway.registry import Registry
from tproxy.gateway.secrets import Vault

GROUP = "networking.istio.io"
_SUPPORTED = "HTTP, HTTP2, GRPC, GRPC-WEB, MONGO, REDIS, MYSQL, TCP"


class Family(StrEnum):
    """What can share a port."""

    HTTP = "HTTP"
    TLS = "TLS"
    TCP = "TCP"


_FAMILIES = {
    **dict.fromkeys(("HTTP", "HTTP2", "GRPC", "GRPC-WEB"), Family.HTTP),
    **dict.fromkeys(("HTTPS", "TLS"), Family.TLS),
    **dict.fromkeys(("TCP", "MONGO", "REDIS", "MYSQL"), Family.TCP),
}


@dataclass(frozen=True, slots=True)
class Server:
    """One server of one Gateway. Hosts are (namespace, pattern); the namespace ``*`` means any."""

    gateway: Object
    path: str
    port: int
    port_name: str
    protocol: str
    family: Family
    bind: str
    hosts: tuple[tuple[str, str], ...]
    tls: ServerTls | None
    acme: Route | None
    redirects: bool = False  # plaintext requests, to https
    auto: bool = False  # AUTO_PASSTHROUGH: SNI says which Service

    @property
    def name(self) -> str:
        """As it stands in records."""
        return f"{self.gateway} {self.port_name}"

    @property
    def passes(self) -> bool:
        """Whether the backend ends TLS."""
        return self.tls is not None and self.tls.mode is TlsMode.PASSTHROUGH and self.family is Family.TLS


def servers(
    thing: Object, labels: Mapping[str, str], registry: Registry, findings: Findings, vault: Vault
) -> list[Server]:
    """The servers of a Gateway for a pod with these labels (none known: for any). ConfigError as the webhook's."""
    spec = thing.fields("spec")
    selector = {str(key): str(value) for key, value in spec.inner("selector").data.items()}
    entries = spec.each("servers")
    if not entries:
        raise spec.error("servers", "gateway must have at least one server")
    acme = acme_route(thing, registry)
    found = [_server(thing, entry, acme, findings, vault) for entry in entries]
    spec.finish()
    seen: dict[str, int] = {}
    for index, server in enumerate(found):
        if seen.setdefault(server.port_name, index) != index:
            why = f"port names in servers must be unique: duplicate name {server.port_name}"
            raise spec.error(f"servers[{index}].port.name", why)
    return found if not labels or selector.items() <= labels.items() else []


def _server(thing: Object, entry: Fields, acme: Route | None, findings: Findings, vault: Vault) -> Server:
    port = entry.inner("port")
    if entry.raw("port") is None or port.raw("number") is None:
        raise port.error("number", "port is required: a number from 1 to 65535")
    number, protocol = port.parsed("number", parse_port, None), port.text("protocol").upper()
    if protocol not in _FAMILIES:
        raise port.error("protocol", f"invalid protocol, supported protocols are {_SUPPORTED}, HTTPS, TLS", protocol)
    if not (port_name := port.text("name")):
        raise port.error("name", "port name must be set")
    ignore(thing, port, ("targetPort",), findings)
    port.finish()
    if not (hosts := entry.items("hosts", lambda text: _host(text, thing.namespace))):
        raise entry.error("hosts", "server config must contain at least one host")
    refuse(entry, ("defaultEndpoint",))
    entry.text("name")  # of metrics only
    family = _FAMILIES[protocol]
    bind = str(entry.parsed("bind", text_of(parse_address), None)) if entry.raw("bind") is not None else ""
    tls = _tls(thing, entry, family, findings, vault)
    redirects = family is Family.HTTP and entry.inner("tls").flag("httpsRedirect", False)
    auto = family is Family.TLS and entry.inner("tls").text("mode") == "AUTO_PASSTHROUGH"
    entry.finish()
    return Server(thing, entry.path, number, port_name, protocol, family, bind, hosts, tls, acme, redirects, auto)


def _tls(thing: Object, entry: Fields, family: Family, findings: Findings, vault: Vault) -> ServerTls | None:
    if entry.raw("tls") is None:
        if family is Family.TLS:
            raise entry.error("tls", "server must have TLS settings for HTTPS/TLS protocols")
        return None
    tls = entry.inner("tls")
    redirect = tls.flag("httpsRedirect", False)
    if family is Family.TCP:
        raise entry.error("tls", "server cannot have TLS settings for non HTTPS/TLS ports")
    if family is Family.HTTP:
        mode, named = tls.text("mode", "PASSTHROUGH"), tls.raw("credentialName") or tls.raw("credentialNames")
        if mode != "PASSTHROUGH" or named:
            raise tls.error("mode", "server cannot have TLS settings for plain text HTTP ports", mode)
        tls.finish()
        return None
    if redirect:
        findings.warn(thing, f"{tls.path}.httpsRedirect", "tls.httpsRedirect should only be used with http servers")
    return server_tls(thing, tls, findings, vault)


def _host(text: object, namespace: str) -> tuple[str, str]:
    """``[namespace/]name``; ``.`` is the Gateway's own."""
    if not isinstance(text, str):
        raise ValueError("expected a host name")
    where, slash, host = text.rpartition("/")
    return (namespace if where == "." else where) if slash else "*", parse_hostname(host)
