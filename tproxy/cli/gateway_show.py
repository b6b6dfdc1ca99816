"""What ``tproxy gateway check``, ``routes`` and ``explain`` print."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from tproxy.cli.gateway_source import load

if TYPE_CHECKING:
    from tproxy.core.http.head import Head
    from tproxy.core.route_explain import Line, Told
    from tproxy.core.routes import Backend, Bind, Listener
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
    found += [line for bind in sorted(loaded.table.datagrams) for line in lines(loaded.table.datagrams[bind])]
    if args.json:
        print(json.dumps([_plain(line) for line in found], indent=2))
        return 0
    rows: list[tuple[str, ...]] = [("PORT", "KIND", "HOST", "SERVER", "RULE", "BACKENDS")]
    rows += [(str(l.port), l.kind, l.host, l.server, l.rule or l.why_not, _backends(l)) for l in found]  # noqa: E741
    _aligned(rows)
    return 0


def listeners(args: argparse.Namespace) -> int:
    """A table of ports, and of names where TLS tells servers apart."""
    from tproxy.gateway.envoy.rows import rows

    loaded = _complain(load(args))
    found = [row for bind, listener in _listeners(loaded) for row in rows(bind, listener)]
    found += [row for bind in sorted(loaded.table.datagrams) for row in rows(bind, loaded.table.datagrams[bind])]
    if args.json:
        print(json.dumps([asdict(row) for row in found], indent=2))
        return 0
    cells: list[tuple[str, ...]] = [("ADDRESS", "PORT", "MATCH", "DESTINATION")]
    cells += [(row.address, str(row.port), row.match, row.destination) for row in found]
    _aligned(cells)
    return 0


def explain(args: argparse.Namespace) -> int:
    """For each port: the rule that is taken, or the refusal; then why not the others. 1 if no port takes it."""
    loaded = _complain(load(args))
    found = [
        (bind, listener)
        for bind, listener in _listeners(loaded)
        if (args.port == listener.port if args.port else _asked(args, listener))
    ]
    answers = [_told(args, bind, listener) for bind, listener in found]
    if args.json:
        plain = [
            {
                "port": answer.port,
                "taken": answer.taken and _plain(answer.taken),
                "refusal": answer.refusal,
                "done": done,
                "others": [_plain(line) for line in answer.others],
            }
            for answer, done in answers
        ]
        print(json.dumps(plain, indent=2))
    else:
        for answer, done in answers:
            _print(answer, done, args.all)
        if not answers:
            print("nothing listens there")
    return 0 if any(answer.taken for answer, _ in answers) else 1


def _told(args: argparse.Namespace, bind: Bind, listener: Listener) -> tuple[Told, list[str]]:
    """The rule on a port, and what it does with the request, if one was described."""
    from tproxy.core.http.explain import done, request_of, table_of
    from tproxy.core.http.forwarded import Client
    from tproxy.core.route_explain import told

    name, host = args.sni or args.host, args.host or args.sni
    head, table = _head(args), table_of(listener, name)
    client = Client("192.0.2.1", head.scheme, listener.port, args.sni or "")  # RFC 5737: nobody
    request = request_of(head, table, client) if args.host else None
    answer = told(listener, name, request)
    return answer, list(done(table, head, client)) if table and host and args.host else []


def _head(args: argparse.Namespace) -> Head:
    """The request that the options describe."""
    from tproxy.core.http.head import Head

    pairs = [text.partition(":")[::2] for text in args.header]
    headers = [(name.strip().lower(), value.strip()) for name, value in pairs]
    return Head(args.method, "https" if args.sni else "http", args.host or args.sni or "", args.path, headers)


def _print(answer: Told, done: list[str], everything: bool) -> None:
    print(f"port {answer.port}: {_taken(answer.taken) if answer.taken else answer.refusal}")
    for line in done:
        print(f"  {line}")
    others = answer.others if everything else answer.others[:SHOWN]
    for other in others:
        print(f"  not {other.host} ({other.rule or other.server}): {other.why_not}")
    if len(others) < len(answer.others):
        print(f"  and {len(answer.others) - len(others)} others; --all shows them")


def _aligned(cells: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


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
    of, to = f" of {line.server}" if line.server else "", f" -> {_backends(line)}" if line.backends else ""
    return f"{line.kind} {line.host} by {line.rule or line.server}{where}{of}{to}"


def _backends(line: Line) -> str:
    total = sum(backend.weight for backend in line.backends)
    return ", ".join(
        f"{backend.name} {backend.weight}/{total} "
        + (f"({backend.fault})" if backend.fault else f"[{' '.join(map(str, backend.endpoints))}]")
        for backend in line.backends
    )


def _plain(line: Line) -> dict[str, object]:
    return {**asdict(replace(line, backends=())), "backends": [_backend(backend) for backend in line.backends]}


def _backend(backend: Backend) -> dict[str, object]:
    endpoints, affinity = [str(endpoint) for endpoint in backend.endpoints], backend.affinity
    plain = asdict(replace(backend, endpoints=(), affinity=None))
    return {**plain, "endpoints": endpoints, "affinity": None if affinity is None else str(affinity)}
