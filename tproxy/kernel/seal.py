"""A name for our rules as the kernel lists them; ``tproxy init`` leaves it in the table, as an empty chain.

Rules come back from the kernel in another form than they were given, and how depends on the library: so what was
listed right after the installation is compared with what is listed now, where the same version does both.

>>> one = {"nftables": [{"metainfo": {"version": "1.0.6"}}, {"rule": {"chain": "a", "handle": 7, "expr": ["accept"]}}]}
>>> seal(one)
'listed_5cb4316a_00603746c48f7e47'
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tproxy.core.ruleset import TABLE
from tproxy.kernel import nft

PREFIX = "listed_"


def leave() -> None:
    """Into the table, which has just been made."""
    if (table := nft.table_json(TABLE)) is not None:
        nft.apply(f"add chain inet {TABLE} {seal(table)}\n")


def seal(table: dict[str, Any]) -> str:
    """Of libnftables' listing: its version, and all rules in their order without what changes by itself."""
    listed = table["nftables"]
    version = next((one["metainfo"].get("version") for one in listed if "metainfo" in one), None)
    rules = [_lasting(one["rule"]) for one in listed if "rule" in one]
    return f"{PREFIX}{_hash(version)[:8]}_{_hash(rules)[:16]}"


def is_broken(table: dict[str, Any], chains: list[str]) -> bool:
    """Whether rules are others than when the table was sealed. Without a seal of this library nobody knows."""
    now = seal(table)
    version = now.rpartition("_")[0]
    then = [name for name in chains if name.startswith(f"{version}_")]
    return bool(then) and then != [now]


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: None if key == "counter" else _lasting(one) for key, one in value.items() if key != "handle"}
    return [_lasting(one) for one in value] if isinstance(value, list) else value


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
