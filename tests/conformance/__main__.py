"""Replay everything, print a line a test, write ``build/conformance.md``; 1 if one failed."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.conformance.catalog import TESTS
from tests.conformance.replay import Outcome, outcome
from tests.conformance.report import markdown, summary
from tests.conformance.world import AWAY, SUITE


def main(names: list[str]) -> int:
    """Those of these names, or all."""
    if not SUITE.is_dir():
        print(AWAY)
        return 2
    results = []
    for test in TESTS:
        if not names or test.name in names:
            results.append(result := outcome(test))
            print(f"{result.outcome.value:32} {test.profile:5} {test.name}", *result.why, sep="\n    ")
    print("\n".join(summary(results)))
    if not names:
        where = Path(__file__).parents[2] / "build" / "conformance.md"
        where.parent.mkdir(exist_ok=True)
        where.write_text(markdown(results), encoding="utf-8")
    return 1 if any(result.outcome is Outcome.FAILED for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
