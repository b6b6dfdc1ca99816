"""``tproxy check``: why does it not work? One line per probe, and what to do."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from tproxy.cli import Verbs
from tproxy.cli.source import add_config_option, config_of

if TYPE_CHECKING:
    from tproxy.kernel.diag import Finding

COLOURS = {"ok": "\033[32m", "warn": "\033[33m", "bad": "\033[31m"}
PLAIN = "\033[0m"
EXAMPLE = """example:
  tproxy check --config sidecar.yaml
  nsenter --net=/run/netns/web tproxy check          another namespace
  tproxy check --json | jq '.[] | select(.level == "bad")'

exit codes: 0 nothing is bad, 1 something is, 2 bad configuration, 3 a capability or kernel feature is missing"""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "check",
        help="why does it not work? capabilities, kernel, rules, listeners, certificates",
        description="Look at this network namespace and say what is wrong and what to do. Changes nothing.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="as a JSON array of findings")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Probe, print, and put the worst into the exit code."""
    from tproxy.kernel.diag import probes

    findings = list(probes(config_of(args)))
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(table(findings, colour=sys.stdout.isatty()))
    return exit_code(findings)


def exit_code(findings: Sequence[Finding]) -> int:
    """3 before 1: what the kernel lacks is mended first."""
    bad = [finding for finding in findings if finding.level == "bad"]
    return 3 if any(finding.missing for finding in bad) else 1 if bad else 0


def table(findings: Sequence[Finding], *, colour: bool) -> str:
    """A line for each finding; the advice stands below it."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        level = f"{finding.level:<4}"
        lines.append(
            f"{COLOURS[finding.level] + level + PLAIN if colour else level}  {finding.name:<{width}}  {finding.found}"
        )
        if finding.advice:
            lines.append(f"{'':<{width + 8}}-> {finding.advice}")
    return "\n".join(lines)
