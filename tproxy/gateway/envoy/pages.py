"""Our own pages, as the listeners of an Istio gateway that istioctl shows: ``Inline Route: /healthz/ready*``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tproxy.gateway.envoy.names import TYPE

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """A port with one path below which it answers; ``cluster`` is what Istio's bootstrap calls who answers there."""

    port: int
    prefix: str
    cluster: str


READY, STATS = ("/healthz/ready", "agent"), ("/stats/prometheus", "prometheus_stats")


def listener(page: Page) -> Json:
    """It has no name, as in Istio's bootstrap."""
    kind = f"{TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    manager = {"@type": kind, "stat_prefix": page.cluster, "route_config": routes(page)}
    return {
        "@type": f"{TYPE}.config.listener.v3.Listener",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": page.port}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def routes(page: Page) -> Json:
    """The one route."""
    one = {"match": {"prefix": page.prefix}, "route": {"cluster": page.cluster}}
    return {
        "@type": f"{TYPE}.config.route.v3.RouteConfiguration",
        "virtual_hosts": [{"name": "backend", "domains": ["*"], "routes": [one]}],
    }


def cluster(page: Page) -> Json:
    """Ourselves."""
    address = {"socket_address": {"address": "127.0.0.1", "port_value": page.port}}
    return {
        "@type": f"{TYPE}.config.cluster.v3.Cluster",
        "name": page.cluster,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": page.cluster,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
