"""``tproxy check``: do this kernel, these capabilities and this namespace suffice, and what to do if not."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from tproxy.cli import Verbs
from tproxy.cli.source import add_config_option, config_of

if TYPE_CHECKING:
    from tproxy.core.config import Config
    from tproxy.kernel.diag import Finding

COLOURS = {"ok": "32", "warn": "33", "bad": "31", "missing": "31"}
EXAMPLES = """examples:
  tproxy check --config sidecar.yaml
  nsenter --net=/run/netns/web tproxy check   from outside the pod
  tproxy check --json | jq '.[] | select(.level != "ok")'

exit codes: 0 nothing is wrong, 1 something is, 3 a capability or kernel feature is missing"""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "check",
        help="say what is missing and what to do",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print every finding; the exit code is that of the worst."""
    from tproxy.kernel.diag import findings

    config = config_of(args)
    found = [*findings(config), *_identity(config)]
    if args.json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        for finding in found:
            print(_line(finding, sys.stdout.isatty()))
    levels = {finding.level.value for finding in found}
    return 3 if "missing" in levels else 1 if "bad" in levels else 0


def _identity(config: Config) -> Iterator[Finding]:
    from tproxy.core.fields import ConfigError
    from tproxy.identity.files import load
    from tproxy.kernel.diag import Finding, Level

    if config.identity is None:
        yield Finding("certificates", Level.WARN, "no identity in the configuration", "set identity.cert, key and ca")
        return
    now = time.time()
    try:
        svid = load(config.identity, config.trust_domain, now).svid
    except ConfigError as error:
        yield Finding("certificates", Level.BAD, str(error))
        return
    yield Finding("certificates", Level.OK, f"{svid.id}, serial {svid.serial:x}, {svid.not_after - now:.0f} s left")


def _line(finding: Finding, colour: bool) -> str:
    word = f"{finding.level.value:<7}"
    if colour:
        word = f"\033[{COLOURS[finding.level.value]}m{word}\033[0m"
    advice = f"\n{'':>8}{'':<20} -> {finding.advice}" if finding.advice else ""
    return f"{word} {finding.name:<20} {finding.found}{advice}"
