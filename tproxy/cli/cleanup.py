"""``tproxy cleanup``: remove what ``tproxy init`` installed. Running it twice, or without rules, is fine."""

from __future__ import annotations

import argparse

from tproxy.cli import Verbs
from tproxy.cli.source import add_config_option, config_of

EXAMPLES = """example:
  tproxy cleanup                              from now on the pod speaks plaintext again"""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "cleanup",
        help="remove the capture rules",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Rules first, then the routing that only they use."""
    from tproxy.core.ruleset import ruleset
    from tproxy.kernel import nft, route

    rules = ruleset(config_of(args))
    nft.apply(rules.removal())
    route.remove(rules.routing)
    print("capture rules removed from this network namespace; connections are not captured any more")
    return 0
