"""``tproxy policy egress``: where a connection of this pod's application would go, and by which rule."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from tproxy.cli.source import add_config_option, config_of, routed
from tproxy.cli.usage import option
from tproxy.core.address import Endpoint, parse_address
from tproxy.core.egress.explain import Explanation, explain
from tproxy.core.fields import ConfigError
from tproxy.core.hostnames import parse_hostname

EXAMPLES = """examples:
  tproxy policy egress --config sidecar.yaml --to 93.184.216.34:443 --sni www.example.com
  tproxy policy egress --config sidecar.yaml --to 93.184.216.34:80 --from 10.0.0.7 --json | jq .hops

What the directory would say is left out. exit codes: 0 carried, 1 denied, 2 bad input"""


def register(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add it to ``tproxy policy``."""
    parser = actions.add_parser(
        "egress",
        help="where would this pod's connection go, and why?",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_option(parser)
    parser.add_argument("--to", required=True, metavar="IP:PORT", help="where the application wants to go")
    parser.add_argument("--sni", metavar="NAME", help="the name in its ClientHello (default: none)")
    parser.add_argument("--from", dest="source", metavar="IP", help="this pod's address, where a rule asks for it")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Explain; the exit code is the answer."""
    config = routed(config_of(args))
    source = Endpoint(option("--from", parse_address, args.source), 0) if args.source else None
    if source is None and any(rule.octet for rule in config.egress_routes.rules):
        raise ConfigError("command line", "--from", "is missing: a rule here asks for sourceOctet, so give the address")
    sni = option("--sni", parse_hostname, args.sni) if args.sni else None
    found = explain(source, option("--to", Endpoint.parse, args.to), sni, config)
    print(json.dumps(asdict(found), indent=2) if args.json else text(found))
    return 1 if found.answer == "deny" else 0


def text(found: Explanation) -> str:
    """For people: the answer, the routers, then every rule."""
    lines = [f"{found.answer:<8} {found.rule}", f"why      {found.why}"]
    lines += [f"router   {hop.router} at {hop.address}, weight {hop.weight}, as {hop.name}" for hop in found.hops]
    if found.otherwise:
        lines.append(f"none up  {found.otherwise}")
    width = max((len(line.rule) for line in found.lines), default=0)
    for line in found.lines:
        result = f"misses: {'; '.join(line.misses)}" if line.misses else "matches"
        lines.append(f"  {line.rule:<{width}}  {result}")
    return "\n".join(lines)
