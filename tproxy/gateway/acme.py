"""Where TLS-ALPN-01 challenges (RFC 8737) go for names whose TLS ends here: an annotation of the Gateway."""

from __future__ import annotations

from tproxy.core.fields import parse_port
from tproxy.core.inject.annotations import PREFIX
from tproxy.core.routes import Backend, Route
from tproxy.gateway.objects import Object
from tproxy.gateway.registry import Registry, host_of

BACKEND = PREFIX + "acme-tls-backend"  # service:port, in the Gateway's own namespace


def acme_route(thing: Object, registry: Registry) -> Route | None:
    """The solver, if the annotation names one. ConfigError if it names nothing that can be one."""
    value = thing.annotations.get(BACKEND)
    if value is None:
        return None
    name, _, port = value.rpartition(":")
    try:
        number = parse_port(port)
    except ValueError as error:
        raise thing.error(f"metadata.annotations.{BACKEND}", f"{error}, behind a Service's name", value) from error
    endpoints, fault = registry.find(host_of(name, thing.namespace), number, {})
    return Route(f"{thing} {BACKEND}", (Backend(f"{thing.namespace}/{value}", endpoints, fault=fault),), thing.where)
