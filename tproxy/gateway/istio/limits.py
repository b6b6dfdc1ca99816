"""A DestinationRule's ``connectionPool`` and ``outlierDetection``. What is not done is a warning that says so."""

from __future__ import annotations

from dataclasses import dataclass

from tproxy.core.balance.limits import NO_CAPS, Caps, Keepalive
from tproxy.core.balance.outlier import Outlier
from tproxy.core.fields import Fields
from tproxy.gateway.findings import Findings, ignore
from tproxy.gateway.http_words import seconds
from tproxy.gateway.objects import Object

_MOST = 2**32 - 1
_UPGRADES = ("DEFAULT", "DO_NOT_UPGRADE", "UPGRADE")
_DEFAULTS = Outlier()


@dataclass(frozen=True, slots=True)
class Connections:
    """``connectionPool``: limits, and whether HTTP/2 is spoken whatever the Service says."""

    caps: Caps = NO_CAPS
    http2: bool = False


NO_POOL = Connections()


def connection_pool(thing: Object, given: Fields, findings: Findings) -> Connections:
    """ConfigError as the webhook's."""
    if given.raw("tcp") is None and given.raw("http") is None:
        raise given.error("tcp", "connection pool must have at least one field")
    tcp, http = given.inner("tcp"), given.inner("http")
    ignore(thing, tcp, ("maxConnectionDuration",), findings)
    if http.flag("useClientProtocol", False):
        if http.raw("h2UpgradePolicy") == "UPGRADE":
            why = "use client protocol must not be true when H2UpgradePolicy is UPGRADE"
            raise http.error("useClientProtocol", why)
        ignore(thing, http, ("useClientProtocol",), findings)
    upgrade = http.choice("h2UpgradePolicy", "DEFAULT", _UPGRADES) == "UPGRADE"
    idle = _duration(http, "idleTimeout", zero=True)
    if tcp.raw("idleTimeout") is not None:
        why = "counts for kept connections of HTTP only; connections of bytes have no such end here"
        findings.warn(thing, tcp.name("idleTimeout"), why)
    if idle is None:
        idle = _duration(tcp, "idleTimeout", zero=True)
    tcp.raw("idleTimeout")
    caps = Caps(
        connections=_count(tcp, "maxConnections"),
        pending=_count(http, "http1MaxPendingRequests"),
        requests=_count(http, "http2MaxRequests"),
        retries=_count(http, "maxRetries"),
        each=_count(http, "maxRequestsPerConnection"),
        streams=_count(http, "maxConcurrentStreams"),
        connect=_duration(tcp, "connectTimeout"),
        idle=idle,
        keepalive=_keepalive(tcp.inner("tcpKeepalive")) if tcp.raw("tcpKeepalive") is not None else None,
    )
    for fields in (tcp, http, given):
        fields.finish()
    return Connections(caps, upgrade)


def _count(fields: Fields, key: str) -> int:
    """0 is no limit, as in Istio."""
    return fields.integer(key, 0, 0, _MOST)


def _duration(fields: Fields, key: str, zero: bool = False) -> float | None:
    if fields.raw(key) is None:
        return None
    value = fields.parsed(key, seconds, None)
    if value < 0.001 and not (zero and not value):
        raise fields.error(key, "expected 1ms or more", fields.raw(key))
    return value


def _keepalive(given: Fields) -> Keepalive:
    time, interval = (_duration(given, key) or 0.0 for key in ("time", "interval"))
    made = Keepalive(round(time) or int(time > 0), round(interval) or int(interval > 0), _count(given, "probes"))
    given.finish()
    return made


def outlier_detection(thing: Object, given: Fields, findings: Findings) -> Outlier:
    """What is left out has Envoy's default."""
    old = given.integer("consecutiveErrors", 0, 0, _MOST)
    if old:
        why = "is deprecated, use consecutiveGatewayErrors or consecutive5xxErrors instead; it is ignored, as by Istio"
        findings.warn(thing, given.name("consecutiveErrors"), why)
    split = given.flag("splitExternalLocalOriginErrors", False)
    local = given.integer("consecutiveLocalOriginFailures", _DEFAULTS.errors if split else 0, 0, _MOST)
    if local and not split:
        why = "is specified, but splitExternalLocalOriginErrors is set to false"
        raise given.error("consecutiveLocalOriginFailures", why)
    made = Outlier(
        errors=given.integer("consecutive5xxErrors", _DEFAULTS.errors, 0, _MOST),
        gateway=given.integer("consecutiveGatewayErrors", 0, 0, _MOST),
        local=local,
        split=split,
        interval=_duration(given, "interval") or _DEFAULTS.interval,
        base=_duration(given, "baseEjectionTime") or _DEFAULTS.base,
        most=given.integer("maxEjectionPercent", 0, 0, 100) or _DEFAULTS.most,
        least=given.integer("minHealthPercent", 0, 0, 100),
    )
    given.finish()
    return made
