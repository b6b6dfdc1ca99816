"""Sockets as the capture rules expect them: transparent listeners, marked dials, original destinations.

Numbers that Python's socket module lacks come from linux/in.h, linux/in6.h, linux/tcp.h and asm-generic/socket.h.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import random
import socket
import struct
import termios

from tproxy.core.address import Address, Endpoint
from tproxy.core.balance.limits import Keepalive
from tproxy.kernel.errors import KernelError

IP_TRANSPARENT = 19  # linux/in.h
IPV6_TRANSPARENT = 75  # linux/in6.h
SO_MARK = 36  # asm-generic/socket.h
SO_BUF_LOCK = 72  # asm-generic/socket.h
TCP_NOTSENT_LOWAT = 25  # linux/tcp.h
TCP_CLOSE = 7  # net/tcp_states.h, as the first byte of TCP_INFO says it
BORROWED_PORTS = (1024, 32768)  # below net.ipv4.ip_local_port_range, from which callers choose
UNSENT = 256 * 1024  # bytes a socket may hold that TCP has not sent yet; bounds memory when a peer stops reading
RESET = struct.pack("ii", 1, 0)  # struct linger: close with RST
NO_LINGER = struct.pack("ii", 0, 0)
KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 6))
CAPABILITY_ADVICE = "grant NET_ADMIN (or NET_RAW since Linux 5.17) to the sidecar's container"


def listener(port: int, mark: int, backlog: int = 4096) -> socket.socket:
    """A listening socket for TPROXY, IPv4 and IPv6 at once; what it accepts inherits the mark and the options."""
    family = socket.AF_INET6 if socket.has_ipv6 and _ipv6_works() else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        _tune(sock, mark)
        sock.bind(("", port))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        advice = CAPABILITY_ADVICE if error.errno == errno.EPERM else "is another sidecar running in this pod?"
        raise KernelError(f"listening on port {port}", error.strerror, advice) from error
    return sock


def plain_listener(host: str, port: int) -> socket.socket:
    """An ordinary listening socket, for health, metrics and administration."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
        sock.listen(64)
    except OSError as error:
        sock.close()
        raise KernelError(f"listening on {host} port {port}", error.strerror, "is another tproxy running?") from error
    return sock


def front_listener(
    host: str, port: int, backlog: int = 4096, shared: bool = False, probe: bool = False
) -> socket.socket:
    """A gateway's listening socket; without a host all addresses, IPv4 and IPv6 at once. No capability is needed.

    ``shared``: other processes of this user listen there, too, and the kernel shares connections out. ``probe``: it
    is only to be seen whether the port can be had: nobody is to be accepted by a socket that goes again.
    """
    host = host or any_host()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        _tune(sock, 0)
        sock.bind((host, port))
        if not probe:
            sock.listen(backlog)
    except OSError as error:
        sock.close()
        advice = (
            "ports below 1024 need NET_BIND_SERVICE" if error.errno == errno.EACCES else "who listens there already?"
        )
        raise KernelError(f"listening on {host} port {port}", error.strerror, advice) from error
    return sock


def can_bind(host: str) -> bool:
    """Whether this is an address of ours: any port of it can be had."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def any_host() -> str:
    """The wildcard address that takes IPv6 and IPv4 where the kernel has IPv6."""
    return "::" if _ipv6_works() else "0.0.0.0"


def _ipv6_works() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def dialer(target: Endpoint, mark: int, source: Address | None = None) -> socket.socket:
    """A socket ready to connect to ``target``; with ``source`` it will come from that foreign address (tproxy.rst).

    Its port is not the original one, because that four-tuple is taken, and not the kernel's choice: callers' kernels
    choose from the ephemeral range, and a port that both choose makes conntrack take two connections for one.
    """
    v6 = target.ip.version == 6
    sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _tune(sock, mark)
        if source is not None and source.version == target.ip.version:
            if v6:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _bind(sock, str(source))
    except OSError:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, source: str) -> None:
    for _ in range(16):
        try:
            sock.bind((source, random.randrange(*BORROWED_PORTS)))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _tune(sock: socket.socket, mark: int) -> None:
    reset_on_close(sock, True)  # should we be killed, nobody may take that for the end of the bytes
    if mark:  # even 0 may be set only with a capability
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT)
    for option, value in KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def keep_alive(sock: socket.socket, wanted: Keepalive) -> None:
    """Other probes than ours; what is 0 stays. Those that the kernel does not take (tcp(7)) are the nearest it does."""
    for option, value, most in (
        (socket.TCP_KEEPIDLE, wanted.time, 32767),
        (socket.TCP_KEEPINTVL, wanted.interval, 32767),
        (socket.TCP_KEEPCNT, wanted.probes, 127),
    ):
        if value:
            sock.setsockopt(socket.IPPROTO_TCP, option, min(value, most))


def original_destination(sock: socket.socket) -> Endpoint:
    """Where the caller wanted to go: under TPROXY the socket's own name (kernel's tproxy.rst)."""
    return Endpoint.of_socket(sock.getsockname())


def is_local(address: Address) -> bool:
    """Whether the address is one of this network namespace: only then can an ordinary socket be bound to it."""
    with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


def abort(sock: socket.socket) -> None:
    """Close with RST, so that the other side never takes what happened for a clean end."""
    reset_on_close(sock, True)
    sock.close()


def reset_on_close(sock: socket.socket, yes: bool) -> None:
    """Whether closing, which the kernel does when we are killed, sends RST instead of FIN (socket(7), SO_LINGER)."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET if yes else NO_LINGER)
    except OSError:
        return  # the socket is dead already; closing it is all that is left


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that the peer's TCP has not acknowledged yet (SIOCOUTQ, tcp(7)); none where it will never do that."""
    if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE:  # it was reset: the count stands still
        return 0
    count = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, count)
    return count[0]


def unread(sock: socket.socket) -> int:
    """Bytes that the kernel says are waiting to be read (SIOCINQ, tcp(7))."""
    count = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    return count[0]


def bound_receive_buffer(sock: socket.socket, limit: int) -> None:
    """Fix a receive buffer at ``limit`` bytes while it is smaller, so that autotuning does not take it beyond (tcp(7)).

    Making it smaller later would drop what the peer was allowed to send. Where net.core.rmem_max forbids so much
    autotuning goes on, and tcp_rmem bounds it (SO_BUF_LOCK, since Linux 5.14; before that it keeps what it got).
    """
    with contextlib.suppress(OSError):  # the socket is dead already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limit // 2)  # socket(7): the kernel doubles it
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < limit:
            sock.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, 0)
