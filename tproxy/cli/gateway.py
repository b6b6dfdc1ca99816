"""``tproxy gateway``: let the outside in by SNI and port, with the YAML people have; check, list and explain it."""

from __future__ import annotations

import argparse

from tproxy.cli import Verbs, lean
from tproxy.cli.gateway_endpoints import add_options as add_endpoints_options
from tproxy.cli.gateway_endpoints import endpoints
from tproxy.cli.gateway_explain import SHOWN, explain
from tproxy.cli.gateway_show import check, listeners, routes
from tproxy.cli.log import add_log_options
from tproxy.cli.usage import call, count, count_or_none, port, port_or_none, seconds, seconds_or_none

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

exit codes: 0 done, 1 check found errors or nothing is routed, 2 bad input, 3 a port cannot be had
signals of run: TERM drains and stops, HUP reads DIR again"""
RUN = """examples:
  tproxy gateway run conf/                                    every port that its Gateways name
  tproxy gateway run conf/ --workers 2 --access-log text
  tproxy gateway run conf/ --mesh sidecar.yaml                into pods that take mTLS only
  tproxy gateway run --kubernetes --publish-service ns/name   a cluster's objects instead

exit codes: 0 stopped by SIGTERM, 2 bad input, 3 a port cannot be had"""
CHECK = """examples:
  tproxy gateway check conf/
  tproxy gateway check conf/ --json | jq -r '.[].text'

An error keeps the configuration from being taken up; with a warning it is served, and somebody will be surprised.
exit codes: 0 no errors, 1 errors, 2 the directory cannot be read"""
ROUTES = """examples:
  tproxy gateway routes conf/
  tproxy gateway routes conf/ --json | jq -r '.[] | select(.backends == []) | .rule'

exit codes: 0 done, 2 the directory cannot be read"""
LISTENERS = """examples:
  tproxy gateway listeners conf/
  tproxy gateway listeners conf/ --json | jq '.[].port'

exit codes: 0 done, 2 the directory cannot be read"""
ENDPOINTS = """examples:
  tproxy gateway endpoints
  kubectl -n tproxy-gateway exec deploy/tproxy-gateway -- tproxy gateway endpoints --json

exit codes: 0 all are asked, 1 one is left out for failing, 2 nobody answers"""
EXPLAIN = """examples:
  tproxy gateway explain conf/ --sni shop.example.com                  over TLS; the host is the same
  tproxy gateway explain conf/ --host shop.example.com --path /cart    on every port that takes HTTP
  tproxy gateway explain conf/ --host shop.example.com --port 80 --header 'x-user: me'
  tproxy gateway explain conf/ --sni a.example.com --host b.example.com --json
  tproxy gateway explain conf/ --host shop.example.com --from 203.0.113.9    may this address ask for it?

