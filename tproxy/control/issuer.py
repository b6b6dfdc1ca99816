"""Issuing: sign, write down, and only then hand out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from tproxy.control import authority, signer
from tproxy.control.authenticate import Caller
from tproxy.control.authority import Pair, PublicKey
from tproxy.control.config import Name
from tproxy.control.ledger import Ledger
from tproxy.control.refusal import Refused, Why
from tproxy.control.signer import Signer
from tproxy.control.state import Entry, Outcome, State
from tproxy.core.fields import ConfigError
from tproxy.core.identity import SpiffeId

log = logging.getLogger("tproxy")
TRIES = 5  # a rotation step or a serial taken: both are rare
SELF = "self"


@dataclass(frozen=True, slots=True)
class Made:
    """A certificate that is in the log, with what goes out."""

    entry: Entry
    leaf: x509.Certificate
    signer: Signer  # of then, which may be another one now

    def chain(self) -> list[str]:
        """PEM: leaf, intermediate, all roots."""
        return self.signer.chain(self.leaf)


class Issuer:
    """Owns the signer; ``state`` is for reading, the ledger writes."""

    def __init__(self, folder: Path, state: State, ledger: Ledger, max_ttl: int) -> None:
        self._folder, self._state, self._ledger, self._max_ttl = folder, state, ledger, max_ttl
        self.signer = signer.load(folder, state)

    def refresh(self) -> None:
        """Take up a rotation step, or replace a signer that is past half of its life."""
        self.signer = signer.load(self._folder, self._state, self.signer)

    async def issue(self, caller: Caller, key: PublicKey, seconds: int, address: str) -> Made | Refused:
        """For a caller whose id is proven; ``seconds`` were asked for, 0 for the default."""
        life = min(seconds, self._max_ttl) if seconds > 0 else self._max_ttl
        try:
            return await self._issue(caller, key, life, address, ())
        except ConfigError as error:
            log.error("no certificate for %s: %s", caller.id, error)
            return Refused(Why.STATE, "the authority's files cannot be read or written now", str(caller.id))

    async def serving(self, names: Sequence[Name]) -> tuple[Made, Pair]:
        """Our own certificate, for clients that dial these names; ConfigError if it cannot be made."""
        key = authority.new_key("ecdsa")
        caller = Caller(SpiffeId(self.signer.trust_domain, ("tproxy", "control")), SELF, SELF)
        sans = [x509.DNSName(name) if isinstance(name, str) else x509.IPAddress(name) for name in names]
        made = await self._issue(caller, key.public_key(), self._max_ttl, "", sans)
        if isinstance(made, Refused):
            raise ConfigError(str(self._folder), "--dir", made.why)
        return made, Pair(made.leaf, key)

    async def _issue(
        self, caller: Caller, key: PublicKey, life: int, address: str, names: Sequence[x509.GeneralName]
    ) -> Made | Refused:
        who = str(caller.id)
        for _ in range(TRIES):
            now, signs = authority.utc_now(), self.signer
            if signs.ends() <= now:
                return Refused(Why.SIGNER, f"the signing certificate ended at {signs.ends()}", who)
            leaf = authority.issue(signs.pair, caller.id, key, timedelta(seconds=life), now, names)
            entry = _entry(caller, leaf, signs, address)
            match await self._ledger.add(entry):
                case Outcome.DONE:
                    return Made(entry, leaf, signs)
                case Outcome.TOKEN:
                    return Refused(Why.JOIN_TOKEN, f"the join token {caller.token} is used up or revoked", who)
                case Outcome.STALE:
                    self.refresh()
                case Outcome.TAKEN:
                    pass
        return Refused(Why.OVERLOAD, "rotation steps came one after the other", who)


def _entry(caller: Caller, leaf: x509.Certificate, signs: Signer, address: str) -> Entry:
    return Entry(
        serial=f"{leaf.serial_number:x}",
        id=str(caller.id),
        holder=caller.holder,
        caller=address,
        pod=caller.pod,
        how=caller.how,
        not_before=int(leaf.not_valid_before_utc.timestamp()),
        not_after=int(leaf.not_valid_after_utc.timestamp()),
        generation=signs.generation,
        version=signs.version,
        token=caller.token,
    )
