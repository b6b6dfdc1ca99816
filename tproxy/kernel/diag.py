"""Probes for ``tproxy check``: each looks at one thing and returns a Finding; none changes anything, none raises.

>>> kernel_version()  # doctest: +SKIP
Finding(name='kernel', level=<Level.OK: 'ok'>, found='6.18.44', advice='', missing=False)
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tproxy.core.config import Config
from tproxy.core.ruleset import TABLE, Chain, RuleSet, ruleset
from tproxy.kernel import nft, route, seal
from tproxy.kernel.diag_files import certificates
from tproxy.kernel.errors import KernelError
from tproxy.kernel.finding import Finding, Level
from tproxy.kernel.selftest import open_shortcut
from tproxy.kernel.sock import CAPABILITY_ADVICE, IP_TRANSPARENT, SO_MARK
from tproxy.kernel.sockmap import Off

OLDEST = (5, 10)  # nft: `socket wildcard`; reject in prerouting came with 5.9
NET_RAW_SUFFICES = (5, 17)  # socket(7): SO_MARK
CAPABILITIES = {  # linux/capability.h
    "SETGID": 6,
    "SETUID": 7,
    "NET_BIND_SERVICE": 10,
    "NET_ADMIN": 12,
    "NET_RAW": 13,
    "SYS_ADMIN": 21,
    "BPF": 39,
}
INSTALL = "run tproxy init with the same configuration, in this pod's network namespace"
LISTEN = "0A"  # net/tcp_states.h: TCP_LISTEN, as /proc/net/tcp has it


def probes(config: Config) -> Iterator[Finding]:
    """Everything, in the order in which one would mend it."""
    wanted = ruleset(config)
    yield capabilities()
    yield kernel_version()
    yield transparent_socket()
    yield marked_socket(config.marks.own)
    yield conntrack()
    yield rules_accepted(wanted)
    yield rules_installed(wanted)
    yield routes_installed(wanted)
    yield listener("egress listener", config.ports.egress)
    yield listener("ingress listener", config.ports.ingress)
    yield from certificates(config)
    yield short_cut(config)


def capabilities() -> Finding:
    """What this process may do; capabilities(7)."""
    held = _effective()
    names = [name for name, number in CAPABILITIES.items() if held >> number & 1]
    found = ", ".join(names) or "none"
    if "NET_ADMIN" not in names:
        advice = "tproxy init and this check need NET_ADMIN; the sidecar itself does with NET_RAW, SETUID and SETGID"
        return Finding("capabilities", Level.BAD, f"{found}; not NET_ADMIN", advice, missing=True)
    if os.geteuid() == 0 and not {"SETUID", "SETGID"} <= set(names):
        advice = "grant SETUID and SETGID to the sidecar, or start it as its own user"
        return Finding("capabilities", Level.WARN, f"{found}; root, but not SETUID and SETGID", advice)
    return Finding("capabilities", Level.OK, found)


def kernel_version() -> Finding:
    """Whether this Linux is new enough."""
    release = os.uname().release
    version = _version(release)
    if version < OLDEST:
        return Finding("kernel", Level.BAD, release, "Linux 5.10 or newer is needed", missing=True)
    if version < NET_RAW_SUFFICES:
        return Finding("kernel", Level.WARN, release, "before 5.17 the sidecar needs NET_ADMIN for its mark")
    return Finding("kernel", Level.OK, release)


def transparent_socket() -> Finding:
    """Whether a socket may take connections to foreign addresses; ip(7)."""
    return _option("transparent socket", "IP_TRANSPARENT", socket.IPPROTO_IP, IP_TRANSPARENT, 1)


def marked_socket(mark: int) -> Finding:
    """Whether a socket may carry the sidecar's mark; socket(7)."""
    return _option("marked socket", "SO_MARK", socket.SOL_SOCKET, SO_MARK, mark)


def conntrack() -> Finding:
    """Whether the connection table has room: when it is full, new connections are dropped."""
    try:
        count, limit = (_number(f"/proc/sys/net/netfilter/nf_conntrack_{name}") for name in ("count", "max"))
    except OSError:
        advice = "the rules load it when they are installed; if they are not accepted: modprobe nf_conntrack"
        return Finding("conntrack", Level.WARN, "not loaded yet", advice)
    if limit and count > limit * 9 // 10:
        advice = "raise net.netfilter.nf_conntrack_max on the node"
        return Finding("conntrack", Level.WARN, f"{count} of {limit} entries in this namespace", advice)
    return Finding("conntrack", Level.OK, f"{count} of {limit or 'unlimited'} entries")


def rules_accepted(wanted: RuleSet) -> Finding:
    """Whether this kernel takes the real rules: a dry run."""
    try:
        nft.check(wanted.nft())
    except KernelError as error:
        return _unknown("rules accepted", error)
    return Finding(
        "rules accepted", Level.OK, f"{sum(len(chain.rules) for chain in wanted.chains)} rules pass a dry run"
    )


