"""What the actions of ``tproxy gateway`` read from their options."""

from __future__ import annotations

import argparse
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tproxy.cli.usage import option
from tproxy.core.address import parse_address, parse_network
from tproxy.core.fields import ConfigError

if TYPE_CHECKING:
    from tproxy.core.policy.istio_policy import Names
    from tproxy.gateway.compile import Loaded
    from tproxy.gateway.settings import Settings
    from tproxy.gateway.site import Site


def folder_of(args: argparse.Namespace) -> Path:
    """The directory, from either way to say it."""
    if not (folder := args.config or args.folder):
        raise ConfigError("command line", "DIR", "is missing: the directory of YAML files")
    return Path(folder)


def labels_of(args: argparse.Namespace) -> dict[str, str]:
    """``istio=ingressgateway,app=x``."""
    pairs = [pair.partition("=") for pair in args.labels.split(",") if pair]
    if wrong := next(("".join(pair) for pair in pairs if not pair[0] or not pair[1]), None):
        raise ConfigError("command line", "--labels", "expected key=value,...", wrong)
    return {key: value for key, _, value in pairs}


def site_of(args: argparse.Namespace) -> Site:
    """Where it runs: in which namespaces Istio's Gateways find their Secrets."""
    from tproxy.gateway.secrets import Where
    from tproxy.gateway.site import Site

    namespace = args.pod_namespace or os.environ.get("POD_NAMESPACE") or Where().namespace
    secrets = Where(namespace, args.secrets_beside)
    names = _names(getattr(args, "mesh", None) or "")
    return Site(secrets=secrets, names=names, session_key=getattr(args, "session_key", b""))


@cache
def _names(path: str) -> Names:
    """The trust domain that policies mean: that of our identity as it was at the start, or the usual one."""
    from tproxy.core.policy.istio_policy import Names
    from tproxy.gateway.site import USUAL

    if not path:
        return USUAL
    from tproxy.cli.gateway_mesh import mesh_of

    config = mesh_of(path)
    return Names(config.trust_domain, config.trust.aliases, tuple(each.trust_domain for each in config.trust.federated))


def settings_of(args: argparse.Namespace) -> Settings:
    """What the options say."""
    from tproxy.core.hostnames import parse_hostname
    from tproxy.gateway.settings import Settings

    return Settings(
        host=str(option("--listen", parse_address, args.listen)) if args.listen else "",
        hello=args.hello,
        connect=args.connect,
        drain=args.drain,
        stall=args.stall,
        body_rate=args.body_rate,
        ping_clients=args.ping_clients,
        ping_backends=args.ping_backends,
        connections=args.connections,
        half_open=args.half_open,
        access_log=args.access_log,
        workers=args.workers,
        default_sni=option("--default-sni", parse_hostname, args.default_sni) if args.default_sni else "",
        proxy_from=tuple(option("--proxy-from", parse_network, part) for part in args.proxy_from.split(",") if part),
    )


def load(args: argparse.Namespace) -> Loaded:
    """Read and compile the directory once."""
    from tproxy.gateway.compile import compile_table
    from tproxy.gateway.directory import Directory

    return compile_table(*Directory(folder_of(args)).read(), labels_of(args), site_of(args))
