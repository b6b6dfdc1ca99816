"""Which certificate a client is shown: contexts by Secret and settings, kept for as long as neither changes.

A reload makes new contexts for what changed only, so that tickets of the others still resume. Keys are in OpenSSL's
hands from then on; what was read of them is not kept here longer than the next reload needs to compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tproxy.core.reason import Deny, Reason
from tproxy.core.routes import BackendTls, ServerTls
from tproxy.gateway.secrets import Material
from tproxy.identity import fronts
from tproxy.identity.openssl import Role, TlsError


@dataclass(slots=True)
class Contexts:
    """One generation of credentials."""

    material: Mapping[str, Material] = field(default_factory=dict)
    _made: dict[object, Role] = field(default_factory=dict)

    def following(self, material: Mapping[str, Material]) -> Contexts:
        """The next generation; what is the same in both is kept."""
        return Contexts(material, self._made)

    def server(self, tls: ServerTls, sni: str, alpn: tuple[str, ...]) -> Role | Deny:
        """For a client that asks for this name."""
        chosen = [self.material[name] for name in tls.secrets if name in self.material][:1]
        if not chosen:
            return Deny(Reason.NO_CREDENTIALS, f"no certificate: Secret {', '.join(tls.secrets)} is missing")
        key = (tuple(one.digest for one in chosen), alpn)
        role = self._made.get(key)
        if role is None:
            try:
                role = fronts.server([one.pair for one in chosen], alpn)
            except TlsError as error:
                return Deny(Reason.NO_CREDENTIALS, f"Secret {tls.secrets[0]}: {error.why}")
            self._made[key] = role
        return role

    def client(self, tls: BackendTls, alpn: tuple[str, ...]) -> Role | Deny:
        """Towards a backend."""
        return Deny(Reason.NOT_CARRIED, f"TLS {tls.mode} towards backends")
