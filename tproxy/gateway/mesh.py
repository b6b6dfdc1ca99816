"""The gateway as one of the mesh: its own SVID towards sidecars, and for clients where a server is ISTIO_MUTUAL.

A client's chain must lead to the bundle of its own trust domain, as among sidecars; it is asked again when that
changes, and a connection ends soon after the first of its certificates.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cryptography import x509

from tproxy.core.reason import Deny, Reason
from tproxy.core.routes import ClientCheck
from tproxy.gateway.contexts import judge_of
from tproxy.identity.openssl import Role
from tproxy.proxy.live import deadline, disproven
from tproxy.proxy.side import State
from tproxy.proxy.tls import Contexts, Session, front
from tproxy.proxy.trace import Trace

NOWHERE = Deny(Reason.NO_CREDENTIALS, "the gateway has no identity in the mesh (yet): --mesh gives it one")


@dataclass(frozen=True, slots=True)
class Mesh:
    """One generation of our identity."""

    state: State
    _roles: dict[object, Role] = field(default_factory=dict)

    @property
    def contexts(self) -> Contexts:
        """Towards sidecars."""
        return self.state.contexts

    def server(self, alpn: tuple[str, ...], minimum: str) -> Role:
        """For clients; of two least versions, the mesh's and the server's, the greater."""
        config = self.state.config
        tls12 = config.tls12 and minimum != "1.3"
        found = self._roles.get((alpn, tls12))
        if found is None:
            found = self._roles[alpn, tls12] = front(self.contexts, config, alpn, tls12)
        return found

    def admit(self, trace: Trace, session: Session, check: ClientCheck | None) -> Deny | None:
        """Who has proven to be whom; from here on it is watched. A refusal if it is nobody that is wanted."""
        trace.session(session)
        trace.own = self.state.own
        trace.own_serial = f"{self.state.serial:x}"
        trace.ends = deadline(self.state, trace, time.time(), time.monotonic())
        if check is None:
            return None
        try:
            why = judge_of(check)(x509.load_der_x509_certificate(session.chain[0]), ())
        except ValueError as error:
            why = f"the client's certificate cannot be read: {error}"
        return Deny(Reason.CLIENT_UNTRUSTED, why) if why else None

    def fallen(self, traces: Iterable[Trace]) -> Iterator[tuple[Trace, Deny]]:
        """Of those that were admitted by another generation who would not be now."""
        for trace in traces:
            if (deny := disproven(trace, self.state)) is not None:
                yield trace, deny
