"""``tproxy bench``: what encryption costs, beside Envoy, HAProxy and nginx captured by the same rules. Needs root.

Pairs of pods (network namespaces on one bridge) that differ only in what stands between client and server are measured
in interleaved rounds. It runs wherever network namespaces can be made: a laptop, or a privileged container.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tproxy.bench import plan
from tproxy.bench.figures import IDLE, KINDS, MEASURES
from tproxy.cli import Verbs
from tproxy.cli.need import root_and_programs
from tproxy.cli.usage import count, seconds

TOOLS = {
    "nginx": "nginx-light",
    "wrk": "wrk",
    "iperf3": "iperf3",
    "curl": "curl",
    "h2load": "nghttp2-client",
    "openssl": "openssl",
}
QUICK_IDLE = 500
EXAMPLES = f"""pairs:    {", ".join(KINDS)}
measures: {", ".join(MEASURES)}

examples:
  tproxy bench                               6 rounds, about 20 minutes
  tproxy bench --quick                       does it work here? under 2 minutes; the figures mean little
  tproxy bench --only mtls,envoy,bulk        two pairs, one measure
  tproxy bench --only idle --json - | jq .idle"""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "bench",
        help="measure encrypted against plain, and against others",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=count, metavar="N", help="interleaved rounds (default 6, quick: 1)")
    parser.add_argument(
        "--seconds", type=seconds, metavar="S", help="length of one measurement (default 1.5, quick: 0.3)"
    )
    parser.add_argument("--only", type=_names, default=[], metavar="NAME,NAME", help="these pairs and measures only")
    parser.add_argument("--quick", action="store_true", help="one short round of the pairs that the goals need")
    parser.add_argument("--out", default="build", metavar="DIR", help="where bench.json, bench.md and plots go")
    parser.add_argument(
        "--json", metavar="FILE", help="write the JSON there, too; - is standard output, and nothing else"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, and report; 1 if a measurement failed."""
    root_and_programs(TOOLS)
    from tproxy.bench import plots, report  # numpy and matplotlib take a while
    from tproxy.bench.run import Order
    from tproxy.bench.run import run as measured

    pairs, measures = plan.chosen(args.only)
    rounds, seconds = args.rounds or (1 if args.quick else 6), args.seconds or (0.3 if args.quick else 1.5)
    if args.quick and not args.only:
        pairs, measures = plan.quick(pairs, measures)
    results = measured(Order(rounds, seconds, pairs, measures, QUICK_IDLE if args.quick else IDLE[-1]))
    written = report.write(results, Path(args.out)) + plots.draw(results, Path(args.out))
    text = json.dumps(report.document(results), indent=2)
    if args.json == "-":
        print(text)
    else:
        print(report.markdown(results))
        if args.json:
            Path(args.json).write_text(text + "\n")
    print("written: " + ", ".join(map(str, written)), file=sys.stderr)
    return 1 if any(note.startswith("failed") for note in results.notes) else 0


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    try:
        plan.chosen(names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return names
