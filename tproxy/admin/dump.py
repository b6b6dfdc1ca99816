"""The effective configuration as JSON: what the sidecar decides by, never a key."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any

from tproxy.core.config import Config
from tproxy.core.identity import IdPattern, Snapshot


def config_dump(config: Config, snapshot: Snapshot) -> dict[str, Any]:
    """Config and identity in plain types; sets are sorted so that two dumps can be compared."""
    svid = snapshot.svid
    identity = {
        "id": str(svid.id),
        "serial": f"{svid.serial:x}",
        "not_before": svid.not_before,
        "not_after": svid.not_after,
        "trust_domains": sorted(snapshot.bundles),
    }
    return {"config": _plain(config), "identity": identity}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, IdPattern):
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
