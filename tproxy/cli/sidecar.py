"""``tproxy sidecar``: carry this pod's traffic until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from tproxy.cli import Verbs
from tproxy.cli.log import add_log_options, record_writer, start_logging
from tproxy.cli.source import add_config_option, config_of, labelled, routed
from tproxy.core.config import Config, Files, Identity, Relay, Sockmap, parse_port
from tproxy.core.directory import Entry
from tproxy.core.fields import ConfigError
from tproxy.core.identity_config import parse_socket
from tproxy.core.plaintext import Plaintext, Talk
from tproxy.core.settings import WorkloadApi

if TYPE_CHECKING:
    from tproxy.admin.metrics import Metrics
    from tproxy.admin.probes import Probes
    from tproxy.cli.sidecar_pages import Parts
    from tproxy.core.record import Record
    from tproxy.identity.directory import Directory
    from tproxy.identity.policies import Policies
    from tproxy.kernel.sockmap import Shortcut
    from tproxy.proxy.side import State

log = logging.getLogger("tproxy")
EXAMPLES = """examples:
  tproxy sidecar --config sidecar.yaml
  tproxy sidecar -cert cert.pem -key key.pem -ca-cert ca.pem      as tproxy-pod is started
  tproxy sidecar --config sidecar.yaml --log-format json | jq .

signals: TERM drains and stops, HUP reloads certificates and configuration (changed files are also seen without it)"""


def register(verbs: Verbs) -> None:
    """Add the verb; one-dash options are tproxy-pod's."""
    parser = verbs.add_parser(
        "sidecar",
        help="carry this pod's traffic",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_option(parser)
    parser.add_argument("-cert", "--cert", metavar="FILE", help="PEM certificate chain (overrides identity.cert)")
    parser.add_argument("-key", "--key", metavar="FILE", help="PEM private key (overrides identity.key)")
    parser.add_argument("-ca-cert", "--ca", dest="ca", metavar="FILE", help="PEM trust bundle (overrides identity.ca)")
    parser.add_argument("-tcp-port", "--egress-port", metavar="PORT", help="egress listener (overrides ports.egress)")
    parser.add_argument(
        "-tls-port", "--ingress-port", metavar="PORT", help="ingress listener (overrides ports.ingress)"
    )
    add_log_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check everything, drop privileges, listen, carry."""
    # everything is imported while we may still read where Python lives
    import concurrent.futures.thread  # noqa: F401
    import encodings.idna  # noqa: F401

    import uvloop

    from tproxy.admin import dump, http, metrics  # noqa: F401
    from tproxy.admin.probes import Probes
    from tproxy.cli import sidecar_pages  # noqa: F401
    from tproxy.core.inject import checks
    from tproxy.core.inject.probes import PROBERS
    from tproxy.identity import open as sources
    from tproxy.kernel import privileges
    from tproxy.proxy import sidecar  # noqa: F401

    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else it writes a line of its own for each failed handshake
    start_logging(args)
    config = effective(args)
    assert config.identity is not None
    sources.preflight(config.identity, config.trust_domain, config.trust)
    probes = Probes(checks.parse(os.environ.get(PROBERS) or "{}", PROBERS))
    if config.directory is not None:
        from tproxy.identity import directory, policies  # noqa: F401  # gRPC costs memory
    gc.freeze()  # what start-up made lives for ever: leave it out of every later collection
    gc.set_threshold(50_000, 20, 100)
    privileges.raise_open_files()
    shortcut = _shortcut(config)
    privileges.drop(config.uid, config.gid)
    privileges.keep_secrets()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(args, config, shortcut, probes))


def _shortcut(config: Config) -> Shortcut | None:
    """Loaded while we may, tested, and said in one line. So is which relay runs."""
    from tproxy.kernel.selftest import open_shortcut
    from tproxy.kernel.sockmap import Off
    from tproxy.proxy import compiled

    wanted_relay = config.fast.relay
    if compiled.WHY_NOT and wanted_relay is Relay.COMPILED:
        raise ConfigError("configuration", "fast.relay", compiled.WHY_NOT, wanted_relay.value)
    if compiled.WHY_NOT and wanted_relay is Relay.AUTO:
        log.warning("relay: its twin in Python runs, which is slower: %s", compiled.WHY_NOT)
    made = open_shortcut(config)
    if isinstance(made, Off):
        wanted = config.fast.sockmap is not Sockmap.OFF
        log.log(logging.WARNING if wanted else logging.INFO, "sockmap is off: %s", made.why)
        return None
    log.info("sockmap is on: self-test passed, cgroup %s (%s)", made.cgroup.path, made.cgroup.how)
    return made


def effective(args: argparse.Namespace) -> Config:
    """The file's Config with the options laid over it."""
    config = routed(labelled(config_of(args)))
    ports = replace(
        config.ports,
        egress=_port(args.egress_port, "-tcp-port", config.ports.egress),
        ingress=_port(args.ingress_port, "-tls-port", config.ports.ingress),
    )
    return replace(config, identity=_identity(args, config), ports=ports)


def _identity(args: argparse.Namespace, config: Config) -> Identity:
    if isinstance(config.identity, WorkloadApi) and not config.identity.socket:
        return replace(config.identity, socket=_endpoint())
    if config.identity is not None and not any((args.cert, args.key, args.ca)):
        return config.identity
    old = config.identity if isinstance(config.identity, Files) else Files("", "", "")
    files = Files(args.cert or old.cert, args.key or old.key, args.ca or old.ca)
    for option in ("cert", "key", "ca"):
        if not getattr(files, option):
            why = "is missing: the path of a PEM file, or another source (identity.istioCa, identity.workloadApi)"
            raise ConfigError(args.config or "command line", f"identity.{option}", why)
    return files


def _endpoint() -> str:
    """SPIFFE Workload Endpoint, section 4."""
    name = "SPIFFE_ENDPOINT_SOCKET"
    value = os.environ.get(name)
    try:
        return parse_socket(value)
    except ValueError as error:
        raise ConfigError("environment", name, str(error), value) from error


def _port(text: str | None, option: str, default: int) -> int:
    try:
        return parse_port(text) if text is not None else default
    except ValueError as error:
        raise ConfigError("command line", option, str(error), text) from error


async def _serve(args: argparse.Namespace, config: Config, shortcut: Shortcut | None, probes: Probes) -> int:
    from tproxy.admin.http import serve
    from tproxy.admin.metrics import Metrics
    from tproxy.cli.sidecar_pages import Parts
    from tproxy.proxy.generations import Generations
    from tproxy.proxy.side import no_directory
    from tproxy.proxy.sidecar import Sidecar

    metrics, write = Metrics(), record_writer(args.log_format)

    def finished(record: Record) -> None:
        write(record)
        metrics.finished(record)

    def taken(state: State) -> None:
        metrics.loaded(state.contexts.snapshot)
        sidecar.take(state)
        for one in told:
            one.renewed(state.contexts.snapshot)

    def bare(talk: Talk) -> None:
        entry = directory.find(talk.peer) if directory else None
        name = entry.name if isinstance(entry, Entry) else ""
        book.add(talk, name, time.time())
        metrics.bare(talk.direction, name or "unknown")

    book, directory, policies = Plaintext(), _directory(config, metrics), _policies(config, metrics)
    told: list[Directory | Policies] = [one for one in (directory, policies) if one is not None]
    sidecar = Sidecar(finished, shortcut, directory.find if directory else no_directory, bare)
    generations = Generations(config, lambda: effective(args), args.config or "", taken, metrics.refused, policies)
    parts = Parts(sidecar, generations, metrics, book, directory, policies)
    metrics.watch(sidecar.open_connections, lambda: generations.status.failures)
    metrics.watch_routers(sidecar.routers_up)
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, generations.reload)
    servers = [await serve(sock, pages, probes) for sock, pages in parts.pages(config)]
    carrying = asyncio.create_task(_carry(parts))
    ending = asyncio.create_task(stopping.wait())
    await asyncio.wait((carrying, ending), return_when=asyncio.FIRST_COMPLETED)
    if carrying.done():
        carrying.result()
    log.info("stopping: %d connections have %g s to finish", sidecar.open_connections(), config.limits.drain)
    carrying.cancel()
    cut = await sidecar.stop()
    for server in servers:
        server.close()
    log.info("stopped: %d connections were cut", cut)
    return 0


