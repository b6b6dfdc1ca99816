"""ip rules and local routes through rtnetlink: packets with our mark are delivered here, whatever their destination.

Adding twice adds once; removing what is absent is no fault; only exactly what is described is touched.

>>> done = add(items(rules.routing))  # doctest: +SKIP
>>> remove(done.added)  # doctest: +SKIP
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tproxy.core.ruleset import Routing
from tproxy.kernel.errors import KernelError

LOOPBACK_INDEX = 1  # net/core/dev.c: lo is the first interface of every namespace
RTN_LOCAL = 2  # linux/rtnetlink.h
RT_SCOPE_HOST = 254  # linux/rtnetlink.h
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
SELECTORS = ("FRA_SRC", "FRA_DST", "FRA_IIFNAME", "FRA_OIFNAME", "FRA_UID_RANGE", "FRA_IP_PROTO")  # not in our rules
NO_IPV6 = "IPv6 is switched off here, so it needs no route; IPv6 connections are refused"


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """``ip rule``: packets with this mark are routed by this table."""

    family: int
    preference: int
    mark: int
    mask: int
    table: int

    def __str__(self) -> str:
        return f"ip -{self.family} rule pref {self.preference} fwmark {self.mark:#x}/{self.mask:#x} lookup {self.table}"


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """``ip route``: whatever the destination, it is delivered here."""

    family: int
    table: int

    def __str__(self) -> str:
        return f"ip -{self.family} route local default dev lo table {self.table}"


Item = PolicyRule | LocalRoute


@dataclass(frozen=True, slots=True)
class Added:
    """What was not there before, so that a failure can undo just this; and what to tell the reader."""

    added: tuple[Item, ...]
    notes: tuple[str, ...] = ()


def items(routing: Routing) -> tuple[Item, ...]:
    """Both families' ip rules and routes."""
    way = routing
    return tuple(
        item
        for family in FAMILY
        for item in (
            PolicyRule(family, way.preference, way.mark, way.mask, way.table),
            LocalRoute(family, way.table),
        )
    )


def add(wanted: Iterable[Item]) -> Added:
    """Add what is missing, or nothing: a failure takes back what this call had added."""
    added, notes = list[Item](), dict[str, None]()
    try:
        with _netlink("adding ip rules and routes") as route:
            for item in wanted:
                with _tolerating_no_ipv6(item, notes):
                    if not _present(route, item) and _change(route, "add", item, errno.EEXIST):
                        added.append(item)
    except KernelError:
        if added:
            remove(added)
        raise
    return Added(tuple(added), tuple(notes))


def remove(wanted: Iterable[Item]) -> tuple[Item, ...]:
    """Remove what is there; what was removed is returned."""
    removed = list[Item]()
    with _netlink("removing ip rules and routes") as route:
        for item in wanted:
            with _tolerating_no_ipv6(item, {}):
                if _present(route, item) and _change(route, "del", item, errno.ENOENT, errno.ESRCH):
                    removed.append(item)
    return tuple(removed)


def missing(wanted: Iterable[Item]) -> tuple[Item, ...]:
    """What is not there, leaving out what cannot be, because IPv6 is switched off."""
    absent = list[Item]()
    with _netlink("reading ip rules and routes") as route:
        for item in wanted:
            with _tolerating_no_ipv6(item, {}):
                if not _present(route, item) and not (item.family == 6 and ipv6_is_off()):
                    absent.append(item)
    return tuple(absent)


def ipv6_is_off() -> bool:
    """Whether this namespace's loopback has no IPv6: booted with ipv6.disable=1, or by sysctl."""
    try:
        return Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").read_text(encoding="ascii").strip() == "1"
    except FileNotFoundError:
        return True


def _present(route: IPRoute, item: Item) -> bool:
    family = FAMILY[item.family]
    if isinstance(item, PolicyRule):
        return any(_is_ours(found, item) for found in route.get_rules(family=family))
    return any(
        found["type"] == RTN_LOCAL and found["dst_len"] == 0 and found.get_attr("RTA_OIF") == LOOPBACK_INDEX
        for found in route.get_routes(family=family, table=item.table)
    )


def _is_ours(found: Any, rule: PolicyRule) -> bool:
    selected = {
        "FRA_PRIORITY": rule.preference,
        "FRA_FWMARK": rule.mark,
        "FRA_FWMASK": rule.mask,
        "FRA_TABLE": rule.table,
    }
    plain = all(found.get_attr(name) is None for name in SELECTORS) and not found["flags"]  # FIB_RULE_INVERT
    return plain and all(found.get_attr(name) == value for name, value in selected.items())


def _change(route: IPRoute, command: str, item: Item, *harmless: int) -> bool:
    """Whether it changed anything: another process may have been quicker."""
    family = FAMILY[item.family]
    try:
        if isinstance(item, PolicyRule):
            options = {"priority": item.preference, "fwmark": item.mark, "fwmask": item.mask, "table": item.table}
            route.rule(command, family=family, **options)
        else:
            dst = "0.0.0.0/0" if item.family == 4 else "::/0"
            options = {"oif": LOOPBACK_INDEX, "type": RTN_LOCAL, "table": item.table}
            route.route(command, family=family, dst=dst, scope=RT_SCOPE_HOST if item.family == 4 else 0, **options)
    except NetlinkError as error:
        if error.code in harmless:
            return False
        raise
    return True


@contextmanager
def _tolerating_no_ipv6(item: Item, notes: dict[str, None]) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if item.family != 6 or error.code == errno.EPERM or not ipv6_is_off():
            raise
        notes[NO_IPV6] = None


@contextmanager
def _netlink(doing: str) -> Iterator[IPRoute]:
    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as error:
        raise KernelError(doing, os.strerror(error.code), _advice(error.code)) from error
    except OSError as error:
        raise KernelError(doing, error.strerror or error) from error


def _advice(code: int) -> str:
    return {
        errno.EPERM: "NET_ADMIN is missing: grant it to the init container (securityContext.capabilities.add)",
        errno.EAFNOSUPPORT: "the kernel lacks policy routing (CONFIG_IP_MULTIPLE_TABLES)",
        errno.EOPNOTSUPP: "the kernel lacks policy routing (CONFIG_IP_MULTIPLE_TABLES)",
        errno.ENODEV: "is lo up in this namespace? `ip link set lo up`",
        errno.ENETDOWN: "is lo up in this namespace? `ip link set lo up`",
    }.get(code, "")


__all__ = ["Added", "LocalRoute", "PolicyRule", "add", "items", "missing", "remove"]
