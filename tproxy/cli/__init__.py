"""One file per verb; the only readers of argv and environment. A verb wires objects together and decides nothing.

Each verb file has ``register(verbs)``, which adds its parser with ``set_defaults(run=...)``; ``run(args)`` returns the
exit code: 0 done, 1 the answer is no, 2 bad input, 3 a capability or kernel feature is missing. Heavy imports stand
inside ``run``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TypeAlias

from tproxy import __version__, native
from tproxy.cli.usage import Parser
from tproxy.core.fields import ConfigError
from tproxy.kernel.errors import KernelError

VERBS = (
    "sidecar",
    "init",
    "cleanup",
    "rules",
    "check",
    "policy",
    "identity",
    "plaintext",
    "ca",
    "control",
    "inject",
    "gateway",
    "forward",
    "wait",
    "demo",
    "bench",
    "completion",
)
Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # what register() is given

EXAMPLES = """examples:
  tproxy ca init --dir ca --trust-domain cluster.local
  tproxy rules --config sidecar.yaml          print what would be installed
  tproxy init --config sidecar.yaml           install it in this network namespace
  tproxy sidecar --config sidecar.yaml        carry the traffic
  tproxy check --config sidecar.yaml          why does it not work?
  tproxy inject -f app.yaml | kubectl apply -f -
  tproxy gateway run --config DIR             let the outside in, by SNI and port
  tproxy forward run TCP-LISTEN:443,fork,reuseaddr TCP:10.0.0.1:32653

exit codes: 0 done, 1 the answer is no, 2 bad input, 3 a capability or kernel feature is missing"""


class _Version(argparse.Action):
    """The version, and what of it runs compiled."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from tproxy.proxy import compiled

        print(f"tproxy {__version__}")
        for what, why_not in (("relay", compiled.WHY_NOT), ("HTTP", native.FINDER.why_not)):
            print(f"{what}: {f'in Python, which is slower: {why_not}' if why_not else 'compiled'}")
        parser.exit()


def parser(only: Sequence[str] = VERBS) -> argparse.ArgumentParser:
    """The command line, whole or with these verbs: a sidecar need not carry the others for ever."""
    top = Parser(
        prog="tproxy",
        description="Transparent mutual TLS for pods: fails closed, explains itself.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="show the version, and what runs compiled")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, help="its own --help says more")
    for verb in only:
        import_module(f"tproxy.cli.{verb}").register(verbs)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; every expected fault is one line on stderr and an exit code."""
    words = sys.argv[1:] if argv is None else argv
    known = words[:1] if words and words[0] in VERBS else VERBS
    args = parser(known).parse_args(words)
    try:
        code: int = args.run(args)
    except ConfigError as error:
        print(f"tproxy {args.verb}: {error}", file=sys.stderr)
        return 2
    except KernelError as error:
        print(f"tproxy {args.verb}: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    return code
