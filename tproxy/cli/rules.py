"""``tproxy rules``: print exactly what ``tproxy init`` would install."""

from __future__ import annotations

import argparse
import json

from tproxy.cli import Verbs
from tproxy.cli.source import add_config_option, config_of

EXAMPLES = """examples:
  tproxy rules                                what the defaults would install
  tproxy rules --config sidecar.yaml | nft -c -f -
  tproxy rules --json | jq '.chains[].name'"""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "rules",
        help="print the capture rules",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="as JSON, with the reason for each rule")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print; nothing is touched."""
    from tproxy.core.ruleset import ruleset

    rules = ruleset(config_of(args))
    print(json.dumps(rules.as_dict(), indent=2) if args.json else rules.text(), end="\n" if args.json else "")
    return 0
