"""VirtualServices whose rules stand in others (``delegate``): what both say, together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from tproxy.core.http.filters import NO_FILTERS, NO_TIMEOUTS, Filters, HeaderChange
from tproxy.core.http.routes import Kind, Match, Rule, Text
from tproxy.gateway.findings import Findings
from tproxy.gateway.istio.faults import DEFAULT
from tproxy.gateway.istio.http import HttpRule
from tproxy.gateway.istio.matches import Condition
from tproxy.gateway.istio.virtual import Virtual


def resolved(virtuals: Iterable[Virtual], findings: Findings) -> list[Virtual]:
    """Those that have hosts, each with all of its rules."""
    found = list(virtuals)
    delegates = {f"{made.thing.namespace}/{made.thing.name}": made for made in found if not made.hosts}
    return [replace(made, http=tuple(_rules(made, delegates, findings))) for made in found if made.hosts]


def _rules(made: Virtual, delegates: Mapping[str, Virtual], findings: Findings) -> Iterator[HttpRule]:
    for root in made.http:
        if not root.delegate:
            yield root
        elif (delegate := delegates.get(root.delegate)) is None:
            findings.warn(
                made.thing, f"{root.path}.delegate", f"there is no VirtualService {root.delegate} without hosts"
            )
        else:
            for rule in delegate.http:
                yield from _merged(root, rule, delegate, findings)


def _merged(root: HttpRule, rule: HttpRule, delegate: Virtual, findings: Findings) -> Iterator[HttpRule]:
    if rule.delegate:
        findings.error(delegate.thing.error(rule.path, "delegate HTTP route cannot contain delegate"))
        return
    conditions = tuple(
        both for one in root.conditions for other in rule.conditions if (both := _both(one, other)) is not None
    )
    if conditions:
        yield HttpRule(conditions, _rule(root.rule, rule.rule), path=rule.path)
    else:
        findings.warn(delegate.thing, rule.path, f"has no match in common with {root.rule.name}; it is not used")


def _both(one: Condition, other: Condition) -> Condition | None:
    """What holds when both do, if one match can say it."""
    path = _path(one.match.path, other.match.path)
    texts = [_same(*pair) for pair in _pairs(one.match, other.match)]
    if path is False or False in texts or (one.port and other.port and one.port != other.port):
        return None
    method, scheme, authority = (text if isinstance(text, Text) else None for text in texts)
    match = Match(
        path=path if isinstance(path, Text) else None,
        method=method,
        headers=one.match.headers + other.match.headers,
        without=one.match.without + other.match.without,
        query=one.match.query + other.match.query,
        scheme=scheme,
        authority=authority,
    )
    return Condition(match, one.port or other.port, one.gateways)


def _pairs(one: Match, other: Match) -> tuple[tuple[Text | None, Text | None], ...]:
    return (one.method, other.method), (one.scheme, other.scheme), (one.authority, other.authority)


def _same(one: Text | None, other: Text | None) -> Text | bool | None:
    """One of them, or False where they differ."""
    return (one or other) if None in (one, other) or one == other else False


def _path(root: Text | None, other: Text | None) -> Text | bool | None:
    """The narrower path; False where the delegate's is not within the root's."""
    if root is None or other is None or root == other:
        return root or other
    within = root.kind is Kind.PREFIX and other.kind in (Kind.PREFIX, Kind.EXACT)
    return other if within and root.ignore_case == other.ignore_case and root.matches(other.value) else False


def _rule(root: Rule, rule: Rule) -> Rule:
    """The delegate's; where it says nothing, the root's."""
    filters = NO_FILTERS
    if root.filters is not NO_FILTERS or rule.filters is not NO_FILTERS:
        above, own = root.filters, rule.filters
        filters = Filters(
            request=_change(above.request, own.request),
            response=_change(above.response, own.response),
            redirect=own.redirect,
            rewrite=own.rewrite or (None if own.redirect else above.rewrite),
            mirrors=own.mirrors or above.mirrors,
            cors=own.cors or above.cors,
        )
    return replace(
        rule,
        name=f"{root.name} -> {rule.name}",
        filters=filters,
        timeouts=root.timeouts if rule.timeouts == NO_TIMEOUTS else rule.timeouts,
        retry=root.retry if rule.retry is DEFAULT else rule.retry,
        fault=rule.fault or root.fault,
    )


def _change(above: HeaderChange, own: HeaderChange) -> HeaderChange:
    return HeaderChange(
        above.set + own.set, above.add + own.add, above.remove + own.remove, above.formats + own.formats
    )
