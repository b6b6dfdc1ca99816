"""``tproxy forward``: one port to one target, in place of socat; and k3d-manager's systemd service around it."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from tproxy.cli import Verbs
from tproxy.cli.log import add_log_options
from tproxy.cli.usage import call, count, port_or_none, seconds, seconds_or_none
from tproxy.core.ingress_forward import HOSTS, USAGE

EXAMPLES = """examples:
  tproxy forward run TCP-LISTEN:443,fork,reuseaddr TCP:10.211.55.14:32653
  tproxy forward run TCP-LISTEN:8443,fork,bind=127.0.0.1 TCP:backend:443 --proxy-protocol v2
  tproxy forward setup                 a systemd service that forwards 443 to Istio's NodePort
  tproxy forward setup --print         what would be installed
  tproxy forward status
  tproxy forward remove

setup, status and remove read K3S_INGRESS_FORWARD_ENABLED (1), K3S_INGRESS_FORWARD_HTTPS_PORT (443), K3S_NODE_IP,
NODE_IP, K3S_INGRESS_SERVICE_NAME (k3s-ingress-forward), K3S_INGRESS_SERVICE_FILE, and call kubectl, ip, systemctl, ss.

exit codes: 0 done, 1 it could not be done, or an unknown action, 2 bad input, 3 a port or a file cannot be had"""
RUN = """examples:
  tproxy forward run TCP-LISTEN:443,fork,reuseaddr TCP:10.211.55.14:32653
  tproxy forward run TCP-LISTEN:8443,fork,bind=127.0.0.1 TCP:backend:443 --proxy-protocol v2 --metrics-port 9100

exit codes: 0 stopped by SIGTERM, 2 bad input, 3 the port cannot be had"""
SETUP = """examples:
  tproxy forward setup --print
  K3S_NODE_IP=10.211.55.14 tproxy forward setup
  tproxy forward setup --target TCP:10.0.0.7:443 --proxy-protocol v2

exit codes: 0 done, 1 it could not be done, 3 the unit file cannot be written"""


def register(verbs: Verbs) -> None:
    """Add the verb and what can be done with it."""
    top = verbs.add_parser(
        "forward",
        help="forward one port, in place of socat",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.error = _unknown  # type: ignore[method-assign]  # argparse would end with 2; those who call us know 1
    actions = top.add_subparsers(dest="action", metavar="ACTION", required=True, help="its own --help says more")
    _add_run(actions)
    setup = call(actions, "setup", "install and start the systemd service", SETUP, ["enable"])
    setup.add_argument("--print", action="store_true", help="only show the unit file and what would be called")
    setup.add_argument("--target", metavar="TARGET", help="TCP:host:port, instead of Istio's NodePort")
    setup.add_argument("--proxy-protocol", choices=("v1", "v2"), help="tell the target of each client")
    setup.add_argument("--host", action="append", metavar="NAME", help=f"for the hints (default: {', '.join(HOSTS)})")
    setup.set_defaults(run=_service, does="setup")
    actions.add_parser("status", help="say whether it runs").set_defaults(run=_service, does="status")
    remove = actions.add_parser("remove", aliases=["disable"], help="stop and remove the service")
    remove.set_defaults(run=_service, does="remove")


def _unknown(message: str) -> NoReturn:
    print(USAGE)
    print(f"  run     - Forward in the foreground, see tproxy forward -h\n\ntproxy forward: {message}", file=sys.stderr)
    sys.exit(1)


def _add_run(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = call(actions, "run", "forward until SIGTERM", RUN)
    parser.add_argument("listen", metavar="LISTEN", help="TCP-LISTEN:port[,fork][,reuseaddr][,bind=address]")
    parser.add_argument("target", metavar="TARGET", help="TCP:host:port")
    add_log_options(parser)
    parser.add_argument("--proxy-protocol", choices=("none", "v1", "v2"), default="none", help="tell it of each client")
    parser.add_argument("--connect", type=seconds, default=10.0, metavar="SECONDS", help="for the target (default: 10)")
    parser.add_argument(
        "--drain", type=seconds_or_none, default=1.0, metavar="SECONDS", help="to finish after SIGTERM (1)"
    )
    parser.add_argument("--connections", type=count, default=65_536, metavar="N", help="at once (default: 65536)")
    parser.add_argument(
        "--health", type=seconds_or_none, default=10.0, metavar="SECONDS", help="between checks; 0: none (10)"
    )
    parser.add_argument(
        "--metrics-port", type=port_or_none, default=0, metavar="PORT", help="/metrics, /healthz/ready (none)"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from tproxy.cli import forward_run  # logging and signals: not for who only asks

    return forward_run.run(args)


def _service(args: argparse.Namespace) -> int:
    from tproxy.cli import forward_service

    return forward_service.run(args)
