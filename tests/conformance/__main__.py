"""Replay everything, print a line a test, write ``build/conformance.md``; 1 if one failed, 2 without the manifests.

python -m tests.conformance [--results FILE] [--statuses] [TEST ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.conformance.catalog import TESTS
from tests.conformance.live import Live
from tests.conformance.replay import Outcome, outcome
from tests.conformance.report import markdown, summary
from tests.conformance.world import AWAY, SUITE
from tproxy.kernel.errors import KernelError


def main() -> int:
    """Those of these names, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument("--results", type=Path, help="write outcomes there, too, as JSON")
    parser.add_argument("--statuses", action="store_true", help="no traffic")
    parser.add_argument("names", nargs="*", metavar="TEST")
    args = parser.parse_args()
    if not SUITE.is_dir():
        print(AWAY)
        return 2
    results = []
    with ExitStack() as stack:
        live = None
        if not args.statuses:
            try:
                live = stack.enter_context(Live())
            except KernelError as error:
                print(f"no traffic: {error}")
        for test in TESTS:
            if not args.names or test.name in args.names:
                results.append(result := outcome(test, live))
                print(f"{result.outcome.value:24} {test.profile:5} {test.name}", *result.why, sep="\n    ", flush=True)
        if live and any(result.outcome is Outcome.FAILED for result in results):
            print(live.tail())
    print("\n".join(summary(results)))
    if args.results:
        plain = {f"{r.test.profile}-{r.test.name}": [r.outcome.value, *r.why] for r in results}
        args.results.write_text(json.dumps(plain, indent=1), encoding="utf-8")
    if not args.names and live:
        where = Path(__file__).parents[2] / "build" / "conformance.md"
        where.parent.mkdir(exist_ok=True)
        where.write_text(markdown(results), encoding="utf-8")
    return 1 if any(result.outcome is Outcome.FAILED for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
