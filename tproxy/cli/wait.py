"""``tproxy wait``: until this pod's sidecar is ready, or for a while; the hooks of an ordinary sidecar container."""

from __future__ import annotations

import argparse
import time
from http.client import HTTPConnection, HTTPException

from tproxy.cli import Verbs
from tproxy.cli.source import add_config_option, config_of
from tproxy.cli.usage import seconds

EXAMPLE = """example:
  tproxy wait --timeout 60       postStart: the next container starts when the sidecar is ready
  tproxy wait --seconds 5        preStop: go on listening while callers learn that the pod leaves

exit codes: 0 ready, 1 not ready in time, 2 bad input"""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "wait",
        help="wait until the sidecar is ready",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_option(parser)
    parser.add_argument("--timeout", type=seconds, default=60.0, metavar="SECONDS", help="give up after (default: 60)")
    parser.add_argument("--seconds", type=seconds, metavar="SECONDS", help="just let this time pass")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask, pause, ask again."""
    if args.seconds is not None:
        time.sleep(max(0.0, args.seconds))
        return 0
    port = config_of(args).ports.ready
    end, answer = time.monotonic() + args.timeout, "no answer"
    while time.monotonic() < end:
        answer = ask(port)
        if not answer:
            return 0
        time.sleep(0.1)
    print(f"tproxy wait: after {args.timeout:g} s the sidecar on port {port} is not ready: {answer}")
    return 1


def ask(port: int) -> str:
    """Why the sidecar is not ready, or nothing."""
    connection = HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/healthz/ready")
        answer = connection.getresponse()
        said = answer.read(200).decode("utf-8", "replace").strip()
        return "" if answer.status == 200 else said
    except (OSError, HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
