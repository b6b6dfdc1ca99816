"""Who may speak to whom: our own rules, and Istio's objects beside them. Where both are, both must agree.

Our rules: once a rule selects a port, what no rule allows is refused. Istio's: what a DENY matches is refused; once
there is an ALLOW, what none matches is refused; AUDIT and dry-run decide nothing.

>>> from tproxy.core.address import parse_address
>>> Policy(()).check(Call(8080, None, parse_address("10.0.0.7"), parse_address("10.0.0.8")))
Allow(rule='default: no rule selects port 8080')
"""

from __future__ import annotations

from dataclasses import dataclass

from tproxy.core.address import Address, Network, contains
from tproxy.core.identity import IdPattern, SpiffeId
from tproxy.core.policy.authorization import Action, Authorization, first
from tproxy.core.policy.conditions import Attribute, Call
from tproxy.core.reason import Deny, Reason


@dataclass(frozen=True, slots=True)
class Allow:
    """Permission, and the rule that gave it."""

    rule: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Allows callers: every given condition must hold, any value within one suffices; no ports means every port."""

    name: str
    ports: frozenset[int] = frozenset()
    ids: tuple[IdPattern, ...] = ()
    namespaces: frozenset[str] = frozenset()
    sources: tuple[Network, ...] = ()
    domain: str = ""  # whose namespaces these are: another trust domain may have one of the same name

    def selects(self, port: int) -> bool:
        """Whether this rule has a say about the port."""
        return not self.ports or port in self.ports

    def allows(self, peer: SpiffeId | None, source: Address) -> bool:
        """Whether this caller fulfils every condition; without an id, conditions on ids never hold."""
        return (
            (not self.ids or (peer is not None and any(pattern.matches(peer) for pattern in self.ids)))
            and (not self.namespaces or (peer is not None and self._namespace(peer)))
            and (not self.sources or contains(self.sources, source))
        )

    def _namespace(self, peer: SpiffeId) -> bool:
        return peer.namespace in self.namespaces and self.domain in ("", peer.trust_domain)


@dataclass(frozen=True, slots=True)
class Policy:
    """All that decides who may call a pod: ``inbound.rules``, and the objects that apply to it."""

    rules: tuple[Rule, ...]
    objects: tuple[Authorization, ...] = ()
    trials: tuple[Authorization, ...] = ()  # dry-run: they decide nothing
    closed: str = ""  # why nobody is let in, whatever the rest says

    def selects(self, port: int) -> bool:
        """Whether anything here names who may call the port."""
        return any(rule.selects(port) for rule in self.rules) or bool(_allowing(self.objects))

    def asks_for(self, attribute: Attribute) -> bool:
        """Whether anything here depends on this fact, so that it must be known."""
        ours = attribute is Attribute.SOURCE_IP and any(rule.sources for rule in self.rules)
        rules = [rule for each in (*self.objects, *self.trials) for rule in each.rules]
        clauses = [clause for rule in rules for clause in (*rule.sources, *rule.operations, rule.when)]
        return ours or any(condition.attribute is attribute for clause in clauses for condition in clause)

    def check(self, call: Call) -> Allow | Deny:
        """Decide for a caller whose id is verified already, or who has none (plaintext on a permissive port)."""
        return self._decide(self.objects, call)

    def dry_run(self, call: Call) -> str:
        """What would be decided if the trials were in force; empty where there are none."""
        if not self.trials:
            return ""
        answer = self._decide((*self.objects, *self.trials), call)
        return f"{'deny' if isinstance(answer, Deny) else 'allow'}: {answer.rule}"

    def audit(self, call: Call) -> str:
        """The AUDIT rules that match, with commas between them."""
        audits = (each.match(call) for each in self.objects if each.action is Action.AUDIT)
        return ", ".join(filter(None, audits))

    def _decide(self, objects: tuple[Authorization, ...], call: Call) -> Allow | Deny:
        if self.closed:
            return Deny(Reason.POLICIES_AWAY, f"{call} is not let in: {self.closed}", "policies.control")
        if call.ids:  # X509-SVID, 2: who validates must reject it
            names = ", ".join(map(str, call.ids[:3]))
            why = f"{call.source} shows a certificate with {len(call.ids)} SPIFFE ids: {names}"
            return Deny(Reason.PEER_MANY_IDS, why, "default: an SVID has one SPIFFE id")
        if denied := first(objects, Action.DENY, call):
            return Deny(Reason.POLICY, f"{call} is denied on port {call.port}", denied)
        selecting = [rule for rule in self.rules if rule.selects(call.port)]
        ours = next((rule.name for rule in selecting if rule.allows(call.peer, call.source)), "")
        if selecting and not ours:
            return _not_allowed(call, [rule.name for rule in selecting])
        allowing = _allowing(objects)
        theirs = first(allowing, Action.ALLOW, call)
        if allowing and not theirs:
            return _not_allowed(call, [each.name for each in allowing])
        return Allow(", ".join(filter(None, (ours, theirs))) or f"default: no rule selects port {call.port}")


def _allowing(objects: tuple[Authorization, ...]) -> tuple[Authorization, ...]:
    return tuple(each for each in objects if each.action is Action.ALLOW)


def _not_allowed(call: Call, names: list[str]) -> Deny:
    return Deny(Reason.POLICY, f"{call} is not allowed", ", ".join(names))
