"""UDP sockets of a gateway: datagrams with the address that they were sent to, so that answers come from there.

Numbers that Python's socket module lacks come from linux/in.h and linux/in6.h; structures: ip(7), ipv6(7).
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from typing import Any

from tproxy.core.address import Address, Endpoint, parse_address
from tproxy.kernel.errors import KernelError
from tproxy.kernel.sock import any_host

IP_PKTINFO = 8  # linux/in.h
IPV6_RECVPKTINFO, IPV6_PKTINFO = 49, 50  # linux/in6.h
LARGEST = 65_535
_IN_PKTINFO = struct.Struct("=i4s4s")  # interface, local address to send from, destination in the header
_IN6_PKTINFO = struct.Struct("=16si")
_ROOM = socket.CMSG_SPACE(_IN6_PKTINFO.size)


@dataclass(frozen=True, slots=True)
class Datagram:
    """What came, from whom, and to which address of ours."""

    data: bytes
    source: Any  # as the socket module names it
    local: Address


def datagram_socket(host: str, port: int) -> socket.socket:
    """Bound, not blocking; without a host all addresses, IPv4 and IPv6 at once."""
    host = host or any_host()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        low = "ports below 1024 need NET_BIND_SERVICE"
        advice = low if error.errno == errno.EACCES else "who listens there already?"
        raise KernelError(f"listening on {host} UDP port {port}", error.strerror, advice) from error
    return sock


def receive(sock: socket.socket) -> Datagram:
    """The next one; BlockingIOError if there is none."""
    data, told, _, source = sock.recvmsg(LARGEST, _ROOM)
    for level, kind, value in told:
        if (level, kind) == (socket.IPPROTO_IPV6, IPV6_PKTINFO):
            return Datagram(data, source, _unmapped(socket.inet_ntop(socket.AF_INET6, value[:16])))
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            return Datagram(data, source, parse_address(socket.inet_ntop(socket.AF_INET, value[8:12])))
    return Datagram(data, source, _unmapped(sock.getsockname()[0]))


def answer(sock: socket.socket, data: bytes, to: Any, local: Address) -> None:
    """Send from this address of ours; OSError as ever."""
    if sock.family == socket.AF_INET6:
        packed = local.packed if local.version == 6 else b"\0" * 10 + b"\xff\xff" + local.packed
        told = (socket.IPPROTO_IPV6, IPV6_PKTINFO, _IN6_PKTINFO.pack(packed, 0))
    else:
        told = (socket.IPPROTO_IP, IP_PKTINFO, _IN_PKTINFO.pack(0, local.packed, b"\0" * 4))
    sock.sendmsg([data], [told], 0, to)


def towards(endpoint: Endpoint) -> socket.socket:
    """A socket of its own for one flow: only that endpoint's answers arrive on it."""
    family = socket.AF_INET6 if endpoint.ip.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect((str(endpoint.ip), endpoint.port))
    except OSError:
        sock.close()
        raise
    return sock


def _unmapped(text: str) -> Address:
    found = parse_address(text.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return mapped if mapped is not None else found
