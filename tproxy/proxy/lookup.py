"""The addresses behind a name, by the resolver of the pod or the machine."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

from tproxy.core.address import Address, parse_address
from tproxy.core.reason import Deny, Reason


async def lookup(host: str, seconds: float) -> list[Address] | Deny:
    """In the resolver's order, at least one; an address is its own. Never raises on what a resolver says."""
    try:
        return [parse_address(str(ip_address(host)))]
    except ValueError:
        pass
    try:
        async with asyncio.timeout(seconds):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or f"no answer in {seconds:g} s"
        return Deny(Reason.CONNECT_FAILED, f"looking up {host}: {said}")
    return list(dict.fromkeys(parse_address(name[0]) for *_, name in found))
