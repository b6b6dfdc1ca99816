"""Looking at this kernel and this network namespace: one Finding a question, each with what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tproxy.core.config import Config
from tproxy.core.ruleset import TABLE, RuleSet, ruleset
from tproxy.kernel import nft, route
from tproxy.kernel.errors import KernelError
from tproxy.kernel.privileges import NET_ADMIN, NET_RAW, effective, probe


class Level(StrEnum):
    """How bad it is; ``missing`` is a kernel feature or a capability."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of ``tproxy check``."""

    name: str
    level: Level
    found: str
    advice: str = ""


def findings(config: Config) -> Iterator[Finding]:
    """Everything that capture needs, in the order in which it fails."""
    rules = ruleset(config)
    yield Finding("kernel", Level.OK, f"Linux {os.uname().release}")
    yield _capabilities()
    yield _marks()
    yield _tproxy(rules)
    installed = _installed(rules)
    yield installed
    if installed.level in (Level.OK, Level.BAD):
        yield _routes(rules)
    for name, port in (("egress listener", config.ports.egress), ("ingress listener", config.ports.ingress)):
        yield _listener(name, port)


def _capabilities() -> Finding:
    have = effective()
    names = [name for number, name in ((NET_ADMIN, "NET_ADMIN"), (NET_RAW, "NET_RAW")) if number in have]
    if NET_ADMIN in have:
        return Finding("capabilities", Level.OK, ", ".join(names))
    return Finding(
        "capabilities",
        Level.MISSING,
        f"NET_ADMIN is missing (have: {', '.join(names) or 'neither NET_ADMIN nor NET_RAW'})",
        "tproxy init needs NET_ADMIN, tproxy sidecar NET_RAW (NET_ADMIN before Linux 5.17)",
    )


def _marks() -> Finding:
    try:
        probe()
    except KernelError as error:
        return Finding("transparent sockets", Level.MISSING, str(error.said), error.advice)
    return Finding("transparent sockets", Level.OK, "IP_TRANSPARENT and SO_MARK are allowed")


def _tproxy(rules: RuleSet) -> Finding:
    try:
        nft.check(rules.nft())
    except KernelError as error:
        return Finding("nft tproxy", Level.MISSING, str(error.said), error.advice)
    return Finding("nft tproxy", Level.OK, "this kernel takes the whole rule set (dry run)")


def _installed(rules: RuleSet) -> Finding:
    try:
        there = nft.chains(TABLE)
    except KernelError as error:
        return Finding("capture rules", Level.MISSING, str(error.said), error.advice)
    if there is None:
        return Finding("capture rules", Level.WARN, "not installed in this network namespace", "run tproxy init")
    if f"digest_{rules.digest}" in there:
        return Finding("capture rules", Level.OK, f"installed, digest {rules.digest}")
    advice = "run tproxy init with this configuration"
    return Finding("capture rules", Level.BAD, "installed, but not the ones this configuration makes", advice)


def _routes(rules: RuleSet) -> Finding:
    try:
        missing = route.present(rules.routing)
    except KernelError as error:
        return Finding("ip rules and routes", Level.MISSING, str(error.said), error.advice)
    if missing:
        return Finding("ip rules and routes", Level.BAD, "missing: " + "; ".join(missing), "run tproxy init")
    return Finding("ip rules and routes", Level.OK, f"table {rules.routing.table}, IPv4 and IPv6")


def _listener(name: str, port: int) -> Finding:
    if port in _listening():
        return Finding(name, Level.OK, f"port {port} is listening")
    return Finding(name, Level.WARN, f"nothing listens on port {port}: connections are refused", "start tproxy sidecar")


def _listening() -> set[int]:
    """TCP ports in state LISTEN (0A) in this namespace, from proc(5)."""
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if Path(table).exists():
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":
                    ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports
