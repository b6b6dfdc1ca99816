"""``tproxy rules``: print what ``tproxy init`` would install. Touches nothing, needs no capability."""

from __future__ import annotations

import argparse
import json

from tproxy.cli import Verbs
from tproxy.cli.source import add_config_option, config_of

EXAMPLE = """example:
  tproxy rules --config sidecar.yaml                 routes as comments, then the nft transaction
  tproxy rules --config sidecar.yaml | nft -c -f -   does this kernel take them?
  tproxy rules --json | jq '.chains[].name'"""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "rules",
        help="print the capture rules",
        description="Print the nft rules, ip rules and routes that tproxy init would install.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="as one JSON object: chains, rules, ip rules, routes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print them."""
    from tproxy.core.egress.explain import summary
    from tproxy.core.ruleset import ruleset

    config = config_of(args)
    rules, routes = ruleset(config), config.egress_routes
    if args.json:
        print(json.dumps({**rules.as_dict(), "egress": [summary(rule) for rule in routes.rules]}, indent=2))
        return 0
    print(rules.text().rstrip("\n"))
    if routes.file:
        print(f"# the sidecar sends on by the rules in {routes.file}")
    for rule in routes.rules:
        print(f"# the sidecar sends on, by rule {summary(rule)}")
    return 0
