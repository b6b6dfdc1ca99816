"""What AuthorizationPolicies say of the caller that ``tproxy gateway explain`` is asked about."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tproxy.cli.policy import caller
from tproxy.core.address import Endpoint, parse_address
from tproxy.core.fields import ConfigError
from tproxy.core.policy.conditions import Attribute
from tproxy.core.policy.explain import lines
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
    if source is None and any(map(policy.asks_for, _ADDRESSES)):
        raise ConfigError("command line", "--from", "is missing: an AuthorizationPolicy here asks for the address")
    asker = Asker(Endpoint(source or NOBODY, 0), Endpoint(NOBODY, port))
    call = called(asker, (str(peer),) if peer else (), sni, asked)
    answer = policy.check(call)
    if isinstance(answer, Deny):
        return f"{answer.why}: {answer.rule}", [
            f"{line.action} {line.rule} {line.result}" for line in lines(policy, call)
        ]
    return "", [f"let in by {answer.rule}" if ": " not in answer.rule else "let in: no policy is against it"]
