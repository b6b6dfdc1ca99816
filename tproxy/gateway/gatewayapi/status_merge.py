"""What of a status must be written: ours into what is there, and nothing if it says the same already.

PURE. Others write, too: a route has parents of several controllers, and anybody may add a condition. What others said
stays. ``lastTransitionTime`` of a condition is kept as long as its status is (metav1.Condition).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tproxy.gateway.gatewayapi.conditions import CONTROLLER

Status = Mapping[str, Any]
_SHARED = {"parents": "parentRef", "ancestors": "ancestorRef"}
OURS = frozenset({"Accepted", "Programmed", "ResolvedRefs", "Conflicted", "OverlappingTLSConfig", "PartiallyInvalid"})
OURS |= {"InsecureFrontendValidationMode", "SupportedVersion"}


def merged(ours: Status, there: Status, now: str) -> dict[str, Any] | None:
    """The new status, or None if there is nothing to be written; ``now`` as RFC 3339."""
    made = {**there, **ours}
    for key, ref in _SHARED.items():
        if key in ours or key in there:
            made[key] = _shared(ours.get(key, ()), _list(there.get(key)), ref, now)
    if "listeners" in ours:
        old = {each.get("name"): each for each in _list(there.get("listeners"))}
        made["listeners"] = [_timed(each, old.get(each["name"], {}), now) for each in ours["listeners"]]
    if "conditions" in ours:
        made["conditions"] = _timed(ours, there, now)["conditions"]
    return None if made == there else made


def _shared(ours: Sequence[Status], there: list[Status], ref: str, now: str) -> list[Status]:
    """Others' entries where they are, then ours."""
    kept = [each for each in there if each.get("controllerName") != CONTROLLER]
    mine = [each for each in there if each.get("controllerName") == CONTROLLER]
    old = {_frozen(each.get(ref)): each for each in mine}
    return kept + [_timed(each, old.get(_frozen(each[ref]), {}), now) for each in ours]


def _timed(new: Status, old: Status, now: str) -> dict[str, Any]:
    """With times in its conditions, and behind them those that others have set."""
    before = {each.get("type"): each for each in _list(old.get("conditions"))}
    conditions: list[Status] = []
    for each in new.get("conditions", ()):
        was = before.get(each["type"], {})
        since = was.get("lastTransitionTime") if was.get("status") == each["status"] else None
        conditions.append({**each, "lastTransitionTime": since or now})
    conditions += [each for kind, each in before.items() if kind not in OURS]
    return {**new, "conditions": conditions}


def _list(value: Any) -> list[Status]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _frozen(ref: Any) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((str(key), str(value)) for key, value in ref.items())) if isinstance(ref, Mapping) else ()
