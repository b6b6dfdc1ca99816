"""Who may speak to whom. As Istio's AuthorizationPolicy: once a rule selects a port, what no rule allows is refused.

>>> from tproxy.core.address import parse_address
>>> Policy(()).check(8080, None, parse_address("10.0.0.7"))
Allow(rule='default: no rule selects port 8080')
"""

from __future__ import annotations

from dataclasses import dataclass

from tproxy.core.address import Address, Network, contains
from tproxy.core.identity import IdPattern, SpiffeId
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
    """All inbound rules of a pod."""

    rules: tuple[Rule, ...]

    def selects(self, port: int) -> bool:
        """Whether any rule has a say about the port."""
        return any(rule.selects(port) for rule in self.rules)

    def check(self, port: int, peer: SpiffeId | None, source: Address) -> Allow | Deny:
        """Decide for a caller whose id is verified already, or who has none (plaintext on a permissive port)."""
        selecting = [rule for rule in self.rules if rule.selects(port)]
        for rule in selecting:
            if rule.allows(peer, source):
                return Allow(rule.name)
        if not selecting:
            return Allow(f"default: no rule selects port {port}")
        names = ", ".join(rule.name for rule in selecting)
        return Deny(Reason.POLICY, f"{peer or 'a caller without identity'} at {source} is not allowed", names)
