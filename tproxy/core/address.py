"""Addresses: where a connection comes from and where it wanted to go. IPv4-mapped IPv6 becomes IPv4 here, once.

>>> str(Endpoint.of_socket(("::ffff:10.0.0.7", 80, 0, 0)))
'10.0.0.7:80'
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_ENDPOINT = re.compile(r"(\[(?P<v6>[^][]*:[^][]*)\]|(?P<v4>[^][:]+)):(?P<port>[0-9]{1,5})")


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address:
    """An address without scope; IPv4-mapped IPv6 (RFC 4291, 2.5.5.2) becomes IPv4. ValueError if it is none."""
    address = ip_address(text.partition("%")[0])
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def parse_network(text: str) -> Network:
    """A CIDR or a single address; host bits must be zero, because a typo there silently widens a rule."""
    network = ip_network(text, strict=True)
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and (v4 := network.network_address.ipv4_mapped):
        return IPv4Network((v4, network.prefixlen - 96))  # as the addresses in it will be
    return network


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a TCP connection: an address and a port (0-65535)."""

    ip: Address
    port: int

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """From ``10.0.0.7:80`` or ``[fd00::7]:80``; ValueError says what is wrong."""
        found = _ENDPOINT.fullmatch(text)
        if not found or int(found["port"]) > 65535:
            raise ValueError(f"{text!r} is not address:port; an IPv6 address stands in brackets, [fd00::7]:80")
        return cls(parse_address(found["v6"] or found["v4"]), int(found["port"]))

    @classmethod
    def of_socket(cls, name: tuple[Any, ...]) -> Endpoint:
        """From what getsockname(2) and getpeername(2) give in Python: (host, port) or (host, port, flow, scope)."""
        return cls(parse_address(name[0]), name[1])

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


def contains(networks: Iterable[Network], address: Address) -> bool:
    """Whether any of the networks holds the address; families never match each other."""
    return any(address.version == network.version and address in network for network in networks)
