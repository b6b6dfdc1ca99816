"""``tproxy init``: install the capture rules of this network namespace, all of them or none. May be run again."""

from __future__ import annotations

import argparse

from tproxy.cli import Verbs
from tproxy.cli.source import add_config_option, config_of

EXAMPLE = """example:
  tproxy init --config sidecar.yaml
  nsenter --net=/run/netns/web tproxy init           another namespace

Needs NET_ADMIN, in an init container that runs before the application. A second run replaces the rules in one
transaction: no connection sees a moment without them. exit codes: 0 installed, 2 bad configuration, 3 NET_ADMIN or a
kernel feature is missing (then nothing is installed)"""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "init",
        help="install the capture rules in this network namespace",
        description="Install the capture rules: from then on TCP goes through the sidecar, or is refused.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Dry run; then the routes, which nothing uses yet; then the rules, in one transaction."""
    from tproxy.core.ruleset import TABLE, ruleset
    from tproxy.kernel import nft, route, seal
    from tproxy.kernel.errors import KernelError

    config = config_of(args)
    rules = ruleset(config)
    nft.check(rules.nft())
    done = route.add(route.items(rules.routing))
    try:
        nft.apply(rules.nft())
    except KernelError:
        if nft.table_json(TABLE) is None:  # else an older or a concurrent init needs the routes
            route.remove(done.added)
        raise
    seal.leave()
    for note in done.notes:
        print(f"tproxy init: {note}")
    ports = config.ports
    print(
        f"tproxy init: captured TCP goes to {ports.egress} (out) and {ports.ingress} (in), and is refused where "
        f"no sidecar listens; table inet {TABLE}, digest {rules.digest}"
    )
    return 0
