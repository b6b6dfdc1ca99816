"""Network namespaces and what stands in them: bridges, veth pairs, addresses, routes. No word about pods here.

Namespaces are the calling thread's affair: nothing forks, and ``inside`` moves one thread only, so that programs
with threads may use it. Names live in /run/netns, where ``ip netns`` sees them too.

>>> create("blue")  # doctest: +SKIP
>>> with inside("blue"): listener = socket.create_server(("", 80))  # doctest: +SKIP
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_interface
from pathlib import Path

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from tproxy.kernel.errors import KernelError

DIRECTORY = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # linux/sched.h
IFA_F_NODAD = 0x02  # linux/if_addr.h: usable at once, without duplicate address detection
LOOPBACK_INDEX = 1  # net/core/dev.c: lo is the first interface of every namespace
AF_INET6 = 10  # bits/socket.h

_libc = ctypes.CDLL(None, use_errno=True)


def path(name: str) -> Path:
    """The file that stands for a namespace; nsenter(1) takes it."""
    return DIRECTORY / name


def names() -> list[str]:
    """All named namespaces of this machine."""
    try:
        return sorted(entry.name for entry in DIRECTORY.iterdir())
    except FileNotFoundError:
        return []


def create(name: str) -> None:
    """Make a namespace with its loopback up; the thread itself stays where it is."""
    with _doing(f"create network namespace {name}"):
        home = _open("/proc/thread-self/ns/net")
        try:
            _unshare(CLONE_NEWNET)
            netns.attach(name, "thread-self", _libc)
        finally:
            _setns(home)
            os.close(home)
    with _netlink(name, "bring lo up") as route:
        route.link("set", index=LOOPBACK_INDEX, state="up")


def delete(name: str) -> None:
    """Remove a namespace's name, if it is there. What still runs inside keeps the rest alive."""
    with _doing(f"delete network namespace {name}"), suppress(FileNotFoundError):
        netns.remove(name, _libc)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Move the calling thread into a namespace and back; sockets made meanwhile stay there for ever."""
    with _doing(f"enter network namespace {name}"):
        home, target = _open("/proc/thread-self/ns/net"), -1
        try:
            target = _open(path(name))
            _setns(target)
        except OSError:
            os.close(home)
            raise
        finally:
            if target >= 0:
                os.close(target)
    try:
        yield
    finally:
        try:
            with _doing(f"leave network namespace {name}"):
                _setns(home)
        finally:
            os.close(home)


def pids(name: str) -> list[int]:
    """The processes whose main thread is in a namespace; this process never counts."""
    try:
        wanted = path(name).stat().st_ino
    except FileNotFoundError:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError):  # gone meanwhile, or a zombie
                if (entry / "ns/net").stat().st_ino == wanted:
                    found.append(int(entry.name))
    return found


def add_bridge(name: str, bridge: str) -> None:
    """Make a bridge that forwards from its first frame on."""
    with _netlink(name, f"add bridge {bridge}") as route:
        route.link("add", ifname=bridge, kind="bridge", br_forward_delay=0, br_mcast_snooping=0)
        route.link("set", index=_index(route, bridge), state="up")


def add_veth(name: str, port: str, *, bridge: str, peer: str, peer_port: str, mtu: int) -> None:
    """Make a veth pair, both ends up: ``port`` on a bridge of one namespace, ``peer_port`` in the other."""
    with _netlink(name, f"add veth {port} towards {peer}") as route:
        target = _open(path(peer))
        try:
            other = {"ifname": peer_port, "net_ns_fd": target, "mtu": mtu}
            route.link("add", ifname=port, kind="veth", mtu=mtu, peer=other)
        finally:
            os.close(target)
        route.link("set", index=_index(route, port), master=_index(route, bridge), state="up")
    with _netlink(peer, f"bring {peer_port} up") as route:
        route.link("set", index=_index(route, peer_port), state="up")


def add_address(name: str, interface: str, address: str) -> None:
    """Give an interface an address in CIDR form, usable when this returns."""
    parsed = ip_interface(address)
    extra = {"flags": IFA_F_NODAD} if parsed.version == 6 else {}
    with _netlink(name, f"add {address} to {interface}") as route:
        index = _index(route, interface)
        route.addr("add", index=index, address=str(parsed.ip), prefixlen=parsed.network.prefixlen, **extra)


def add_default_routes(name: str, interface: str) -> None:
    """Send everything to an interface, IPv4 and IPv6: every address is on the link, there is no router."""
    with _netlink(name, f"add default routes through {interface}") as route:
        index = _index(route, interface)
        route.route("add", dst="0.0.0.0/0", oif=index)
        route.route("add", dst="::/0", oif=index, family=AF_INET6)


@contextmanager
def _netlink(name: str, what: str) -> Iterator[IPRoute]:
    """A netlink socket of another namespace."""
    with inside(name), _doing(f"{what} in {name}"), IPRoute() as route:
        yield route


def _index(route: IPRoute, interface: str) -> int:
    found = route.link_lookup(ifname=interface)
    if not found:
        raise OSError(errno.ENODEV, f"there is no interface {interface}")
    return int(found[0])


def _open(file: str | Path) -> int:
    return os.open(file, os.O_RDONLY | os.O_CLOEXEC)


def _setns(descriptor: int) -> None:
    if sys.version_info >= (3, 12):
        os.setns(descriptor, CLONE_NEWNET)
    else:
        _check(_libc.setns(descriptor, CLONE_NEWNET))


def _unshare(flags: int) -> None:
    if sys.version_info >= (3, 12):
        os.unshare(flags)
    else:
        _check(_libc.unshare(flags))


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@contextmanager
def _doing(what: str) -> Iterator[None]:
    """Linux's errors in our words."""
    try:
        yield
    except NetlinkError as error:
        raise KernelError(what, os.strerror(error.code), _advice(error.code)) from error
    except OSError as error:
        raise KernelError(what, error.strerror or error, _advice(error.errno or 0)) from error


def _advice(code: int) -> str:
    if code in (errno.EPERM, errno.EACCES) and os.geteuid() != 0:
        return "only root may do this: use sudo"
    if code in (errno.EPERM, errno.EACCES):
        return "are SYS_ADMIN and NET_ADMIN missing? a container needs --privileged"
    return {
        errno.EEXIST: "it exists already: `ip netns delete` removes a namespace",
        errno.ENOENT: "`ip netns list` shows which namespaces there are",
        errno.EOPNOTSUPP: "the kernel lacks it: `modprobe -a bridge veth`, or is IPv6 switched off?",
    }.get(code, "")