def rules_installed(wanted: RuleSet) -> Finding:
    """Whether the rules in this namespace are the ones that the configuration wants."""
    try:
        table = nft.table_json(TABLE)
    except KernelError as error:
        return _unknown("rules installed", error)
    if table is None:
        found = f"there is no table inet {TABLE}: nothing here is captured, traffic is in plaintext"
        return Finding("rules installed", Level.BAD, found, INSTALL)
    if faults := differences(wanted, table):
        return Finding("rules installed", Level.BAD, "; ".join(faults), INSTALL)
    return Finding("rules installed", Level.OK, f"table inet {TABLE}, digest {wanted.digest}")


def routes_installed(wanted: RuleSet) -> Finding:
    """Whether marked packets are delivered here."""
    try:
        absent = route.missing(route.items(wanted.routing))
    except KernelError as error:
        return _unknown("routes installed", error)
    if absent:
        found = "missing: " + "; ".join(str(item) for item in absent)
        return Finding("routes installed", Level.BAD, found, INSTALL)
    note = f"; {route.NO_IPV6}" if route.ipv6_is_off() else ""
    return Finding("routes installed", Level.OK, f"fwmark goes to table {wanted.routing.table}{note}")


def listener(name: str, port: int) -> Finding:
    """Whether something listens on a port of the sidecar, in this namespace."""
    uids = [uid for table in ("tcp", "tcp6") for listening, uid in _listening(table) if listening == port]
    if not uids:
        found = f"nothing listens on {port}: what is captured is refused"
        return Finding(name, Level.WARN, found, "start tproxy sidecar in this pod")
    return Finding(name, Level.OK, f"port {port}, uid {uids[0]}")


def short_cut(config: Config) -> Finding:
    """Whether BPF may carry what the application sends: the sidecar's own self-test."""
    if listener("", config.ports.egress).level is Level.OK:
        return Finding("sockmap", Level.OK, "the running sidecar has tested it; its log says the result")
    made = open_shortcut(config)
    if isinstance(made, Off):
        return Finding("sockmap", Level.WARN, f"off: {made.why}", "connections take TCP, which is slower, not wrong")
    made.close()
    return Finding("sockmap", Level.OK, f"self-test passed, cgroup {made.cgroup.path} ({made.cgroup.how})")


def differences(wanted: RuleSet, table: dict[str, Any]) -> list[str]:
    """What in libnftables' listing of our table is not as wanted; empty if everything is.

    The digest says which configuration was installed; hooks and the number of rules, whether somebody added or removed
    some since; the seal, whether one was replaced by another.
    """
    entries, digest = table["nftables"], f"digest_{wanted.digest}"
    chains = {entry["chain"]["name"]: entry["chain"] for entry in entries if "chain" in entry}
    if digest not in chains:
        others = ", ".join(name.removeprefix("digest_") for name in chains if name.startswith("digest_"))
        return [f"installed from another configuration: digest {others or 'none'}, not {wanted.digest}"]
    count = Counter(entry["rule"]["chain"] for entry in entries if "rule" in entry)
    faults = []
    for chain in wanted.chains:
        found = chains.get(chain.name)
        if found is None or not _same_hook(chain, found):
            faults.append(f"chain {chain.name} is {'missing' if found is None else 'hooked elsewhere'}")
        elif count[chain.name] != len(chain.rules):
            faults.append(f"chain {chain.name} has {count[chain.name]} rules, not {len(chain.rules)}: changed since")
    known = {digest, *(chain.name for chain in wanted.chains)}
    strange = [name for name in chains if name not in known and not name.startswith(seal.PREFIX)]
    if not faults and seal.is_broken(table, list(chains)):
        faults.append("a rule was edited in place since tproxy init")
    return faults + [f"chain {name} is not ours" for name in strange]


def _same_hook(chain: Chain, found: dict[str, Any]) -> bool:
    """The listing has type, hook and policy as words of our text; a chain without a hook has none of them."""
    words = chain.hook.replace(";", "").split()
    return all(found.get(key) is None if not words else found.get(key) in words for key in ("type", "hook", "policy"))


def _unknown(name: str, error: KernelError) -> Finding:
    return Finding(name, Level.BAD, f"{error.doing}: {error.said}", error.advice, missing=True)


def _option(name: str, option: str, level: int, number: int, value: int) -> Finding:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(level, number, value)
    except OSError as error:
        return Finding(name, Level.BAD, f"{option}: {error.strerror}", CAPABILITY_ADVICE, missing=True)
    return Finding(name, Level.OK, f"{option} is allowed")


def _effective() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))


def _version(release: str) -> tuple[int, int]:
    major, _, rest = release.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    return int(major), int(minor or 0)


def _number(path: str) -> int:
    return int(Path(path).read_text(encoding="ascii"))


def _listening(table: str) -> Iterator[tuple[int, int]]:
    """Port and uid of each listening socket in /proc/net/tcp or tcp6; proc(5)."""
    try:
        rows = Path(f"/proc/thread-self/net/{table}").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return
    for row in rows:
        _, local, _, state, *rest = row.split()
        if state == LISTEN:
            yield int(local.rpartition(":")[2], 16), int(rest[3])


__all__ = ["Finding", "Level", "differences", "probes"]
