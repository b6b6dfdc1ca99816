"""``tproxy bench``: encrypted against plain, beside an Envoy pair captured by the same rules. Needs root."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tproxy.cli import Verbs
from tproxy.cli.need import root_and_programs

TOOLS = {"nginx": "nginx-light", "wrk": "wrk", "iperf3": "iperf3", "curl": "curl"}
EXAMPLES = """examples:
  tproxy bench                        3 rounds, about 2 minutes
  tproxy bench --rounds 6 --seconds 3 as the README's table was made"""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "bench",
        help="measure encrypted against plain",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="interleaved rounds (default 3)")
    parser.add_argument("--seconds", type=float, default=2, metavar="S", help="length of one measurement (default 2)")
    parser.add_argument("--out", default="build", metavar="DIR", help="where bench.json and bench.png go")
    parser.add_argument("--no-envoy", action="store_true", help="leave the Envoy pair out")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, in rounds that take each pair in turn."""
    root_and_programs(TOOLS)
    from tproxy.bench import measure, pairs, report
    from tproxy.world.envoy import available
    from tproxy.world.pods import World

    envoy = available() and not args.no_envoy
    with World() as world:
        made = pairs.pairs(world, envoy)
        rounds: report.Rounds = {pair.name: [] for pair in made}
        for number in range(args.rounds):
            for index, pair in enumerate(made):
                _progress(
                    f"round {number + 1} of {args.rounds}: {pair.name}",
                    number * len(made) + index,
                    args.rounds * len(made),
                )
                rounds[pair.name].append(measure.one_round(pair, args.seconds))
    _progress("", 1, 1)
    print(report.table(rounds))
    about = report.machine()
    print(
        f"\nmedians of {args.rounds} interleaved rounds of {args.seconds:g} s; {about['processors']} processors, "
        f"Linux {about['kernel']}, {about['openssl']}; CPU is the whole machine's"
    )
    print("written: " + ", ".join(map(str, report.write(rounds, Path(args.out)))))
    return 0


def _progress(text: str, done: int, total: int) -> None:
    """A bar on a terminal, a line elsewhere."""
    if sys.stderr.isatty():
        bar = "#" * (30 * done // total)
        print(f"\r[{bar:<30}] {text:<40}" if text else "\r" + " " * 75 + "\r", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
