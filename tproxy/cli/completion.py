"""``tproxy completion``: a script that completes verbs and options in your shell."""

from __future__ import annotations

import argparse

from tproxy.cli import Verbs, parser

EXAMPLES = """examples:
  tproxy completion bash > /etc/bash_completion.d/tproxy
  tproxy completion zsh > "${fpath[1]}/_tproxy\""""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    completion = verbs.add_parser(
        "completion",
        help="print shell completion",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="yours")
    completion.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    import shtab

    print(shtab.complete(parser(), args.shell))
    return 0
