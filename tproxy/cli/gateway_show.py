"""What ``tproxy gateway check``, ``routes`` and ``explain`` print."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from tproxy.cli.gateway_source import load

if TYPE_CHECKING:
    from tproxy.core.route_explain import Line
    from tproxy.core.routes import Bind, Listener
    from tproxy.gateway.compile import Loaded

SHOWN = 20  # rules that are not taken, unless all are asked for


def check(args: argparse.Namespace) -> int:
    """Every finding on a line; 1 if one is an error."""
    loaded = load(args)
    if args.json:
        print(json.dumps([asdict(finding) for finding in loaded.findings], indent=2))
    else:
        for finding in loaded.findings:
            print(f"{finding.level}: {finding.text}")
        warnings = len(loaded.findings) - len(loaded.errors)
        print(f"{len(loaded.table.listeners)} ports, {len(loaded.errors)} errors, {warnings} warnings")
    return 1 if loaded.errors else 0


def routes(args: argparse.Namespace) -> int:
    """A table of all rules."""
    from tproxy.core.route_explain import lines

    loaded = _complain(load(args))
    found = [line for _, listener in _listeners(loaded) for line in lines(listener)]
    if args.json:
        print(json.dumps([_plain(line) for line in found], indent=2))
        return 0
    rows = [("PORT", "KIND", "HOST", "SERVER", "RULE", "BACKENDS")]
    rows += [(str(l.port), l.kind, l.host, l.server, l.rule or l.why_not, _backends(l)) for l in found]  # noqa: E741
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[5]]).rstrip())
    return 0


def explain(args: argparse.Namespace) -> int:
    """For each port: the rule that is taken, or the refusal; then why not the others. 1 if no port takes it."""
    from tproxy.core.http_routes import Request
    from tproxy.core.route_explain import told

    loaded, host = _complain(load(args)), args.host or args.sni
    request = Request(host, args.path, args.method, "https" if args.sni else "http") if args.host else None
    answers = [
        told(listener, args.sni or args.host, request)
        for _, listener in _listeners(loaded)
        if (args.port == listener.port if args.port else _asked(args, listener))
    ]
    if args.json:
        plain = [
            {
                "port": answer.port,
                "taken": answer.taken and _plain(answer.taken),
                "refusal": answer.refusal,
                "others": [_plain(line) for line in answer.others],
            }
            for answer in answers
        ]
        print(json.dumps(plain, indent=2))
    else:
        for answer in answers:
            print(f"port {answer.port}: {_taken(answer.taken) if answer.taken else answer.refusal}")
            others = answer.others if args.all else answer.others[:SHOWN]
            for line in others:
                print(f"  not {line.host} ({line.rule or line.server}): {line.why_not}")
            if len(others) < len(answer.others):
                print(f"  and {len(answer.others) - len(others)} others; --all shows them")
        if not answers:
            print("nothing listens there")
    return 0 if any(answer.taken for answer in answers) else 1


def _listeners(loaded: Loaded) -> list[tuple[Bind, Listener]]:
    return sorted(loaded.table.listeners.items(), key=lambda item: item[0])


def _asked(args: argparse.Namespace, listener: Listener) -> bool:
    """Whether a question about a name is one about this port."""
    from tproxy.core.routes import HttpListener, TlsListener

    return isinstance(listener, TlsListener) or (args.sni is None and isinstance(listener, HttpListener))


def _complain(loaded: Loaded) -> Loaded:
    """What follows is about what can be used; the errors stand beside it."""
    for finding in loaded.errors:
        print(f"error: {finding.text}", file=sys.stderr)
    return loaded


def _taken(line: Line) -> str:
    where = f" ({line.where})" if line.where else ""
    return f"{line.kind} {line.host} by {line.rule or line.server}{where} of {line.server} -> {_backends(line)}"


def _backends(line: Line) -> str:
    total = sum(backend.weight for backend in line.backends)
    return ", ".join(
        f"{backend.name} {backend.weight}/{total} "
        + (f"({backend.fault})" if backend.fault else f"[{' '.join(map(str, backend.endpoints))}]")
        for backend in line.backends
    )


def _plain(line: Line) -> dict[str, object]:
    backends = [{**asdict(b), "endpoints": [str(endpoint) for endpoint in b.endpoints]} for b in line.backends]
    return {**asdict(line), "backends": backends}
