"""``tproxy gateway``: let the outside in by SNI and port, with the YAML people have; check, list and explain it."""

from __future__ import annotations

import argparse

from tproxy.cli import Verbs
from tproxy.cli.gateway_endpoints import add_options as add_endpoints_options
from tproxy.cli.gateway_endpoints import endpoints
from tproxy.cli.gateway_kubernetes import add_options
from tproxy.cli.gateway_show import SHOWN, check, explain, listeners, routes
from tproxy.cli.log import add_log_options

EXAMPLES = """examples:
  tproxy gateway check conf/                                 errors and warnings with file, line and field
  tproxy gateway run --config conf/                          serve; changed files are taken up at once
  tproxy gateway run --kubernetes --publish-service ns/name  read a cluster's objects, write their statuses back
  tproxy gateway run --config conf/ --proxy-from 10.0.0.0/8  behind a load balancer that speaks PROXY protocol
  tproxy gateway listeners --config conf/                    ports, names, and what they lead to
  tproxy gateway routes --config conf/
  tproxy gateway endpoints                                   of a running gateway: who is left out for failing
  tproxy gateway explain --config conf/ --sni shop.example.com
  tproxy gateway explain --config conf/ --host shop.example.com --path /cart --header 'x-user: me'

In DIR: Istio's Gateway, VirtualService, DestinationRule, ServiceEntry, Telemetry; Gateway API's Gateway, ListenerSet,
HTTPRoute, GRPCRoute, TLSRoute, TCPRoute, UDPRoute, ReferenceGrant, BackendTLSPolicy; Service, EndpointSlice, Endpoints,
Pod, Namespace, Secret, ConfigMap.

exit codes: 0 done, 1 errors found, nothing routed, or an endpoint left out, 2 bad input, 3 a port cannot be had
signals of run: TERM drains and stops, HUP reads DIR again"""


def register(verbs: Verbs) -> None:
    """Add the verb and what can be done with it."""
    top = verbs.add_parser(
        "gateway",
        help="let the outside in, by SNI and port",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = top.add_subparsers(dest="action", metavar="ACTION", required=True)
    run_parser = actions.add_parser("run", help="serve until SIGTERM")
    _add_source(run_parser)
    add_options(run_parser)
    add_log_options(run_parser)
    _add_settings(run_parser)
    run_parser.set_defaults(run=run)
    check_parser = actions.add_parser("check", help="say what is wrong with the configuration, and where")
    _add_source(check_parser)
    check_parser.set_defaults(run=check)
    routes_parser = actions.add_parser("routes", help="list every rule of every port")
    _add_source(routes_parser)
    routes_parser.set_defaults(run=routes)
    listeners_parser = actions.add_parser("listeners", help="list every port, and what its names lead to")
    _add_source(listeners_parser)
    listeners_parser.set_defaults(run=listeners)
    endpoints_parser = actions.add_parser("endpoints", help="list whom a running gateway asks, and who is left out")
    add_endpoints_options(endpoints_parser)
    endpoints_parser.set_defaults(run=endpoints)
    explain_parser = actions.add_parser("explain", help="say which rule is taken, and why not the others")
    _add_source(explain_parser)
    explain_parser.add_argument("--sni", metavar="NAME", help="the name that a TLS client asks for")
    explain_parser.add_argument("--host", metavar="NAME", help="the host of an HTTP request (default: the SNI)")
    explain_parser.add_argument("--path", default="/", help="its path (default: /)")
    explain_parser.add_argument("--method", default="GET", help="its method (default: GET)")
    explain_parser.add_argument(
        "--header", metavar="NAME:VALUE", action="append", default=[], help="one of its headers; may stand here often"
    )
    explain_parser.add_argument("--port", type=int, help="this port only")
    explain_parser.add_argument("--all", action="store_true", help=f"all the others, not only {SHOWN}")
    explain_parser.set_defaults(run=explain)
    for parser in (check_parser, routes_parser, listeners_parser, explain_parser):
        parser.add_argument("--json", action="store_true", help="as JSON")


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", metavar="DIR", help="the directory of YAML files")
    parser.add_argument("--config", metavar="DIR", help="the same, as an option")
    parser.add_argument(
        "--pod-namespace", metavar="NAME", help="where credentialName is looked up (default: $POD_NAMESPACE)"
    )
    parser.add_argument(
        "--secrets-beside", action="store_true", help="look for credentialName in the Gateway's own namespace, too"
    )
    parser.add_argument("--labels", metavar="K=V,...", default="", help="this pod's: Gateways must select them")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    from tproxy.gateway.settings import Settings

    base = Settings()
    parser.add_argument("--listen", metavar="ADDRESS", default=base.host, help="bind there (default: everywhere)")
    parser.add_argument("--hello", type=float, metavar="SECONDS", default=base.hello, help="for a whole ClientHello")
    parser.add_argument(
        "--connect", type=float, metavar="SECONDS", default=base.connect, help="for a backend to answer"
    )
    parser.add_argument("--drain", type=float, metavar="SECONDS", default=base.drain, help="to finish after SIGTERM")
    parser.add_argument("--default-sni", metavar="NAME", default="", help="taken for clients that send no SNI")
    parser.add_argument("--mesh", metavar="FILE", help="a sidecar's configuration: our identity towards ISTIO_MUTUAL")
    parser.add_argument("--half-open", type=int, metavar="N", default=base.half_open, help="of one address at once")
    parser.add_argument("--connections", type=int, metavar="N", default=base.connections, help="of one port at once")
    parser.add_argument("--proxy-from", metavar="CIDR,...", default="", help="who must send PROXY protocol headers")
    parser.add_argument("--workers", type=int, metavar="N", default=base.workers, help="processes on the same ports")
    parser.add_argument(
        "--access-log", choices=("off", "text", "json"), default="", help="a line each request (default: by Telemetry)"
    )
    parser.add_argument("--metrics-port", type=int, metavar="PORT", default=15020, help="0: none (default: 15020)")
    parser.add_argument(
        "--admin-port",
        type=int,
        metavar="PORT",
        default=15000,
        help="/config_dump on loopback; 0: none (default: 15000)",
    )
    parser.add_argument("--ready-port", type=int, metavar="PORT", default=15021, help="0: none (default: 15021)")


def run(args: argparse.Namespace) -> int:
    """Serve; how is ``cli/gateway_run.py``'s business."""
    from tproxy.cli import gateway_run  # logging and signals: not for who only asks

    return gateway_run.run(args)
