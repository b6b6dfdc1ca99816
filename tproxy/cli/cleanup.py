"""``tproxy cleanup``: remove from this network namespace what ``tproxy init`` installed. May be run again."""

from __future__ import annotations

import argparse

from tproxy.cli import Verbs
from tproxy.cli.source import add_config_option, config_of

EXAMPLE = """example:
  tproxy cleanup
  nsenter --net=/run/netns/web tproxy cleanup        another namespace

Afterwards traffic is no longer captured: it flows in plaintext."""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "cleanup",
        help="remove the capture rules from this network namespace",
        description="Remove the capture rules, the ip rules and the routes. Existing captured connections end.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The rules first, in one transaction; then the routes, which nothing uses any more."""
    from tproxy.core.ruleset import TABLE, ruleset
    from tproxy.kernel import nft, route

    rules = ruleset(config_of(args))
    there = nft.table_json(TABLE) is not None
    nft.apply(rules.removal())
    removed = route.remove(route.items(rules.routing))
    if there or removed:
        print(f"tproxy cleanup: removed table inet {TABLE} and its routes; traffic is no longer captured")
    else:
        print("tproxy cleanup: nothing was installed")
    return 0
