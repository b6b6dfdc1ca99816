"""``tproxy policy``: what the policy of a configuration, Kubernetes objects included, says about one caller."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace

from tproxy.cli import Verbs, policy_egress
from tproxy.cli.ask import page
from tproxy.cli.source import add_config_option, config_of, labelled
from tproxy.cli.usage import option
from tproxy.core.address import Address, Endpoint, parse_address
from tproxy.core.config import Config, parse_port
from tproxy.core.fields import ConfigError
from tproxy.core.identity import SpiffeId
from tproxy.core.policy.conditions import Attribute
from tproxy.core.policy.effective import settle, with_set
from tproxy.core.policy.explain import Explanation, explain
from tproxy.core.policy.told import Told

EXAMPLES = """examples:
  tproxy policy explain --config sidecar.yaml --from spiffe://cluster.local/ns/shop/sa/web --port 80
  tproxy policy explain --config sidecar.yaml --from 10.0.0.7 --port 80      a caller without identity: plaintext
  tproxy policy explain --config sidecar.yaml --from spiffe://... --from 10.0.0.7 --port 80 --json | jq .rule
  kubectl exec POD -c tproxy-sidecar -- tproxy policy explain --from spiffe://... --port 80

Policies of control (policies: {control: true}) are asked of the sidecar that runs in this pod.

exit codes: 0 allowed, 1 denied, 2 bad input"""
BOTH = """examples:
  tproxy policy explain --config sidecar.yaml --from spiffe://cluster.local/ns/shop/sa/web --port 80
  tproxy policy egress --config sidecar.yaml --to 93.184.216.34:443 --sni www.example.com

exit codes: 0 allowed, 1 denied, 2 bad input"""
_UNKNOWN = parse_address("0.0.0.0")  # no condition asks for it, see _known


def register(verbs: Verbs) -> None:
    """Add the verb."""
    top = verbs.add_parser(
        "policy",
        help="who may call, and which rule says so",
        description=__doc__,
        epilog=BOTH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = top.add_subparsers(dest="what", metavar="WHAT", required=True, help="its own --help says more")
    policy_egress.register(actions)
    parser = actions.add_parser(
        "explain",
        help="may this caller call this port, and why?",
        description="Say which object decides about a caller, why, and which came close. Touches nothing.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_option(parser)
    parser.add_argument(
        "--from",
        dest="callers",
        metavar="SPIFFE_ID|IP",
        action="append",
        required=True,
        help="the caller: its id, its address (then in plaintext), or both, each with a --from",
    )
    parser.add_argument("--port", required=True, metavar="N", help="the application's port")
    parser.add_argument("--to", metavar="IP", help="the address it calls, where a policy asks for it (destination.ip)")
    parser.add_argument("--namespace", metavar="NAME", help="this workload's, if workload.namespace does not say it")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Explain; the exit code is the answer."""
    config = _settled(_with_told(labelled(config_of(args))), args.namespace)
    port = option("--port", parse_port, args.port)
    peer, source = caller(args.callers)
    target = option("--to", parse_address, args.to) if args.to else None
    source = _known(source, "--from", Attribute.SOURCE_IP, config)
    target = _known(target, "--to", Attribute.TARGET_IP, config)
    found = explain(peer, Endpoint(source, 0), Endpoint(target, port), config)
    found = replace(found, why=found.why.replace(str(_UNKNOWN), "whatever address"))
    print(json.dumps(asdict(found), indent=2) if args.json else text(found))
    return 0 if found.allowed else 1


def _with_told(config: Config) -> Config:
    """The policies of control are those that the running sidecar has."""
    if not config.follows:
        return config
    answer = page(config.ports.admin, "/policies", "ports.admin")
    if refused := answer.get("status", {}).get("refused"):
        print(f"control has told a newer set, which is not in force: {refused}", file=sys.stderr)
    held = answer.get("held")
    if held is None:
        return config
    objects = tuple(json.dumps(one).encode() for one in held["objects"])
    return with_set(config, Told(held["version"], held["namespace"], held["root"], objects))


def text(found: Explanation) -> str:
    """For people: the answer, then every rule."""
    head = {
        "allow" if found.allowed else "deny": found.rule,
        "why": found.why,
        "port": found.mode,
        "dry-run": found.dry_run,
        "audit": found.audit,
    }
    lines = [f"{key:<8} {value}" for key, value in head.items() if value]
    width = max((len(line.rule) for line in found.lines), default=0)
    wide = max((len(line.action) for line in found.lines), default=0)
    for line in found.lines:
        lines.append(f"  {line.rule:<{width}}  {line.action:<{wide}}  {line.result}")
    return "\n".join([*lines, *(f"  not for this workload: {aside}" for aside in found.aside)])


def _settled(config: Config, namespace: str | None) -> Config:
    if config.manifests and config.settled is None and not (namespace or config.workload.namespace):
        raise ConfigError("command line", "--namespace", "is missing: the configuration does not say it")
    named = replace(config, workload=replace(config.workload, namespace=namespace)) if namespace else config
    return settle(named, None)


def caller(values: list[str]) -> tuple[SpiffeId | None, Address | None]:
    """What --from says, which may stand there twice."""
    ids = [value for value in values if value.startswith("spiffe:")]
    addresses = [value for value in values if not value.startswith("spiffe:")]
    if len(ids) > 1 or len(addresses) > 1:
        raise ConfigError("command line", "--from", "one id and one address at most", values)
    peer = option("--from", SpiffeId.parse, ids[0]) if ids else None
    return peer, option("--from", parse_address, addresses[0]) if addresses else None


def _known(address: Address | None, option: str, attribute: Attribute, config: Config) -> Address:
    """An address that a condition asks for cannot be left out: the answer would be a guess."""
    if address is None and config.policy.asks_for(attribute):
        raise ConfigError(
            "command line", option, f"is missing: a policy here asks for {attribute}, so give the address"
        )
    return address or _UNKNOWN
