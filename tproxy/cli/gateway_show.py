"""What ``tproxy gateway check``, ``routes`` and ``listeners`` print."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from tproxy.cli.gateway_source import load
from tproxy.cli.words import counted

if TYPE_CHECKING:
    from tproxy.core.route_explain import Line
    from tproxy.core.routes import Backend, Bind, Listener
    from tproxy.gateway.compile import Loaded
    from tproxy.gateway.findings import Finding


def check(args: argparse.Namespace) -> int:
    """Every finding on a line; 1 if one is an error."""
    loaded = load(args)
    if args.json:
        print(json.dumps([asdict(finding) for finding in loaded.findings], indent=2))
    else:
        for finding in sorted(loaded.findings, key=_place):
            print(f"{finding.level}: {finding.text}")
        if not loaded.table.listeners and not loaded.table.datagrams:
            print(
                f"nothing is served: no Gateway in {args.config or args.folder} opens a port; its folders are not read"
            )
        print(f"{_ports(loaded)}, {_counted(loaded)}")
    return 1 if loaded.errors else 0


def routes(args: argparse.Namespace) -> int:
    """A table of all rules."""
    from tproxy.core.route_explain import lines

    loaded = complained(load(args))
    found = [line for _, listener in listeners_of(loaded) for line in lines(listener)]
    found += [line for bind in sorted(loaded.table.datagrams) for line in lines(loaded.table.datagrams[bind])]
    if args.json:
        print(json.dumps([plain(line) for line in found], indent=2))
        return 0
    rows: list[tuple[str, ...]] = [("PORT", "KIND", "HOST", "MATCH", "SERVER", "RULE", "BACKENDS")]
    rows += [
        (str(one.port), one.kind, one.host, one.match, one.server, one.rule or one.why_not, backends_of(one))
        for one in found
    ]
    _aligned(rows)
    return 0


def listeners(args: argparse.Namespace) -> int:
    """A table of ports, and of names where TLS tells servers apart; which policies say who may come in."""
    from tproxy.gateway.envoy.rows import rows

    loaded = complained(load(args))
    found = [row for bind, listener in listeners_of(loaded) for row in rows(bind, listener)]
    found += [row for bind in sorted(loaded.table.datagrams) for row in rows(bind, loaded.table.datagrams[bind])]
    if args.json:
        print(json.dumps([asdict(row) for row in found], indent=2))
        return 0
    cells: list[tuple[str, ...]] = [("ADDRESS", "PORT", "MATCH", "DESTINATION")]
    cells += [(row.address, str(row.port), row.match, row.destination) for row in found]
    _aligned(cells)
    for (_, port), policy in sorted(loaded.table.policies.items()):
        print(f"port {port} obeys AuthorizationPolicy {', '.join(each.name for each in policy.objects)}")
    return 0


def _aligned(cells: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _place(finding: Finding) -> tuple[str, str, int]:
    """Errors first, then by file and line."""
    where = re.match(r"(.*?)(?::([0-9]+))?: ", finding.text)
    return finding.level, where[1] if where else "", int(where[2] or 0) if where else 0


def _ports(loaded: Loaded) -> str:
    return counted(len(loaded.table.listeners) + len(loaded.table.datagrams), "port")


def _counted(loaded: Loaded) -> str:
    errors = len(loaded.errors)
    return f"{counted(errors, 'error')}, {counted(len(loaded.findings) - errors, 'warning')}"


def listeners_of(loaded: Loaded) -> list[tuple[Bind, Listener]]:
    """In the order of addresses and ports."""
    return sorted(loaded.table.listeners.items(), key=lambda item: item[0])


def complained(loaded: Loaded) -> Loaded:
    """What follows is about what can be used; the errors stand beside it."""
    for finding in loaded.errors:
        print(f"error: {finding.text}", file=sys.stderr)
    return loaded


def backends_of(line: Line) -> str:
    """Each with its share and its endpoints."""
    total = sum(backend.weight for backend in line.backends)
    return ", ".join(
        f"{backend.name} {backend.weight}/{total} "
        + (f"({backend.fault})" if backend.fault else f"[{' '.join(map(str, backend.endpoints))}]")
        for backend in line.backends
    )


def plain(line: Line) -> dict[str, object]:
    """As JSON has it."""
    return {**asdict(replace(line, backends=())), "backends": [_backend(backend) for backend in line.backends]}


def _backend(backend: Backend) -> dict[str, object]:
    endpoints, affinity = [str(endpoint) for endpoint in backend.endpoints], backend.affinity
    given = asdict(replace(backend, endpoints=(), affinity=None))
    return {**given, "endpoints": endpoints, "affinity": None if affinity is None else str(affinity)}
