"""``tproxy gateway``: let the outside in by SNI and port, with the YAML people have; check, list and explain it."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tproxy.cli import Verbs
from tproxy.cli.log import add_log_options
from tproxy.core.address import Network, parse_network
from tproxy.core.fields import ConfigError

if TYPE_CHECKING:
    from tproxy.core.route_explain import Line
    from tproxy.core.routes import Bind, Listener
    from tproxy.gateway.compile import Loaded
    from tproxy.gateway.settings import Settings

SHOWN = 20  # rules that are not taken, unless all are asked for
EXAMPLES = """examples:
  tproxy gateway check conf/                                 errors and warnings with file, line and field
  tproxy gateway run --config conf/                          serve; changed files are taken up at once
  tproxy gateway run --config conf/ --proxy-from 10.0.0.0/8  behind a load balancer that speaks PROXY protocol
  tproxy gateway routes --config conf/
  tproxy gateway explain --config conf/ --sni shop.example.com
  tproxy gateway explain --config conf/ --host shop.example.com --path /cart --json

In DIR: Gateway, VirtualService, DestinationRule, ServiceEntry (Istio), Service, EndpointSlice, Endpoints, Secret.

exit codes: 0 done, 1 check found errors or nothing is routed, 2 bad input, 3 a port cannot be had
signals of run: TERM drains and stops, HUP reads DIR again"""


def register(verbs: Verbs) -> None:
    """Add the verb and what can be done with it."""
    top = verbs.add_parser(
        "gateway",
        help="let the outside in, by SNI and port",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = top.add_subparsers(dest="action", metavar="ACTION", required=True)
    run_parser = actions.add_parser("run", help="serve until SIGTERM")
    _add_source(run_parser)
    add_log_options(run_parser)
    _add_settings(run_parser)
    run_parser.set_defaults(run=run)
    check_parser = actions.add_parser("check", help="say what is wrong with the configuration, and where")
    _add_source(check_parser)
    check_parser.set_defaults(run=check)
    routes_parser = actions.add_parser("routes", help="list every rule of every port")
    _add_source(routes_parser)
    routes_parser.set_defaults(run=routes)
    explain_parser = actions.add_parser("explain", help="say which rule is taken, and why not the others")
    _add_source(explain_parser)
    explain_parser.add_argument("--sni", metavar="NAME", help="the name that a TLS client asks for")
    explain_parser.add_argument("--host", metavar="NAME", help="the host of an HTTP request (default: the SNI)")
    explain_parser.add_argument("--path", default="/", help="its path (default: /)")
    explain_parser.add_argument("--method", default="GET", help="its method (default: GET)")
    explain_parser.add_argument("--port", type=int, help="this port only")
    explain_parser.add_argument("--all", action="store_true", help=f"all the others, not only {SHOWN}")
    explain_parser.set_defaults(run=explain)
    for parser in (check_parser, routes_parser, explain_parser):
        parser.add_argument("--json", action="store_true", help="as JSON")


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", metavar="DIR", help="the directory of YAML files")
    parser.add_argument("--config", metavar="DIR", help="the same, as an option")
    parser.add_argument("--labels", metavar="K=V,...", default="", help="this pod's: Gateways must select them")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    from tproxy.gateway.settings import Settings

    base = Settings()
    parser.add_argument("--listen", metavar="ADDRESS", default=base.host, help="bind there (default: everywhere)")
    parser.add_argument("--hello", type=float, metavar="SECONDS", default=base.hello, help="for a whole ClientHello")
    parser.add_argument(
        "--connect", type=float, metavar="SECONDS", default=base.connect, help="for a backend to answer"
    )
    parser.add_argument("--drain", type=float, metavar="SECONDS", default=base.drain, help="to finish after SIGTERM")
    parser.add_argument("--half-open", type=int, metavar="N", default=base.half_open, help="of one address at once")
    parser.add_argument("--connections", type=int, metavar="N", default=base.connections, help="of one port at once")
    parser.add_argument("--proxy-from", metavar="CIDR,...", default="", help="who must send PROXY protocol headers")
    parser.add_argument("--metrics-port", type=int, metavar="PORT", default=15020, help="0: none (default: 15020)")
    parser.add_argument("--ready-port", type=int, metavar="PORT", default=15021, help="0: none (default: 15021)")


def folder_of(args: argparse.Namespace) -> Path:
    """The directory, from either way to say it."""
    if not (folder := args.config or args.folder):
        raise ConfigError("command line", "--config", "is missing: the directory of YAML files")
    return Path(folder)


def labels_of(args: argparse.Namespace) -> dict[str, str]:
    """``istio=ingressgateway,app=x``."""
    pairs = [pair.partition("=") for pair in args.labels.split(",") if pair]
    if wrong := next(("".join(pair) for pair in pairs if not pair[0] or not pair[1]), None):
        raise ConfigError("command line", "--labels", "expected key=value,...", wrong)
    return {key: value for key, _, value in pairs}


def settings_of(args: argparse.Namespace) -> Settings:
    """What the options say."""
    from tproxy.gateway.settings import Settings

    return Settings(
        host=args.listen,
        hello=args.hello,
        connect=args.connect,
        drain=args.drain,
        connections=args.connections,
        half_open=args.half_open,
        proxy_from=tuple(_network(part) for part in args.proxy_from.split(",") if part),
    )


def _network(text: str) -> Network:
    try:
        return parse_network(text)
    except ValueError as error:
        raise ConfigError("command line", "--proxy-from", str(error), text) from error


def load(args: argparse.Namespace) -> Loaded:
    """Read and compile the directory once."""
    from tproxy.gateway.compile import compile_table
    from tproxy.gateway.directory import Directory

    return compile_table(*Directory(folder_of(args)).read(), labels_of(args))


def run(args: argparse.Namespace) -> int:
    """Serve; how is ``cli/gateway_run.py``'s business."""
    from tproxy.cli import gateway_run

    return gateway_run.run(args)


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
        for (_, port), listener in _listeners(loaded)
        if (args.port == port if args.port else _asked(args, listener))
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
