"""The ip rule and the local route that turn marked packets around, through pyroute2 (ip-rule(8), ip-route(8))."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tproxy.core.ruleset import Routing
from tproxy.kernel.errors import KernelError

_LOCAL = 2  # RTN_LOCAL, linux/rtnetlink.h
_HOST = 254  # RT_SCOPE_HOST
_GONE = frozenset((errno.ENOENT, errno.ESRCH))
_NO_FAMILY = frozenset((errno.EAFNOSUPPORT, errno.EOPNOTSUPP))


def add(way: Routing) -> None:
    """Both families; what is there already stays as it is. A kernel without IPv6 has nothing to capture there."""
    with _netlink("installing the ip rules and routes") as ipr:
        for family in _families(ipr):
            if not _rules(ipr, family, way):
                ipr.rule("add", family=family, **_rule(way))
            with _tolerate(errno.EEXIST):
                ipr.route("add", family=family, **_route(ipr, family, way))


def remove(way: Routing) -> None:
    """Both families, whether or not they are there."""
    with _netlink("removing the ip rules and routes") as ipr:
        for family in _families(ipr):
            for _ in range(_rules(ipr, family, way)):
                with _tolerate(*_GONE):
                    ipr.rule("del", family=family, **_rule(way))
            with _tolerate(*_GONE):
                ipr.route("del", family=family, **_route(ipr, family, way))


def present(way: Routing) -> list[str]:
    """What is missing, in words; empty when all is there."""
    missing = []
    with _netlink("reading the ip rules and routes") as ipr:
        for family in _families(ipr):
            name = "IPv6" if family == socket.AF_INET6 else "IPv4"
            if not _rules(ipr, family, way):
                missing.append(f"{name} rule for fwmark {way.mark:#x}/{way.mask:#x}")
            if not list(ipr.get_routes(family=family, table=way.table)):
                missing.append(f"{name} local route in table {way.table}")
    return missing


def _rule(way: Routing) -> dict[str, Any]:
    return {"priority": way.preference, "fwmark": way.mark, "fwmask": way.mask, "table": way.table}


def _route(ipr: Any, family: int, way: Routing) -> dict[str, Any]:
    default = "::/0" if family == socket.AF_INET6 else "0.0.0.0/0"
    lo = ipr.link_lookup(ifname="lo")[0]
    return {"type": _LOCAL, "dst": default, "oif": lo, "table": way.table, "scope": 0 if ":" in default else _HOST}


def _rules(ipr: Any, family: int, way: Routing) -> int:
    """How many ip rules like ours there are."""
    count = 0
    for message in ipr.get_rules(family=family):
        found = dict(message["attrs"])
        same = found.get("FRA_FWMARK") == way.mark and found.get("FRA_FWMASK") == way.mask
        count += same and found.get("FRA_TABLE") == way.table and found.get("FRA_PRIORITY") == way.preference
    return count


def _families(ipr: Any) -> Iterator[int]:
    yield socket.AF_INET
    try:
        list(ipr.get_rules(family=socket.AF_INET6))
    except NetlinkError as error:
        if error.code in _NO_FAMILY:
            return
        raise
    yield socket.AF_INET6


@contextmanager
def _tolerate(*codes: int) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in codes:
            raise


@contextmanager
def _netlink(doing: str) -> Iterator[Any]:
    try:
        with IPRoute() as ipr:
            yield ipr
    except NetlinkError as error:
        denied = error.code in (errno.EPERM, errno.EACCES)
        advice = "NET_ADMIN is missing: grant it to the init container" if denied else ""
        raise KernelError(doing, error.args[-1] if error.args else error, advice) from error
