"""Gateway API's listeners beside one another on a port: who conflicts with whom, whose names overlap.

Within one object neither of two wins (gateway_types.go, "Listeners"); a ListenerSet's listener yields to those of its
Gateway and of older ListenerSets (GEP-1713).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tproxy.core.hostnames import intersection
from tproxy.gateway.gatewayapi.listeners import FAMILY, Listener


def conflicts(owners: Iterable[Sequence[Listener]]) -> None:
    """The listeners of a Gateway, then those of its ListenerSets, the oldest first."""
    settled: list[Listener] = []
    for own in owners:
        for one in own:
            if found := _first(one, settled):
                _say(one, *found)
        left = [one for one in own if "Conflicted" not in one.conditions.found]
        for one, found in [(one, _first(one, left)) for one in left]:
            if found:
                _say(one, *found)
        settled += [one for one in left if "Conflicted" not in one.conditions.found and one.protocol in FAMILY]


def _first(one: Listener, others: Iterable[Listener]) -> tuple[str, Listener] | None:
    return next(((why, other) for other in others if (why := clash(one, other))), None)


def clash(one: Listener, other: Listener) -> str:
    """The reason why two listeners cannot share a port; empty if they can, or do not."""
    if other is one or other.port != one.port or one.protocol not in FAMILY or other.protocol not in FAMILY:
        return ""
    if (one.protocol == "UDP") != (other.protocol == "UDP"):  # ports of their own
        return ""
    if FAMILY[one.protocol] != FAMILY[other.protocol]:
        return "ProtocolConflict"
    return "HostnameConflict" if one.hostname == other.hostname or one.protocol in ("TCP", "UDP") else ""


def _say(one: Listener, reason: str, other: Listener) -> None:
    where = other.name if other.owner is one.owner else other.title
    message = f"port {one.port} is also {other.protocol} {other.hostname} by listener {where}"
    one.conditions.set("Accepted", False, reason if one.owner.kind == "Gateway" else "Conflicted", message)
    one.conditions.set("Conflicted", True, reason, message)


def overlaps(listeners: Iterable[Listener]) -> None:
    """A connection for one HTTPS name may carry requests for another (RFC 9110, 7.4): that this can be is said."""
    found = [one for one in listeners if one.protocol == "HTTPS" and "Conflicted" not in one.conditions.found]
    for one in found:
        near = next((o for o in found if o is not one and o.port == one.port and _meet(o, one)), None)
        if near:
            message = f"{one.hostname} and {near.hostname} of listener {near.name} have names in common"
            one.conditions.set("OverlappingTLSConfig", True, "OverlappingHostnames", message)


def _meet(one: Listener, other: Listener) -> bool:
    return intersection(one.hostname, other.hostname) is not None


def settle(listeners: Iterable[Listener]) -> None:
    """What has not been said is well."""
    for one in listeners:
        conditions = one.conditions
        conditions.default("Accepted", True, "Accepted")
        conditions.default("Conflicted", False, "NoConflicts")
        conditions.default("ResolvedRefs", True, "ResolvedRefs")
        good = conditions.holds("Accepted") and (conditions.holds("ResolvedRefs") or _some(one))
        conditions.set("Programmed", good, "Programmed" if good else "Invalid")


def _some(one: Listener) -> bool:
    """Unknown route kinds beside known ones leave a listener usable; a missing certificate does not."""
    return one.conditions.found["ResolvedRefs"]["reason"] == "InvalidRouteKinds" and bool(one.kinds)
