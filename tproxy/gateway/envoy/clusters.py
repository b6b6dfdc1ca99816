"""What Envoy tells of clusters: /clusters?format=json with endpoints and who is left out, and a cluster's limits.

``istioctl proxy-config endpoint`` makes its columns STATUS and OUTLIER CHECK of the first (admin.v3.Clusters).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any

from tproxy.core.address import Endpoint
from tproxy.core.balance.limits import Caps
from tproxy.core.balance.outlier import Outlier
from tproxy.core.routes import Backend, Balance

Json = dict[str, Any]
_POLICIES = {Balance.LEAST_REQUEST: "LEAST_REQUEST", Balance.ROUND_ROBIN: "ROUND_ROBIN", Balance.RANDOM: "RANDOM"}


def statuses(backends: Iterable[tuple[str, Backend]], out: Callable[[Backend], Container[Endpoint]]) -> Json:
    """By name; ``out`` says who is left out of a backend."""
    return {
        "cluster_statuses": [
            {
                "name": name,
                "added_via_api": True,
                "host_statuses": [_host(endpoint, endpoint in out(backend)) for endpoint in backend.endpoints],
            }
            for name, backend in backends
        ]
    }


def _host(endpoint: Endpoint, out: bool) -> Json:
    address = {"socket_address": {"address": str(endpoint.ip), "port_value": endpoint.port}}
    health = {"eds_health_status": "HEALTHY", **({"failed_outlier_check": True} if out else {})}
    return {"address": address, "health_status": health}


def settings(backend: Backend) -> Json:
    """How it is balanced, bounded and watched (config.cluster.v3.Cluster)."""
    hashed = backend.affinity
    made: Json = {"lb_policy": _POLICIES[backend.balance]}
    if hashed is not None:
        made["lb_policy"] = "RING_HASH" if hashed.ring.is_ring else "MAGLEV"
    if backend.care is None:
        return made
    caps, outlier = backend.care.caps, backend.care.outlier
    if caps.connect is not None:
        made["connect_timeout"] = _seconds(caps.connect)
    if bounds := _thresholds(caps):
        made["circuit_breakers"] = {"thresholds": [bounds]}
    if outlier is not None:
        made["outlier_detection"] = _outlier(outlier)
        made["common_lb_config"] = {"healthy_panic_threshold": {"value": outlier.least}}
    return made


def _thresholds(caps: Caps) -> Json:
    named = {
        "max_connections": caps.connections,
        "max_pending_requests": caps.pending,
        "max_requests": caps.requests,
        "max_retries": caps.retries,
    }
    return {name: value for name, value in named.items() if value}


def _outlier(outlier: Outlier) -> Json:
    made: Json = {
        "consecutive_5xx": outlier.errors,
        "enforcing_consecutive_5xx": 100 if outlier.errors else 0,
        "consecutive_gateway_failure": outlier.gateway,
        "enforcing_consecutive_gateway_failure": 100 if outlier.gateway else 0,
        "interval": _seconds(outlier.interval),
        "base_ejection_time": _seconds(outlier.base),
        "max_ejection_percent": outlier.most,
        "enforcing_success_rate": 0,
    }
    if outlier.split:
        local = {"split_external_local_origin_errors": True, "enforcing_local_origin_success_rate": 0}
        made |= {**local, "consecutive_local_origin_failure": outlier.local}
    return made


def _seconds(value: float) -> str:
    """As protobuf's JSON has a Duration: with three digits of a second, or none."""
    return f"{value:.3f}s".replace(".000s", "s")
