"""``tproxy init``: capture this network namespace's TCP. Twice is fine; if it fails, nothing is installed."""

from __future__ import annotations

import argparse

from tproxy.cli import Verbs
from tproxy.cli.source import add_config_option, config_of

EXAMPLES = """examples:
  tproxy init --config sidecar.yaml
  nsenter --net=/run/netns/web tproxy init    in another namespace

From then on nothing enters or leaves by TCP unless the sidecar runs: the rules refuse what nobody takes."""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "init",
        help="install the capture rules",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Dry run, then the rules (which refuse at once what cannot be delivered yet), then the way to deliver it."""
    from tproxy.core.ruleset import TABLE, ruleset
    from tproxy.kernel import nft, route
    from tproxy.kernel.errors import KernelError

    rules = ruleset(config_of(args))
    nft.check(rules.nft())
    fresh = nft.chains(TABLE) is None
    try:
        nft.apply(rules.nft())
        route.add(rules.routing)
    except KernelError:
        if fresh:  # a second run that fails leaves what the first one installed
            nft.apply(rules.removal())
            route.remove(rules.routing)
        raise
    print(f"capture rules installed in this network namespace: table inet {TABLE}, digest {rules.digest}")
    return 0
