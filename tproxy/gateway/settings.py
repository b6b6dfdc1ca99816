"""What an operator sets of a gateway besides its routes; every default stands here once."""

from __future__ import annotations

from dataclasses import dataclass

from tproxy.core.address import Network


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds, and caps."""

    host: str = ""  # where listeners without an address bind; empty: everywhere
    hello: float = 5.0  # for a whole ClientHello, and as much for a PROXY header
    connect: float = 10.0
    drain: float = 30.0
    connections: int = 65_536  # at once, each port
    half_open: int = 256  # connections of one address that have not said a whole hello yet
    default_sni: str = ""  # what a client is taken to ask for that asks for no name
    workers: int = 1  # processes on the same ports; caps are each one's own
    worker: int = 0  # which of them this is; UDP is the first one's
    family: str = ""  # a name that these processes share and no others have
    access_log: str = ""  # off, text or json; nothing: as Telemetry objects say, and off without any
    proxy_from: tuple[Network, ...] = ()  # who must send a PROXY header; nobody else may connect then
