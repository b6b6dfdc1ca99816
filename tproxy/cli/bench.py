"""``tproxy bench``: encrypted against plain, beside an Envoy pair captured by the same rules. Needs root."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tproxy.cli import Verbs
from tproxy.cli.need import root_and_programs

TOOLS = {"nginx": "nginx-light", "wrk": "wrk", "iperf3": "iperf3", "curl": "curl", "h2load": "nghttp2-client"}
EXAMPLES = """examples:
  tproxy bench --quick                             1 short round, about 2 minutes
  tproxy bench --rounds 6 --seconds 2 --growth     as the README's table was made
  tproxy bench --only 'tproxy, mTLS + sockmap' --only 'Envoy, mTLS'"""


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
    parser.add_argument("--quick", action="store_true", help="1 round of 1 second each")
    parser.add_argument("--only", action="append", metavar="PAIR", help="this pair, as the table names it; repeatable")
    parser.add_argument("--growth", action="store_true", help="also the memory of 1 to 9000 idle connections")
    parser.add_argument("--out", default="build", metavar="DIR", help="where bench.json and bench.png go")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, in rounds that take each pair in turn."""
    root_and_programs(TOOLS)
    from tproxy.bench import growth, report
    from tproxy.bench.pairs import MAKERS
    from tproxy.world.envoy import available

    names = [maker.name for maker in MAKERS]
    for name in args.only or ():
        if name not in names:
            print(f"tproxy bench: no pair is called {name!r}; there are: {', '.join(names)}", file=sys.stderr)
            return 2
    names = [name for name in args.only or names if available() or not name.startswith("Envoy")]
    count, seconds = (1, 1.0) if args.quick else (args.rounds, args.seconds)
    rounds = _rounds(names, count, seconds)
    idle = growth.idle() if args.growth else {}
    print(report.table(rounds))
    print("\n" + report.goal_table(rounds))
    for side, sizes in idle.items():
        print(f"\nKiB a connection that is idle, {side}: " + ", ".join(f"{n}: {kib:.1f}" for n, kib in sizes.items()))
    about = report.machine()
    print(
        f"\n{report.words(rounds)}\n\nmedians of {count} interleaved rounds of {seconds:g} s; {about['processors']} "
        f"processors, Linux {about['kernel']}, {about['openssl']}; CPU is the whole machine's"
    )
    print("written: " + ", ".join(map(str, report.write(rounds, idle, Path(args.out)))))
    return 0


def _rounds(names: list[str], count: int, seconds: float) -> dict[str, list[dict[str, float]]]:
    from tproxy.bench import measure
    from tproxy.bench.pairs import ENVOY, pairs
    from tproxy.world.pods import World

    with World() as world:
        made = pairs(world, names)
        envoy = next((pair for pair in made if pair.name == ENVOY), None)
        steady = measure.requests(envoy, seconds, 32, close=False)[0] / 2 if envoy else 0.0
        rounds: dict[str, list[dict[str, float]]] = {pair.name: [] for pair in made}
        began = time.monotonic()
        for number in range(count):
            for index, pair in enumerate(made):
                done, total = number * len(made) + index, count * len(made)
                _progress(f"round {number + 1} of {count}: {pair.name}", done, total, began)
                rounds[pair.name].append(measure.one_round(pair, seconds, steady))
    _progress("", 1, 1, began)
    return rounds


def _progress(text: str, done: int, total: int, began: float) -> None:
    """A bar with what is left on a terminal, a line elsewhere."""
    left = f"{(time.monotonic() - began) / done * (total - done) / 60:.0f} min left" if done else ""
    if sys.stderr.isatty():
        bar = "#" * (30 * done // total)
        print(f"\r[{bar:<30}] {text:<44} {left:<12}" if text else "\r\033[K", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
