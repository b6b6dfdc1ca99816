"""Why a caller would be let in or refused: who decides, and how far every other rule was from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tproxy.core import decide
from tproxy.core.address import Endpoint
from tproxy.core.config import Config, Mode
from tproxy.core.hello import NotTls
from tproxy.core.identity import SpiffeId
from tproxy.core.policy.conditions import Call
from tproxy.core.policy.policy import Allow, Policy, Rule
from tproxy.core.reason import Deny


@dataclass(frozen=True, slots=True)
class Line:
    """One rule: what it does, and which conditions keep it from this caller (none: it matches)."""

    rule: str
    action: str
    misses: tuple[str, ...]

    @property
    def result(self) -> str:
        """For people."""
        return f"misses: {'; '.join(self.misses)}" if self.misses else "matches"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer and everything that had a say, what matches first, then what came closest."""

    allowed: bool
    rule: str
    why: str
    mode: str
    dry_run: str
    audit: str
    lines: tuple[Line, ...]
    aside: tuple[str, ...]  # objects for other workloads


def explain(peer: SpiffeId | None, source: Endpoint, target: Endpoint, config: Config) -> Explanation:
    """``peer`` is None for plaintext. The Config is settled."""
    if config.mode_of(target.port) is Mode.DISABLE:
        peer = None  # nobody is asked who he is
    answer = _answer(peer, source, target, config)
    call = decide.called(peer, source, target, config)
    denied = isinstance(answer, Deny)
    return Explanation(
        allowed=not denied,
        rule=answer.rule,
        why=answer.why if isinstance(answer, Deny) else f"{call} is allowed on port {call.port}",
        mode=config.mode_rule(target.port),
        dry_run=config.policy.dry_run(call),
        audit=config.policy.audit(call),
        lines=tuple(sorted(lines(config.policy, call), key=lambda line: len(line.misses))),
        aside=_aside(config),
    )


def _answer(peer: SpiffeId | None, source: Endpoint, target: Endpoint, config: Config) -> Allow | Deny:
    mode = decide.arrival(target, config)
    if isinstance(mode, Deny):
        return mode
    if peer is None:
        first = decide.ingress(target, mode, NotTls("first byte is not that of TLS"), config.mode_rule(target.port))
        if isinstance(first, Deny):
            return first
    return decide.authorize(peer, source, target, config)


def lines(policy: Policy, call: Call) -> list[Line]:
    """Every rule, and how far it is from the caller."""
    found = [Line(rule.name, "inbound.rules", _ours(rule, call)) for rule in policy.rules]
    named = [(each, each.action.value) for each in policy.objects]
    named += [(each, f"{each.action} (dry-run)") for each in policy.trials]
    for each, action in named:
        for index, rule in enumerate(each.rules):
            misses = tuple(condition.found(call) for condition in rule.misses(call))
            found.append(Line(f"{each.name}[{index}]", action, misses))
        if not each.rules:
            found.append(Line(each.name, action, ("has no rules, so it matches nobody",)))
    return found


def _ours(rule: Rule, call: Call) -> tuple[str, ...]:
    """Each condition alone."""
    alone = {
        "ids": Rule("", ids=rule.ids),
        "namespaces": Rule("", namespaces=rule.namespaces, domain=rule.domain),
        "sources": Rule("", sources=rule.sources),
    }
    misses = [f"{name} does not hold" for name, one in alone.items() if not one.allows(call.peer, call.source)]
    return tuple(misses if rule.selects(call.port) else [f"ports has no {call.port}", *misses])


def _aside(config: Config) -> tuple[str, ...]:
    if config.settled is None:
        return ()
    workload = replace(config.workload, namespace=config.settled.namespace)
    reasons = ((each.title, each.aside(workload)) for each in config.manifests)
    return tuple(f"{title} {why}" for title, why in reasons if why)
