"""The effective configuration as JSON: what the sidecar decides by, never a key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

from tproxy.core.certificates import pem
from tproxy.core.certificates.x509 import Malformed, leaf_facts
from tproxy.core.config import Config
from tproxy.core.directory import Entries
from tproxy.core.identity import IdPattern, Snapshot
from tproxy.core.plaintext import Plaintext, Talk
from tproxy.core.policy.conditions import Text
from tproxy.core.policy.told import Told


def config_dump(config: Config, snapshot: Snapshot) -> dict[str, Any]:
    """Config and identity in plain types; sets are sorted so that two dumps compare."""
    identity = {**_svid(snapshot), "trust_domains": sorted(snapshot.bundles)}
    return {"config": _plain(config), "identity": identity, "configs": [_listeners(config)]}


def _listeners(config: Config) -> dict[str, Any]:
    """Ports of egress rules where Envoy's /config_dump has listeners, so that people's jq lines find them."""
    ports = sorted({port for rule in config.egress_routes.rules for port in rule.ports})
    names = ("tproxy.egress_routes", "envoy.filters.network.tcp_proxy")
    filters = [{"name": name} for name in names]
    listeners = [
        {
            "name": f"0.0.0.0_{port}",
            "active_state": {"listener": {"name": f"0.0.0.0_{port}", "filter_chains": [{"filters": filters}]}},
        }
        for port in ports
    ]
    return {"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump", "dynamic_listeners": listeners}


def directory_dump(status: Mapping[str, Any], entries: Entries) -> dict[str, Any]:
    """All that is known of others, by address."""
    return {"status": dict(status), "entries": {str(address): _plain(entry) for address, entry in entries.items()}}


def plaintext_dump(book: Plaintext, still_open: Mapping[Talk, int], config: Config) -> dict[str, Any]:
    """Who spoke plaintext since the start, the newest first, and whether it would be let in now."""
    rows = [
        {
            "direction": talk.direction.value,
            "peer": str(talk.peer),
            "port": talk.port,
            "name": seen.name,
            "open": still_open.get(talk, 0),
            "connections": seen.connections,
            "first": seen.first,
            "last": seen.last,
        }
        for talk, seen in book.rows()
    ]
    modes = {"": config.mode.value, **{str(port): mode.value for port, mode in config.port_modes.items()}}
    return {"modes": modes, "egress": config.egress.value, "forgotten": book.forgotten, "rows": rows}


def policies_dump(status: Mapping[str, Any], held: Told | None) -> dict[str, Any]:
    """The set that is in force, as control told it: what ``tproxy policy explain`` reads."""
    if held is None:
        return {"status": dict(status)}
    objects = [json.loads(one) for one in held.objects]
    told = {"version": held.version, "namespace": held.namespace, "root": held.root, "objects": objects}
    return {"status": dict(status), "held": told}


def identity_dump(status: Mapping[str, Any], snapshot: Snapshot | None) -> dict[str, Any]:
    """What ``tproxy identity`` shows; ``status`` is the keeper's."""
    if snapshot is None:
        return {"status": dict(status)}
    bundles = {domain: [_root(block) for block in pem.certificates(text)] for domain, text in snapshot.bundles.items()}
    return {"status": dict(status), "svid": _svid(snapshot), "bundles": bundles, "crls": len(snapshot.crls)}


def _svid(snapshot: Snapshot) -> dict[str, Any]:
    svid = snapshot.svid
    ends = {"not_before": svid.not_before, "not_after": svid.not_after}
    return {"id": str(svid.id), "serial": f"{svid.serial:x}", **ends}


def _root(block: bytes) -> dict[str, Any]:
    certificate = pem.der(block)
    facts = leaf_facts(certificate)
    known = {} if isinstance(facts, Malformed) else {"uris": list(facts.uris), "not_after": facts.not_after}
    return {"sha256": hashlib.sha256(certificate).hexdigest(), **known}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, IdPattern | Text):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, frozenset | set):
        return sorted(map(_plain, value), key=str)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, int | float | str | bool | None) else str(value)
