"""``tproxy demo``: pods in network namespaces, mTLS between them, who is refused; or a gateway. Needs root."""

from __future__ import annotations

import argparse
from pathlib import Path

from tproxy.cli import Verbs
from tproxy.cli.need import root_and_programs

TOOLS = {"nginx": "nginx-light", "curl": "curl", "openssl": "openssl", "tcpdump": "tcpdump", "nsenter": "util-linux"}

EXAMPLES = """examples:
  tproxy demo                                               the sidecar, in ten steps
  tproxy demo --gateway --report build/demo-gateway.json    the gateway, in six

exit codes: 0 every check passed, 1 one failed, 3 not root, or a program is missing"""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "demo",
        help="show it all in network namespaces",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--report", default="build/demo.json", metavar="FILE", help="where the checks go as JSON")
    parser.add_argument("--gateway", action="store_true", help="the gateway's story instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Play; 1 if a check failed."""
    root_and_programs(TOOLS)
    if args.gateway:
        from tproxy.demo import gateway

        return gateway.play(Path(args.report))
    from tproxy.demo.story import play

    return play(Path(args.report))
