"""Connections that run longer than what they stood on: certificates expire or are revoked, policies change."""

from __future__ import annotations

import time
from collections.abc import Iterable

from tproxy.core.directory import Entry
from tproxy.core.policy import recheck
from tproxy.core.reason import Deny, Reason
from tproxy.core.record import Direction
from tproxy.proxy.side import Side, State
from tproxy.proxy.trace import Trace

_CUTS = {Reason.PEER_REVOKED: Reason.CUT_BY_REVOCATION}


def deadline(state: State, trace: Trace, now: float, clock: float) -> float:
    """When it must end, by the monotonic clock: clocks on walls jump, and what was proven was proven at its start."""
    if trace.proven is None:
        return float("inf")
    first = min(state.contexts.snapshot.svid.not_after, trace.proven.not_after)
    return clock + (first - now) + state.config.limits.grace


def admit(trace: Trace, state: State, side: Side) -> Deny | None:
    """Just before the first byte: what was decided under ``state`` must still hold, and from here on it is watched."""
    trace.carrying, trace.ends = True, deadline(state, trace, time.time(), time.monotonic())
    moved = misplaced((trace,), side) if trace.direction is Direction.EGRESS else ()
    changed = fallen((trace,), state, side.state) if side.state is not state else ()
    deny = next((deny for _, deny in (*moved, *changed)), None)
    if deny is None and trace.bare:
        side.bare(trace.talk)
    return deny


def overdue(traces: Iterable[Trace], clock: float) -> Iterable[tuple[Trace, Deny]]:
    """Those whose time is over."""
    for trace in traces:
        if trace.ends < clock:
            yield (
                trace,
                Deny(Reason.CUT_BY_EXPIRY, "a certificate of this connection has expired, and the grace is over"),
            )


def misplaced(traces: Iterable[Trace], side: Side) -> Iterable[tuple[Trace, Deny]]:
    """Of the application's connections those that would not go where they went: the directory says something else now.

    What it has forgotten says nothing against whom they have proven: pods that end serve their last requests.
    """
    for trace in traces:
        if not trace.carrying:
            continue  # ``admit`` will look at it
        found = side.directory(trace.target.ip)
        if isinstance(found, Entry) and found != trace.found:
            peer = trace.proven.peer if trace.proven else None
            if recheck.is_left(trace.found, found, peer, side.state.config):
                continue  # it stands on what was known when it began
            trace.found = found
            if deny := _policy(trace, side.state):
                yield trace, deny


def fallen(traces: Iterable[Trace], old: State, new: State) -> Iterable[tuple[Trace, Deny]]:
    """Those that would not be admitted under the new State."""
    policy, trust = old.config is not new.config, _trust_of(old) != _trust_of(new)
    for trace in traces:
        if not trace.carrying:
            continue  # ``admit`` will look at it
        deny = (_policy(trace, new) if policy else None) or (disproven(trace, new) if trust else None)
        if deny is not None:
            yield trace, deny


def _trust_of(state: State) -> object:
    snapshot = state.contexts.snapshot
    return snapshot.bundles, snapshot.crls, state.config.trust


def _policy(trace: Trace, state: State) -> Deny | None:
    peer = trace.proven.peer if trace.proven else None
    if trace.direction is Direction.EGRESS:
        facts = trace.source, trace.sni or None, trace.via
        deny = recheck.egress(trace.target, trace.local, peer, state.config, trace.found, *facts)
    else:
        deny = recheck.ingress(trace.target, trace.source, peer, state.config)
    return deny and Deny(Reason.CUT_BY_POLICY, deny.why, deny.rule)


def disproven(trace: Trace, state: State) -> Deny | None:
    """As it would have been judged at its start, by what is known now: expiry is the deadline's business."""
    if trace.proven is None:
        return None
    found = state.contexts.recheck(trace.proven.chain, trace.direction is Direction.EGRESS, trace.began)
    return found and Deny(_CUTS.get(found.reason, Reason.CUT_BY_TRUST), found.why)
