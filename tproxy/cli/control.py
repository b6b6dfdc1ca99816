"""``tproxy control``: the certificate authority and the webhook as a server, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from tproxy.cli import Verbs
from tproxy.cli.log import add_log_options, start_logging
from tproxy.core.config import parse_port
from tproxy.core.fields import ConfigError

if TYPE_CHECKING:
    from tproxy.control.config import Control

# gRPC has no switch for the least version of TLS. Our certificates are ECDSA, so with RSA's ciphers alone TLS 1.2 finds
# none in common, and 1.3, whose ciphers stand elsewhere, remains.
TLS12_CIPHERS = "ECDHE-RSA-AES128-GCM-SHA256"
EXAMPLES = """examples:
  tproxy ca init --dir ca --trust-domain cluster.local
  tproxy control --dir ca                         join tokens only (tproxy ca token)
  tproxy control --config control.yaml            with Kubernetes:

    dir: /var/lib/tproxy-ca
    names: [tproxy-control.tproxy-system.svc]
    maxTtl: 24h
    kubernetes: {enabled: true}
    injection: {image: registry.example/tproxy:1}   the webhook, port 15017

signals: TERM drains and stops"""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "control",
        help="certificate authority as a server (Istio's CA API), and the webhook that injects",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML")
    parser.add_argument("--dir", metavar="DIR", help="where the authority lives (overrides dir)")
    parser.add_argument("--port", metavar="PORT", help="of the CA API (overrides listen.port)")
    parser.add_argument("--health", metavar="PORT", help="of health and metrics (overrides listen.health)")
    add_log_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load everything, listen, answer."""
    os.environ["GRPC_SSL_CIPHER_SUITES"] = TLS12_CIPHERS  # read by gRPC when it is imported
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # below it stands a line for each handshake that fails
    import uvloop

    from tproxy.cli.control_server import serve
    from tproxy.kernel import privileges

    start_logging(args)
    privileges.keep_secrets()
    config = effective(args)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(config, args.log_format))


def effective(args: argparse.Namespace) -> Control:
    """The file's Control with the options laid over it."""
    from tproxy.cli.documents import read_yaml
    from tproxy.control.config import Control

    config = Control.parse(read_yaml(args.config) if args.config else {}, args.config or "defaults")
    if args.dir:
        config = replace(config, dir=args.dir)
    port, health = _port(args.port, "--port", config.port), _port(args.health, "--health", config.health)
    config = replace(config, port=port, health=health)
    if not config.dir:
        raise ConfigError(args.config or "command line", "dir", "is missing: the folder that tproxy ca init made")
    if not config.join_tokens and config.kubernetes is None:
        raise ConfigError(
            args.config or "command line", "joinTokens", "is false and kubernetes is off: nobody could come"
        )
    return config


def _port(text: str | None, option: str, default: int) -> int:
    try:
        return parse_port(text) if text is not None else default
    except ValueError as error:
        raise ConfigError("command line", option, str(error), text) from error
