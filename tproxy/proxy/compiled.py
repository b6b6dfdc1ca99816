"""Which relay runs: the compiled one where it was built and fits this OpenSSL, else its twin in Python."""

from __future__ import annotations

from typing import TypeAlias

from tproxy.core.settings import Relay, Splicer
from tproxy.identity.openssl import addresses
from tproxy.proxy.reactor import Reactor
from tproxy.proxy.transport import Line

WHY_NOT = ""
try:
    from tproxy.proxy import _compiled

    _compiled.bind(addresses(_compiled.NEEDED))
except (ImportError, AttributeError) as error:
    WHY_NOT = f"the compiled relay is not there: {error}"

AnyReactor: TypeAlias = "Reactor | _compiled.Reactor"
AnyLine: TypeAlias = "Line | _compiled.Line"


def reactor(wanted: Relay, splicer: Splicer = Splicer.SPLICE) -> Reactor | _compiled.Reactor:
    """A reactor for the running loop. LookupError when only the compiled one would do and it is not there."""
    if wanted is Relay.COMPILED and WHY_NOT:
        raise LookupError(WHY_NOT)
    return Reactor() if WHY_NOT or wanted is Relay.PYTHON else _compiled.Reactor(splicer is Splicer.SPLICE)
