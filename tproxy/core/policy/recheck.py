"""Whether a connection that was admitted would be admitted now: after a change of configuration, for each that lives.

Only a change for the worse counts: a connection that is encrypted may stay where plaintext would do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tproxy.core import decide
from tproxy.core.address import Endpoint
from tproxy.core.directory import Absent, Entry, Found, Kind
from tproxy.core.egress.routes import Otherwise
from tproxy.core.identity import SpiffeId
from tproxy.core.reason import Deny, Reason
from tproxy.core.settings import Mixed, Mode

if TYPE_CHECKING:
    from tproxy.core.config import Config


def egress(
    target: Endpoint,
    is_local: bool,
    peer: SpiffeId | None,
    config: Config,
    found: Found = Absent.UNLISTED,
    source: Endpoint | None = None,
    sni: str | None = None,
    router: str = "",
) -> Deny | None:
    """A connection that the application opened; ``peer`` is None for plaintext, ``router`` is who carries it.

    The name that it asked for counts as none if nobody looked at its beginning.
    """
    match decide.egress(target, is_local, config, found, source, sni):
        case Deny() as deny:
            return deny
        case decide.Mtls(_, expect, rule):
            if peer is None:
                return Deny(Reason.POLICY, f"{target} is reached by mTLS only now", rule)
            answer = decide.expected(peer, expect, config, rule)
            return answer if isinstance(answer, Deny) else None
        case decide.Routed(_, by):
            names = [each.name for each, _ in by.routers]
            if peer is not None or router in names or (not router and by.otherwise is Otherwise.DIRECT):
                return None
            return Deny(Reason.POLICY, f"{target} is reached through {' or '.join(names)} only now", by.name)
        case decide.Plain() | decide.Look():
            return None


def is_left(was: Found, now: Found, peer: SpiffeId | None, config: Config) -> bool:
    """Whether plaintext may go on to its end although its service has come into the mesh since: a migration that cut
    what it finds would break calls. Another service at the address is another matter, and so is another mode."""
    if peer is not None or config.directory is None or config.directory.mixed is not Mixed.PLAIN:
        return False
    if not isinstance(was, Entry) or not isinstance(now, Entry):
        return False
    return was.kind is now.kind is Kind.SERVICE and was.name == now.name


def ingress(target: Endpoint, source: Endpoint, peer: SpiffeId | None, config: Config) -> Deny | None:
    """A connection from outside; ``peer`` is None for plaintext."""
    mode = decide.arrival(target, config)
    if isinstance(mode, Deny):
        return mode
    if peer is None and mode is Mode.STRICT:
        return Deny(
            Reason.PLAINTEXT, f"plaintext on port {target.port}, which is strict now", config.mode_rule(target.port)
        )
    answer = decide.authorize(peer, source, target, config)
    return answer if isinstance(answer, Deny) else None
