"""``tproxy control``: the certificate authority as a server, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tproxy.cli import Verbs
from tproxy.cli.log import add_log_options, start_logging
from tproxy.core.config import parse_port
from tproxy.core.fields import ConfigError

if TYPE_CHECKING:
    import grpc.aio

    from tproxy.control.config import Control
    from tproxy.control.issuer import Issuer, Made
    from tproxy.control.ledger import Ledger
    from tproxy.control.metrics import Metrics
    from tproxy.control.record import Line
    from tproxy.control.service import Service
    from tproxy.control.serving import Serving

log = logging.getLogger("tproxy")
LOOK = 0.5  # seconds between two looks at the rotation and at the clock
PRUNE = 600.0  # seconds
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

signals: TERM drains and stops"""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "control",
        help="certificate authority as a server (Istio's CA API)",
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

    start_logging(args)
    config = effective(args)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, args.log_format))


def effective(args: argparse.Namespace) -> Control:
    """The file's Control with the options laid over it."""
    from tproxy.cli.source import read_yaml
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


@dataclass(frozen=True, slots=True)
class _Parts:
    """What runs."""

    issuer: Issuer
    ledger: Ledger
    serving: Serving
    service: Service
    metrics: Metrics


async def _serve(config: Control, form: str) -> int:
    parts = _parts(config, form)
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    _signs(parts)
    await parts.serving.renew()
    server = _listen(parts, config)
    await server.start()
    pages = await _pages(parts, config, stopping)
    watch = asyncio.create_task(_watch(parts, config))
    signs = parts.issuer.signer
    where = "in memory, from root.key" if signs.in_memory else "of the folder; the root is offline"
    log.info(
        "ready: CA of %s, port %d, generation %d, intermediate %s",
        signs.trust_domain,
        config.port,
        signs.generation,
        where,
    )
    await stopping.wait()
    log.info("stopping: %d calls have %g s to finish", parts.service.open_calls, config.drain)
    watch.cancel()
    await server.stop(config.drain)
    await parts.ledger.close()
    pages.close()
    log.info("stopped")
    return 0


def _parts(config: Control, form: str) -> _Parts:
    from tproxy.control import rotation
    from tproxy.control.authenticate import Door
    from tproxy.control.issuer import Issuer
    from tproxy.control.ledger import Ledger
    from tproxy.control.metrics import Metrics
    from tproxy.control.record import Issued
    from tproxy.control.service import Service
    from tproxy.control.serving import Serving
    from tproxy.control.state import State

    folder = Path(config.dir)
    state, ledger, metrics = State.open(folder), Ledger(State.open(folder)), Metrics()
    issuer = Issuer(folder, state, ledger, config.max_ttl)
    rotation.publish(folder, state)
    domain = issuer.signer.trust_domain
    if config.trust_domain not in ("", domain):
        raise ConfigError(config.dir, "trustDomain", f"this authority is of {domain}", config.trust_domain)
    write = _writer(form)

    def finished(line: Line) -> None:
        write(line)
        metrics.count(line)

    def swapped(made: Made) -> None:
        finished(Issued(time.time(), made.entry))
        metrics.serves(made.entry.not_after)

    serving = Serving(issuer, config.names, swapped)
    service = Service(config, issuer, Door(config, domain, state), finished, metrics.took)
    metrics.watch(lambda: service.open_calls)
    return _Parts(issuer, ledger, serving, service, metrics)


def _listen(parts: _Parts, config: Control) -> grpc.aio.Server:
    try:
        return parts.service.listen(parts.serving.credentials())
    except RuntimeError as error:
        why = "cannot be listened on: is another server running, or is the address not ours?"
        raise ConfigError("configuration", "listen.port", why, config.port) from error


async def _watch(parts: _Parts, config: Control) -> None:
    """Take up rotation steps, renew what ages, forget what is old."""
    pruned, seen = time.monotonic(), parts.issuer.signer
    while True:
        await asyncio.sleep(LOOK)
        try:
            parts.issuer.refresh()
            if parts.issuer.signer is not seen:  # a call that came in between may have refreshed it before us
                seen = parts.issuer.signer
                _signs(parts)
            if parts.serving.is_due():
                await parts.serving.renew()
            if time.monotonic() - pruned > PRUNE:
                pruned = time.monotonic()
                await parts.ledger.prune(int(time.time()) - config.keep)
        except ConfigError as error:
            log.error("the authority goes on with what it has: %s", error)


def _signs(parts: _Parts) -> None:
    signs = parts.issuer.signer
    parts.metrics.signs(signs.generation, signs.ends().timestamp())
    log.info("generation %d signs until %s, bundle version %d", signs.generation, signs.ends(), signs.version)


async def _pages(parts: _Parts, config: Control, stopping: asyncio.Event) -> asyncio.Server:
    from prometheus_client import generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_LATEST

    from tproxy.admin.http import Answer, serve
    from tproxy.control.authority import utc_now
    from tproxy.kernel.sock import any_host, plain_listener

    def ready() -> Answer:
        if stopping.is_set():
            return Answer.text("stopping", 503)
        if parts.issuer.signer.ends() <= utc_now():
            return Answer.text("the signing certificate has ended", 503)
        return Answer.text("ready")

    def metrics() -> Answer:
        return Answer(200, generate_latest(parts.metrics.registry), CONTENT_TYPE_LATEST)

    listener = plain_listener(config.address or any_host(), config.health)
    return await serve(listener, {"/healthz/ready": ready, "/metrics": metrics})


def _writer(form: str) -> Callable[[Line], None]:
    from tproxy.control.record import as_json, text

    shown, out = as_json if form == "json" else text, sys.stdout

    def write(line: Line) -> None:
        out.write(shown(line) + "\n")
        out.flush()

    return write
