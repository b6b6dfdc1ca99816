"""Whether Istio's policies let bytes in, when a connection comes and after each reload; for requests the plan asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from tproxy.core.policy.policy import Policy
from tproxy.core.policy.visit import called
from tproxy.core.reason import Deny, Reason
from tproxy.proxy.trace import Trace


def denied(policy: Policy | None, trace: Trace) -> Deny | None:
    """The refusal, if there is one."""
    if policy is None:
        return None
    answer = policy.check(called(trace, trace.uris, trace.sni, None))
    return answer if isinstance(answer, Deny) else None


def fallen(policy: Policy, traces: Iterable[Trace]) -> Iterator[tuple[Trace, Deny]]:
    """Of those that are carried who would not be let in now."""
    for trace in traces:
        if trace.carrying and (deny := denied(policy, trace)) is not None:
            yield trace, replace(deny, reason=Reason.CUT_BY_POLICY)
