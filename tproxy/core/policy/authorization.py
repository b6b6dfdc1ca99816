"""Istio's AuthorizationPolicy as values: an object has rules, a rule has sources, operations and conditions.

A rule matches if any of its sources, any of its operations and all of its conditions do; an object if any rule does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tproxy.core.policy.conditions import Call, Condition

Clause = tuple[Condition, ...]  # all must hold; an empty one does


class Action(StrEnum):
    """What a match means. AUDIT decides nothing: it is written into the record, and nowhere else."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"


@dataclass(frozen=True, slots=True)
class AuthorizationRule:
    """One entry of ``rules``; the empty rule matches everyone."""

    sources: tuple[Clause, ...] = ()
    operations: tuple[Clause, ...] = ()
    when: Clause = ()

    def matches(self, call: Call) -> bool:
        """Whether the call fulfils it: the cheapest question first."""
        return _any(self.operations, call) and _all(self.when, call) and _any(self.sources, call)

    def misses(self, call: Call) -> tuple[Condition, ...]:
        """The conditions that do not hold, of the source and the operation that came closest."""
        return (*_closest(self.sources, call), *_closest(self.operations, call), *_failing(self.when, call))


def _any(clauses: Sequence[Clause], call: Call) -> bool:
    return not clauses or any(_all(clause, call) for clause in clauses)


def _all(clause: Clause, call: Call) -> bool:
    return all(condition.holds(call) for condition in clause)


def _closest(clauses: Sequence[Clause], call: Call) -> Clause:
    return min((_failing(clause, call) for clause in clauses), key=len, default=())


def _failing(clause: Clause, call: Call) -> Clause:
    return tuple(condition for condition in clause if not condition.holds(call))


@dataclass(frozen=True, slots=True)
class Authorization:
    """One object; no rules match nobody, so an ALLOW without rules denies whatever no other object allows."""

    name: str  # namespace/name
    action: Action
    rules: tuple[AuthorizationRule, ...]

    def match(self, call: Call) -> str:
        """The first rule that matches, as namespace/name[index]; empty if none does."""
        found = (index for index, rule in enumerate(self.rules) if rule.matches(call))
        return next((f"{self.name}[{index}]" for index in found), "")


def first(objects: Iterable[Authorization], action: Action, call: Call) -> str:
    """The first match among objects of one action, or nothing."""
    matches = (each.match(call) for each in objects if each.action is action)
    return next(filter(None, matches), "")
