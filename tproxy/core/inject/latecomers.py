"""Containers that came into an injected pod after us: another webhook's, or an editor's.

The API server calls a webhook again when a later one has changed the pod (``reinvocationPolicy: IfNeeded``). Who came
late is treated like everyone else: no NET_RAW, not the sidecar's uid, probes that work under strict. A pod in which
nobody came late is left as it is. What stands before tproxy-init is not captured while it runs; it is warned of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tproxy.core.config import Config
from tproxy.core.inject import checks
from tproxy.core.inject.containers import env, read_env
from tproxy.core.inject.draft import draft
from tproxy.core.inject.guard import check_clashes, drop_net_raw
from tproxy.core.inject.injection import INIT, SIDECAR, Injection
from tproxy.core.inject.probes import PROBERS, Rewriting
from tproxy.core.inject.wishes import Wishes

_KINDS = ("initContainers", "containers")


def settle(pod: Mapping[str, Any], wish: Wishes, settings: Injection, where: str) -> tuple[dict[str, Any], list[str]]:
    """The pod as it should be, and warnings. ConfigError if somebody in it cannot stand beside a sidecar."""
    new = draft(pod)
    spec, config = new["spec"], Config.parse(settings.config, f"{where}: settings")
    others = {kind: [one for one in spec.get(kind) or [] if one.get("name") not in (INIT, SIDECAR)] for kind in _KINDS}
    check_clashes({**spec, **others, "volumes": []}, config, where)
    warnings = drop_net_raw(others, wish.net_raw, where)
    if wish.rewrite:
        rewriting = Rewriting(config.ports.metrics, settings.key)
        rewriting.pod({**spec, **others})
        warnings += rewriting.warnings
        if rewriting.probers:
            _declare(spec, rewriting.probers, f"{where}: {PROBERS}")
    names = [one.get("name") for one in spec.get("initContainers") or []]
    warnings += [f"init container {name}: runs before {INIT}, uncaptured" for name in names[: names.index(INIT)]]
    return new, warnings


def _declare(spec: Mapping[str, Any], probers: Mapping[str, Any], where: str) -> None:
    """More checks behind those that the sidecar knows."""
    ours = next(one for kind in _KINDS for one in spec.get(kind) or [] if one.get("name") == SIDECAR)
    kept = [one for one in ours.get("env") or [] if one.get("name") != PROBERS]
    old = read_env(ours, PROBERS) or "{}"
    checks.parse(old, where)  # else it is not ours
    ours["env"] = [*kept, env(PROBERS, {**json.loads(old), **probers})]
