"""Istio's objects for tests: written as people write them, asked as the sidecar asks."""

from __future__ import annotations

from typing import Any

import yaml

from tproxy.core import decide
from tproxy.core.address import Endpoint
from tproxy.core.config import Config
from tproxy.core.identity import SpiffeId
from tproxy.core.policy.effective import settle
from tproxy.core.policy.manifest import manifests
from tproxy.core.policy.policy import Allow
from tproxy.core.reason import Deny

VERSION = "security.istio.io/v1"
TARGET = "10.0.0.9"


def auth(text: str, name: str = "shop/it", dry_run: str = "") -> dict[str, Any]:
    """An AuthorizationPolicy; ``text`` is its spec in YAML."""
    return _object("AuthorizationPolicy", name, text, {"istio.io/dry-run": dry_run} if dry_run else None)


def peer(text: str, name: str = "shop/default", created: str | None = None) -> dict[str, Any]:
    """A PeerAuthentication; ``text`` is its spec in YAML."""
    return _object("PeerAuthentication", name, text, None, created)


def _object(
    kind: str, name: str, text: str, annotations: dict[str, str] | None, created: str | None = None
) -> dict[str, Any]:
    namespace, _, short = name.partition("/")
    meta = {"namespace": namespace, "name": short, "annotations": annotations, "creationTimestamp": created}
    return {"apiVersion": VERSION, "kind": kind, "metadata": meta, "spec": yaml.safe_load(text)}


def settled(*objects: dict[str, Any], labels: dict[str, str] | None = None, **config: Any) -> Config:
    """What they make of a workload in namespace shop."""
    given = [found for index, each in enumerate(objects) for found in manifests(each, f"{index}.yaml")]
    workload = {"namespace": "shop", "labels": labels or {}}
    return settle(Config.parse({"workload": workload, **config}, "sidecar.yaml", given), None)


def asked(config: Config, who: str = "", port: int = 80, source: str = "10.0.0.7") -> Allow | Deny:
    """``who``: a path such as ns/shop/sa/web in cluster.local, a whole id, or nothing for plaintext."""
    whole = who if not who or who.startswith("spiffe://") else f"spiffe://cluster.local/{who}"
    ends = Endpoint.parse(f"{source}:40000"), Endpoint.parse(f"{TARGET}:{port}")
    return decide.authorize(SpiffeId.parse(whole) if whole else None, *ends, config)