exit codes: 0 a rule is taken, 1 none is, 2 bad input"""


def register(verbs: Verbs) -> None:
    """Add the verb and what can be done with it."""
    top = verbs.add_parser(
        "gateway",
        help="let the outside in, by SNI and port",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = top.add_subparsers(dest="action", metavar="ACTION", required=True, help="its own --help says more")
    run_parser = call(actions, "run", "serve until SIGTERM", RUN)
    _add_source(run_parser)
    _add_cluster(run_parser)
    add_log_options(run_parser)
    _add_settings(run_parser)
    run_parser.set_defaults(run=run)
    check_parser = call(actions, "check", "say what is wrong with the configuration, and where", CHECK)
    _add_source(check_parser)
    check_parser.set_defaults(run=check)
    routes_parser = call(actions, "routes", "list every rule of every port", ROUTES)
    _add_source(routes_parser)
    routes_parser.set_defaults(run=routes)
    listeners_parser = call(actions, "listeners", "list every port, and what its names lead to", LISTENERS)
    _add_source(listeners_parser)
    listeners_parser.set_defaults(run=listeners)
    endpoints_parser = call(actions, "endpoints", "list whom a running gateway asks, and who is left out", ENDPOINTS)
    add_endpoints_options(endpoints_parser)
    endpoints_parser.set_defaults(run=endpoints)
    explain_parser = call(actions, "explain", "say which rule is taken, and why not the others", EXPLAIN)
    _add_source(explain_parser)
    explain_parser.add_argument("--sni", metavar="NAME", help="the name that a TLS client asks for (default: the host)")
    explain_parser.add_argument("--host", metavar="NAME", help="the host of an HTTP request (default: the SNI)")
    explain_parser.add_argument("--path", default="/", help="its path (default: /)")
    explain_parser.add_argument("--method", default="GET", help="its method (default: GET)")
    explain_parser.add_argument(
        "--header", metavar="NAME:VALUE", action="append", default=[], help="one of its headers; may stand here often"
    )
    explain_parser.add_argument(
        "--from",
        dest="callers",
        metavar="SPIFFE_ID|IP",
        action="append",
        default=[],
        help="the caller, for AuthorizationPolicies: its address, its certificate's id, or both, each with a --from",
    )
    explain_parser.add_argument("--port", type=port, help="this port only")
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


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    """Where the cluster is, and which of it is ours."""
    group = parser.add_argument_group("with a Kubernetes cluster instead of DIR")
    group.add_argument("--kubernetes", action="store_true", help="read objects from its API, write statuses back")
    group.add_argument("--watch-namespace", metavar="NS,...", default="", help="its objects only (default: all)")
    group.add_argument("--gateway-class", metavar="NAME,...", default="", help="of our GatewayClasses these only")
    group.add_argument("--publish-service", metavar="NS/NAME", default="", help="its addresses are the Gateways'")
    group.add_argument("--address", metavar="IP,...", default="", help="what statuses say instead")
    group.add_argument("--api-server", metavar="URL", default="", help="default: the pod's own cluster")
    group.add_argument("--token-file", metavar="FILE", default="", help="default: the pod's service account's")
    group.add_argument("--ca-file", metavar="FILE", default="", help="the API server's authority, likewise")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    from tproxy.gateway.settings import Settings

    base = Settings()
    parser.add_argument("--listen", metavar="ADDRESS", default=base.host, help="bind there (default: everywhere)")
    parser.add_argument("--hello", type=seconds, metavar="SECONDS", default=base.hello, help="for a whole ClientHello")
    parser.add_argument(
        "--connect", type=seconds, metavar="SECONDS", default=base.connect, help="for a backend to answer"
    )
    parser.add_argument(
        "--drain", type=seconds_or_none, metavar="SECONDS", default=base.drain, help="to finish after SIGTERM"
    )
    parser.add_argument(
        "--stall", type=seconds, metavar="SECONDS", default=base.stall, help="without a byte of a body that is wanted"
    )
    parser.add_argument(
        "--body-rate",
        type=count_or_none,
        metavar="BYTES",
        default=base.body_rate,
        help="a second that a request's body must bring in each such time, but for gRPC; 0: any (default: 4)",
    )
    for peer, default in (("clients", base.ping_clients), ("backends", base.ping_backends)):
        parser.add_argument(
            f"--ping-{peer}",
            type=seconds_or_none,
            metavar="SECONDS",
            default=default,
            help=f"of silence on HTTP/2 with open streams until a PING; 0: never (default: {default:g})",
        )
    parser.add_argument("--default-sni", metavar="NAME", default="", help="taken for clients that send no SNI")
    parser.add_argument("--mesh", metavar="FILE", help="a sidecar's configuration: our identity for ISTIO_MUTUAL")
    parser.add_argument("--half-open", type=count, metavar="N", default=base.half_open, help="of one address at once")
    parser.add_argument("--connections", type=count, metavar="N", default=base.connections, help="of one port at once")
    parser.add_argument("--proxy-from", metavar="CIDR,...", default="", help="who must send PROXY protocol headers")
    parser.add_argument("--workers", type=count, metavar="N", default=base.workers, help="processes on the same ports")
    parser.add_argument(
        "--access-log", choices=("off", "text", "json"), default="", help="a line each request (default: by Telemetry)"
    )
    parser.add_argument(
        "--metrics-port", type=port_or_none, metavar="PORT", default=15020, help="0: none (default: 15020)"
    )
    parser.add_argument(
        "--stats-port",
        type=port_or_none,
        metavar="PORT",
        default=15090,
        help="metrics, too, as Envoy's; 0: none (default: 15090)",
    )
    parser.add_argument(
        "--admin-port",
        type=port_or_none,
        metavar="PORT",
        default=15000,
        help="/config_dump on loopback; 0: none (default: 15000)",
    )
    parser.add_argument(
        "--ready-port", type=port_or_none, metavar="PORT", default=15021, help="0: none (default: 15021)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve; how is ``cli/gateway_run.py``'s business."""
    if not args.kubernetes and not args.mesh:  # the API server is asked through Python's ssl, and gRPC is not ours
        lean.leave_out()
    from tproxy.cli import gateway_run  # logging and signals: not for who only asks

    return gateway_run.run(args)