async def _carry(parts: Parts) -> None:
    """From the first credentials on, for ever. Until then nothing listens, and the capture rules refuse."""
    sidecar, generations = parts.sidecar, parts.generations
    try:
        state = await generations.first()
        parts.metrics.loaded(state.contexts.snapshot)
        sidecar.start(state)
        ports = state.config.ports
        log.info("ready: %s, egress %d, ingress %d, uid %d", state.own, ports.egress, ports.ingress, os.geteuid())
        work = [generations.run(), sidecar.sweep(), sidecar.watch_routers()]
        if parts.directory is not None:
            parts.directory.renewed(state.contexts.snapshot)
            work.append(parts.directory.run(sidecar.moved))
        if parts.policies is not None:
            parts.policies.renewed(state.contexts.snapshot)
            work.append(parts.policies.run())
        await asyncio.gather(*work)
    finally:
        generations.stop()


def _directory(config: Config, metrics: Metrics) -> Directory | None:
    """Where it is configured."""
    if config.directory is None:
        return None
    from tproxy.identity.directory import Directory  # gRPC costs memory

    made = Directory(config.directory, config.trust_domain)
    status = made.status
    metrics.watch_directory(lambda: status.entries, lambda: status.updated, lambda: status.failures)
    return made


def _policies(config: Config, metrics: Metrics) -> Policies | None:
    """Where control is to tell them."""
    if not config.follows or config.directory is None:
        return None
    from tproxy.identity.policies import Policies  # gRPC costs memory

    made = Policies(config.directory, config.trust_domain)
    status = made.status
    metrics.watch_policies(
        lambda: status.objects, lambda: status.updated, lambda: status.failures, lambda: bool(status.refused)
    )
    return made
