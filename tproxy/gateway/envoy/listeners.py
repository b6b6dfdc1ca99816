"""Ports as Envoy's Listener (envoy.config.listener.v3), in proto-JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, assert_never

from tproxy.core.hostnames import ANY
from tproxy.core.http.routes import HttpTable
from tproxy.core.routes import (
    Backend,
    Bind,
    Chain,
    Closed,
    HttpListener,
    Listener,
    Passthrough,
    Route,
    TcpListener,
    Terminate,
    TlsListener,
    TlsMode,
    UdpListener,
)
from tproxy.gateway.envoy.names import TYPE, cluster, https_routes, listener_name

Json = dict[str, Any]
_HCM = "envoy.filters.network.http_connection_manager"
_TCP = "envoy.filters.network.tcp_proxy"


def listener(bind: Bind, found: Listener) -> Json:
    """One port."""
    made: Json = {
        "@type": f"{TYPE}.config.listener.v3.Listener",
        "name": listener_name(bind),
        "address": {"socket_address": {"address": bind[0] or "0.0.0.0", "port_value": bind[1]}},
        "filter_chains": list(_chains(bind, found)),
        "traffic_direction": "OUTBOUND",
    }
    if isinstance(found, TlsListener):
        inspector = f"{TYPE}.extensions.filters.listener.tls_inspector.v3.TlsInspector"
        made["listener_filters"] = [
            {"name": "envoy.filters.listener.tls_inspector", "typed_config": {"@type": inspector}}
        ]
    return made


def datagrams(bind: Bind, found: UdpListener) -> Json:
    """A port of UDP. Envoy's proxy knows one cluster, so weights stand beside it."""
    made: Json = {
        "@type": f"{TYPE}.config.listener.v3.Listener",
        "name": f"udp_{listener_name(bind)}",
        "address": {"socket_address": {"address": bind[0] or "0.0.0.0", "port_value": bind[1], "protocol": "UDP"}},
        "traffic_direction": "OUTBOUND",
    }
    if found.route is None or not found.route.backends:
        return made
    kind = f"{TYPE}.extensions.filters.udp.udp_proxy.v3"
    first = max(found.route.backends, key=lambda backend: backend.weight)
    action = {"name": "route", "typed_config": {"@type": f"{kind}.Route", "cluster": cluster(first)}}
    proxy = {
        "@type": f"{kind}.UdpProxyConfig",
        "stat_prefix": found.route.name,
        "matcher": {"on_no_match": {"action": action}},
    }
    made["listener_filters"] = [{"name": "envoy.filters.udp_listener.udp_proxy", "typed_config": proxy}]
    if len(found.route.backends) > 1:
        made["metadata"] = {"filter_metadata": {"tproxy": _target(found.route.backends)}}
    return made


def tables(bind: Bind, found: Listener) -> Iterator[tuple[str, HttpTable]]:
    """The route configurations that the port's chains name."""
    match found:
        case HttpListener(_, table):
            yield f"http.{bind[1]}", table
        case TlsListener(port, names):
            for _, chain in names.items():
                if isinstance(chain, Terminate) and isinstance(chain.inside, HttpTable):
                    yield https_routes(port, chain.server), chain.inside


def _chains(bind: Bind, found: Listener) -> Iterator[Json]:
    match found:
        case HttpListener():
            yield {"filters": [_requests(f"http.{bind[1]}")]}
        case TcpListener(_, _, route):
            yield {"filters": [_bytes(route)]} if route else {"filters": []}
        case TlsListener(port, names):
            by_chain: dict[int, tuple[Chain, list[str]]] = {}
            for name, chain in names.items():
                by_chain.setdefault(id(chain), (chain, []))[1].append(name)
            for chain, hosts in by_chain.values():
                if not isinstance(chain, Closed):
                    yield _chain(port, chain, hosts)
        case never:
            assert_never(never)


def _chain(port: int, chain: Passthrough | Terminate, hosts: list[str]) -> Json:
    made: Json = {"filter_chain_match": {} if ANY in hosts else {"server_names": hosts}}
    if isinstance(chain, Passthrough):
        return {**made, "filters": [_bytes(chain.route)]}
    inside = chain.inside
    filters = [_requests(https_routes(port, chain.server)) if isinstance(inside, HttpTable) else _bytes(inside)]
    return {**made, "filters": filters, "transport_socket": _downstream(chain)}


def _requests(name: str) -> Json:
    source = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
    return {
        "name": _HCM,
        "typed_config": {
            "@type": f"{TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": f"outbound_{name}",
            "rds": {"config_source": source, "route_config_name": name},
            "use_remote_address": True,
            "normalize_path": True,
        },
    }


def _bytes(route: Route) -> Json:
    made: Json = {"@type": f"{TYPE}.extensions.filters.network.tcp_proxy.v3.TcpProxy"}
    return {"name": _TCP, "typed_config": {**made, **_target(route.backends), "stat_prefix": route.name}}


def _target(backends: tuple[Backend, ...]) -> Json:
    if len(backends) == 1:
        return {"cluster": cluster(backends[0])}
    weighted = [{"name": cluster(backend), "weight": backend.weight} for backend in backends if backend.weight]
    return {"weighted_clusters": {"clusters": weighted}}


def _downstream(chain: Terminate) -> Json:
    context = f"{TYPE}.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    secrets = [
        {"name": f"kubernetes://{name}", "sds_config": {"ads": {}, "resource_api_version": "V3"}}
        for name in chain.tls.secrets
    ]
    if chain.tls.mode is TlsMode.MESH:  # as Istio's agent names the workload's own
        secrets = [{"name": "default", "sds_config": {"api_config_source": {}, "resource_api_version": "V3"}}]
    common = {"alpn_protocols": ["h2", "http/1.1"], "tls_certificate_sds_secret_configs": secrets}
    asked = chain.tls.mode in (TlsMode.MUTUAL, TlsMode.MESH)
    made = {"@type": context, "common_tls_context": common, "require_client_certificate": asked}
    return {"name": "envoy.transport_sockets.tls", "typed_config": made}
