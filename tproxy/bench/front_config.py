"""What a gateway and Envoy are told so that both do the same. Pure but for the certificate that is read."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

NAME = "localhost"  # resolves everywhere, and is sent as SNI


def istio(folder: Path, ports: tuple[int, int, int], backends: tuple[int, int]) -> list[dict[str, Any]]:
    """Objects of a gateway: three servers, one rule each; ``ports`` are http, https, passthrough."""
    http, https, through = ports

    def made(group: str, kind: str, name: str, **more: Any) -> dict[str, Any]:
        meta = {"name": name, "namespace": "istio-system"}
        return {"apiVersion": group, "kind": kind, "metadata": meta, **more}

    def entry(name: str, port: int) -> dict[str, Any]:
        one = [{"number": 80, "name": "any", "protocol": "TCP"}]
        to = [{"address": "127.0.0.1", "ports": {"any": port}}]
        spec = {"hosts": [name], "ports": one, "resolution": "STATIC", "endpoints": to}
        return made("networking.istio.io/v1", "ServiceEntry", name, spec=spec)

    def server(port: int, protocol: str, **tls: str) -> dict[str, Any]:
        one = {"number": port, "name": f"p{port}", "protocol": protocol}
        return {"port": one, "hosts": [NAME], **({"tls": tls} if tls else {})}

    servers = [
        server(http, "HTTP"),
        server(https, "HTTPS", mode="SIMPLE", credentialName="bench"),
        server(through, "TLS", mode="PASSTHROUGH"),
    ]
    spec = {
        "hosts": [NAME],
        "gateways": ["gw"],
        "http": [{"route": [{"destination": {"host": "plain.bench"}}]}],
        "tls": [{"match": [{"port": through, "sniHosts": [NAME]}], "route": [{"destination": {"host": "tls.bench"}}]}],
    }
    data = {f"tls.{kind}": base64.b64encode((folder / f"{kind}.pem").read_bytes()).decode() for kind in ("crt", "key")}
    return [
        made("networking.istio.io/v1", "Gateway", "gw", spec={"selector": {"istio": "gw"}, "servers": servers}),
        made("networking.istio.io/v1", "VirtualService", "vs", spec=spec),
        entry("plain.bench", backends[0]),
        entry("tls.bench", backends[1]),
        made("v1", "Secret", "bench", type="kubernetes.io/tls", data=data),
    ]


def envoy(folder: Path, ports: tuple[int, int, int], backends: tuple[int, int]) -> dict[str, Any]:
    """Envoy's static configuration of the same."""
    api = "type.googleapis.com/envoy.extensions"

    def typed(name: str, kind: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "typed_config": {"@type": f"{api}.{kind}", **more}}

    def address(host: str, port: int, **more: Any) -> dict[str, Any]:
        return {"socket_address": {"address": host, "port_value": port, **more}}

    def listener(port: int, chain: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"address": address("::", port, ipv4_compat=True), "filter_chains": [chain], **more}

    def cluster(name: str, port: int) -> dict[str, Any]:
        endpoint = {"endpoint": {"address": address("127.0.0.1", port)}}
        to = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
        return {"name": name, "connect_timeout": "5s", "load_assignment": to}

    http = typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="http",
        use_remote_address=True,
        route_config={
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "plain"}}]}
            ]
        },
        http_filters=[typed("envoy.filters.http.router", "filters.http.router.v3.Router")],
    )
    pair = {"certificate_chain": {"filename": f"{folder}/crt.pem"}, "private_key": {"filename": f"{folder}/key.pem"}}
    common = {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [pair]}
    kind = "transport_sockets.tls.v3.DownstreamTlsContext"
    ended = typed("envoy.transport_sockets.tls", kind, common_tls_context=common)
    tcp = typed(
        "envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="tcp", cluster="tls"
    )
    match = {"server_names": [NAME]}
    inspector = typed("envoy.filters.listener.tls_inspector", "filters.listener.tls_inspector.v3.TlsInspector")
    both = {"filter_chain_match": match}
    listeners = [
        listener(ports[0], {"filters": [http]}),
        listener(ports[1], {"filters": [http], "transport_socket": ended, **both}, listener_filters=[inspector]),
        listener(ports[2], {"filters": [tcp], **both}, listener_filters=[inspector]),
    ]
    clusters = [cluster("plain", backends[0]), cluster("tls", backends[1])]
    return {"static_resources": {"listeners": listeners, "clusters": clusters}}
