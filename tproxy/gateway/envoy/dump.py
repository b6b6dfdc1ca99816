"""The whole /config_dump, and single parts of it: what is in force, from the table that is served."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tproxy.core.http.routes import HttpTable
from tproxy.core.routes import (
    Backend,
    HttpListener,
    Listener,
    Passthrough,
    Route,
    Table,
    TcpListener,
    Terminate,
    TlsListener,
)
from tproxy.gateway.envoy import pages
from tproxy.gateway.envoy.clusters import settings
from tproxy.gateway.envoy.listeners import datagrams, listener, tables
from tproxy.gateway.envoy.names import TYPE, cluster
from tproxy.gateway.envoy.routes import route_configuration

Json = dict[str, Any]
_HIDDEN = base64.b64encode(b"[redacted]").decode()  # as Envoy writes where a key would stand


def config_dump(
    table: Table, chains: Mapping[str, bytes], taken: str, version: str, own_pages: Sequence[pages.Page] = ()
) -> Json:
    """All of it. ``chains`` are certificates in PEM by Secret, ``taken`` is when (RFC 3339) the table was taken up."""
    own = {"version_info": version, "last_updated": taken}
    fixed = {"last_updated": taken}
    served = sorted(table.listeners.items(), key=lambda item: item[0])
    bound = [listener(bind, found) for bind, found in served]
    bound += [datagrams(bind, table.datagrams[bind]) for bind in sorted(table.datagrams)]
    routes = dict(named for bind, found in served for named in _named(bind, found))
    return {
        "configs": [
            {
                "@type": f"{TYPE}.admin.v3.ClustersConfigDump",
                "version_info": version,
                "static_clusters": [{**fixed, "cluster": pages.cluster(page)} for page in own_pages],
                "dynamic_active_clusters": [{**own, "cluster": _cluster(*named)} for named in backends(table)],
            },
            {
                "@type": f"{TYPE}.admin.v3.ListenersConfigDump",
                "version_info": version,
                "static_listeners": [{**fixed, "listener": pages.listener(page)} for page in own_pages],
                "dynamic_listeners": [
                    {"name": made["name"], "active_state": {**own, "listener": made}} for made in bound
                ],
            },
            {
                "@type": f"{TYPE}.admin.v3.RoutesConfigDump",
                "static_route_configs": [{**fixed, "route_config": pages.routes(page)} for page in own_pages],
                "dynamic_route_configs": [
                    {**own, "route_config": route_configuration(name, *found)} for name, found in routes.items()
                ],
            },
            {
                "@type": f"{TYPE}.admin.v3.SecretsConfigDump",
                "dynamic_active_secrets": [
                    {"name": made["name"], **own, "secret": made} for made in _secrets(table, chains)
                ],
            },
        ]
    }


def _named(bind: tuple[str, int], found: Listener) -> Iterator[tuple[str, tuple[HttpTable, int]]]:
    for name, table in tables(bind, found):
        yield name, (table, found.port)


def backends(table: Table) -> list[tuple[str, Backend]]:
    """Every backend once, whoever names it, by its cluster's name."""
    seen: dict[str, Backend] = {}
    for found in table.listeners.values():
        for backend in _backends(found):
            seen.setdefault(cluster(backend), backend)
    for port in table.datagrams.values():
        for backend in port.route.backends if port.route else ():
            seen.setdefault(cluster(backend), backend)
    return sorted(seen.items(), key=lambda item: item[0])


def _backends(found: Listener) -> Iterator[Backend]:
    match found:
        case HttpListener(_, table):
            yield from _of_rules(table)
        case TcpListener(_, _, route):
            yield from route.backends if route else ()
        case TlsListener(_, names):
            for _, chain in names.items():
                if isinstance(chain, Passthrough):
                    yield from chain.route.backends
                elif isinstance(chain, Terminate):
                    yield from chain.inside.backends if isinstance(chain.inside, Route) else _of_rules(chain.inside)


def _of_rules(table: HttpTable) -> Iterator[Backend]:
    for _, entries in table.hosts.items():
        for entry in entries:
            yield from entry.rule.backends
            yield from (mirror.backend for mirror in entry.rule.filters.mirrors)


def _cluster(name: str, backend: Backend) -> Json:
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": str(each.ip), "port_value": each.port}}}}
        for each in backend.endpoints
    ]
    made: Json = {
        "@type": f"{TYPE}.config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        **settings(backend),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}] if endpoints else []},
    }
    if backend.tls is not None:
        context = {"@type": f"{TYPE}.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "sni": backend.tls.sni}
        made["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}
    return made


def _secrets(table: Table, chains: Mapping[str, bytes]) -> Iterator[Json]:
    names = {
        secret
        for found in table.listeners.values()
        if isinstance(found, TlsListener)
        for _, chain in found.names.items()
        if isinstance(chain, Terminate)
        for secret in chain.tls.secrets
    }
    for name in sorted(names):
        chain = base64.b64encode(chains.get(name, b"")).decode()
        yield {
            "@type": f"{TYPE}.extensions.transport_sockets.tls.v3.Secret",
            "name": f"kubernetes://{name}",
            "tls_certificate": {"certificate_chain": {"inline_bytes": chain}, "private_key": {"inline_bytes": _HIDDEN}},
        }
