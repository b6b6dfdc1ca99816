"""What both directions share: the state of the moment, the caps. State is swapped whole, never changed."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tproxy.core.address import Address
from tproxy.core.directory import Absent, Found
from tproxy.core.plaintext import Talk
from tproxy.core.reason import Deny, Reason
from tproxy.core.record import Record
from tproxy.identity.openssl import Role, Ticket
from tproxy.kernel.sockmap import Shortcut
from tproxy.proxy.compiled import AnyReactor, reactor
from tproxy.proxy.legs import PlainLeg
from tproxy.proxy.tls import Contexts, Session, handshake

if TYPE_CHECKING:
    from tproxy.core.config import Config
    from tproxy.proxy.routers import Routers  # which dials as we do


@dataclass(frozen=True, slots=True)
class State:
    """One generation of configuration and credentials; a connection keeps the one it began with."""

    config: Config
    contexts: Contexts

    @property
    def own(self) -> str:
        """Our SPIFFE id."""
        return str(self.contexts.snapshot.svid.id)

    @property
    def serial(self) -> int:
        """Our certificate's serial number."""
        return self.contexts.snapshot.svid.serial


def no_directory(_: Address) -> Found:
    """None is configured."""
    return Absent.UNLISTED


def unheard(_: Talk) -> None:
    """Nobody asks who speaks plaintext."""


@dataclass(slots=True)
class Side:
    """The sidecar as its connections see it."""

    state: State
    finished: Callable[[Record], None]
    routers: Routers
    reactor: AnyReactor = field(init=False)
    shortcut: Shortcut | None = None
    directory: Callable[[Address], Found] = no_directory
    bare: Callable[[Talk], None] = unheard
    handshakes: int = 0

    def __post_init__(self) -> None:
        self.reactor = reactor(self.state.config.fast.relay, self.state.config.fast.splicer)

    @property
    def most(self) -> int:
        """Connections at once, each way."""
        return self.state.config.limits.connections

    def app_leg(self, sock: socket.socket) -> PlainLeg:
        """The leg towards the application, with the short cut where there is one."""
        return PlainLeg(sock, None if self.shortcut is None else self.shortcut.flow(sock))

    @contextmanager
    def half_open(self) -> Iterator[Deny | None]:
        """Count a handshake for as long as it runs; a refusal when there are too many."""
        limit = self.state.config.limits.handshakes
        if self.handshakes >= limit:
            yield Deny(Reason.HANDSHAKE_LIMIT, f"{limit} handshakes are under way")
            return
        self.handshakes += 1
        try:
            yield None
        finally:
            self.handshakes -= 1

    async def shake(self, sock: socket.socket, role: Role, ticket: Ticket | None = None) -> Session | Deny:
        """A handshake within the cap and the deadline."""
        with self.half_open() as full:
            return full or await handshake(sock, role, self.state.config.limits.handshake, self.reactor, ticket)
