"""``tproxy identity``: what a running sidecar proves to be, whom it believes, and how its renewals go."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from tproxy.cli import Verbs
from tproxy.cli.ask import page
from tproxy.cli.usage import port
from tproxy.cli.words import ago, span, when
from tproxy.core.certificates.renewal import is_short
from tproxy.core.config import Ports

EXAMPLES = """examples:
  tproxy identity                                 in the pod, beside the sidecar
  kubectl exec POD -c tproxy-sidecar -- tproxy identity
  tproxy identity --json | jq .svid.not_after

exit codes: 0 all is well, 1 no credentials, or they end soon, the last renewal failed, or policies are not in force,
2 nobody answers"""
RED, YELLOW = "31", "33"


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "identity",
        help="the running sidecar's SVID, trust bundles and renewals",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=port, default=Ports().admin, metavar="PORT", help="the sidecar's ports.admin")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask the sidecar of this pod."""
    found = page(args.port, "/identity", "--port")
    faults = troubles(found, time.time())
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        for name, text in lines(found, time.time()):
            print(f"{name:<14} {text}")
        for fault in faults:
            print(_paint(fault, RED if "svid" not in found else YELLOW))
    return 1 if faults else 0


def lines(found: dict[str, Any], now: float) -> list[tuple[str, str]]:
    """Name and words of everything that is known."""
    status, shown = found["status"], [("source", found["status"]["source"])]
    if "svid" in found:
        svid = found["svid"]
        shown += [("SVID", svid["id"]), ("serial", svid["serial"]), ("valid", _until(svid["not_after"], now))]
        shown.append(("renewed", f"{ago(status['renewed'], now)}, {status['renewals']} so far"))
    for domain, roots in found.get("bundles", {}).items():
        shown += [
            (f"bundle {index}" if index else "bundle", f"{domain}: {_root(root, now)}")
            for index, root in enumerate(roots)
        ]
    if found.get("crls"):
        shown.append(("CRLs", str(found["crls"])))
    if told := found.get("policies"):
        in_force = f"{told['objects']} objects, version {told['in_force']}" if told["in_force"] else "none yet"
        away = "" if told["connected"] else f"; control is away: {told['error'] or 'nothing came yet'}"
        shown.append(("policies", in_force + away))
    if status["error"]:
        shown.append(("last error", f"{ago(status['failed'], now)}: {status['error']}"))
    return shown


def troubles(found: dict[str, Any], now: float) -> list[str]:
    """What somebody should look at."""
    status, svid = found["status"], found.get("svid")
    if svid is None:
        return ["there are no credentials: every connection is refused until there are"]
    faults = []
    if is_short(now, svid["not_before"], svid["not_after"]):
        faults.append("less than a third of the certificate's life is left: renewal is overdue")
    if status["failures"]:
        faults.append(f"the last {status['failures']} renewals failed")
    told = found.get("policies") or {}
    if told.get("refused"):
        faults.append(f"the newest policies are not in force: {told['refused']}")
    if told and not told["in_force"]:
        faults.append("no set of policies from control is in force yet: nobody is let in")
    return faults


def _root(root: dict[str, Any], now: float) -> str:
    return f"root {root['sha256'][:16]}, {_until(root['not_after'], now) if 'not_after' in root else 'unreadable'}"


def _until(moment: float, now: float) -> str:
    return f"until {when(moment)}: " + (
        f"expires in {span(moment - now)}" if moment > now else f"expired {ago(moment, now)}"
    )


def _paint(text: str, colour: str) -> str:
    return f"\033[{colour}m{text}\033[0m" if sys.stdout.isatty() else text
