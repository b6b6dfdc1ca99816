"""``tproxy plaintext``: who still talks plaintext to this pod, and to whom it does: what a migration waits for."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from tproxy.cli import Verbs
from tproxy.cli.ask import page
from tproxy.cli.usage import port, seconds
from tproxy.cli.words import ago
from tproxy.core.config import Ports

EXAMPLES = """examples:
  tproxy plaintext                                           in the pod, beside the sidecar
  kubectl exec POD -c tproxy-sidecar -- tproxy plaintext     to make it strict when nobody is listed
  tproxy plaintext --since 3600                              only of the last hour

exit codes: 0 nobody calls in plaintext, 1 somebody does (what this pod calls does not count), 2 nobody answers"""
FAR = 10 * 365 * 86400.0  # seconds


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "plaintext",
        help="who still talks plaintext to the running sidecar",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=port, default=Ports().admin, metavar="PORT", help="the sidecar's ports.admin")
    parser.add_argument("--since", type=seconds, default=FAR, metavar="SECONDS", help="only who did so in these")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask the sidecar of this pod."""
    found, now = page(args.port, "/plaintext", "--port"), time.time()
    rows = [row for row in found.get("rows", []) if row["open"] or now - row["last"] <= args.since]
    if args.json:
        print(json.dumps({**found, "rows": rows}, indent=2))
    else:
        print("\n".join(table(found, rows, now)))
    return 1 if any(row["direction"] == "ingress" for row in rows) else 0


def table(found: dict[str, Any], rows: list[dict[str, Any]], now: float) -> list[str]:
    """Callers, then who is called."""
    if not found:
        return ["the sidecar waits for credentials, and lets nobody in"]
    lines, modes = list[str](), found["modes"]
    for direction, title in (("ingress", "calls this pod in plaintext"), ("egress", "is called in plaintext")):
        chosen = [row for row in rows if row["direction"] == direction]
        if not chosen:
            lines.append(f"nobody {title}")
            continue
        end = "mode" if direction == "ingress" else ""
        lines.append(f"{title:<40} {'port':>5} {'connections':>11} {'open':>5}  {'last':<12} {end}".rstrip())
        for row in chosen:
            who = f"{row['peer']} {row['name'] or '(not in the directory)'}"
            mode = modes.get(str(row["port"]), modes[""]) if direction == "ingress" else ""
            counts = f"{row['port']:>5} {row['connections']:>11} {row['open']:>5}"
            lines.append(f"{who:<40} {counts}  {ago(row['last'], now):<12} {mode}".rstrip())
    if found["forgotten"]:
        lines.append(f"{found['forgotten']} older ones are forgotten")
    return lines
