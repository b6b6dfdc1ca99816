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
    stall: float = 300.0  # without a byte of a body that is wanted, or with too few of a request's
    body_rate: int = 4  # bytes a second that are not too few; 0: a body may trickle
    ping_clients: float = 60.0  # of silence on HTTP/2 with open streams, until a client is asked whether it is there
    ping_backends: float = 300.0  # gRPC's servers take more than this for abuse; 0: never
    default_sni: str = ""  # what a client is taken to ask for that asks for no name
    workers: int = 1  # processes on the same ports; caps are each one's own
    worker: int = 0  # which of them this is; UDP is the first one's
    family: str = ""  # a name that these processes share and no others have
    access_log: str = ""  # off, text or json; nothing: as Telemetry objects say, and off without any
    proxy_from: tuple[Network, ...] = ()  # who must send a PROXY header; nobody else may connect then
