"""What AuthorizationPolicies say of the caller that ``tproxy gateway explain`` is asked about."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tproxy.cli.policy import caller
from tproxy.core.address import Endpoint, parse_address
from tproxy.core.fields import ConfigError
from tproxy.core.policy.conditions import Attribute, Call
from tproxy.core.policy.policy import Policy
from tproxy.core.policy.visit import called
from tproxy.core.reason import Deny

if TYPE_CHECKING:
    from tproxy.core.http.routes import Request
    from tproxy.core.record import TlsFacts

NOBODY = parse_address("192.0.2.1")  # RFC 5737
_ADDRESSES = (Attribute.SOURCE_IP, Attribute.REMOTE_IP)


@dataclass(slots=True)
class Asker:
    """A connection that nobody made; it is a ``Link``."""

    source: Endpoint
    target: Endpoint
    carrier: Endpoint | None = None
    tls: TlsFacts | None = None
    own: str = ""


def verdict(
    args: argparse.Namespace, policy: Policy | None, port: int, sni: str, asked: Request | None
) -> tuple[str, list[str]]:
    """The refusal, if there is one, and what each rule has to do with it."""
    if policy is None:
        return "", []
    peer, source = caller(args.callers)
    if source is None and any(condition.attribute in _ADDRESSES for condition in policy.conditions()):
        raise ConfigError("command line", "--from", "is missing: an AuthorizationPolicy here asks for the address")
    asker = Asker(Endpoint(source or NOBODY, 0), Endpoint(NOBODY, port))
    call = called(asker, (str(peer),) if peer else (), sni, asked)
    answer = policy.check(call)
    if isinstance(answer, Deny):
        return f"{answer.why}: {answer.rule}", list(_misses(policy, call))
    return "", [f"let in by {answer.rule}" if ": " not in answer.rule else "let in: no policy is against it"]


def _misses(policy: Policy, call: Call) -> list[str]:
    lines = []
    for each in policy.objects:
        for index, rule in enumerate(each.rules):
            misses = "; ".join(condition.found(call) for condition in rule.misses(call))
            lines.append(f"{each.action} {each.name}[{index}] {f'misses: {misses}' if misses else 'matches'}")
        if not each.rules:
            lines.append(f"{each.action} {each.name} has no rules: it matches nobody")
    return lines
