"""``tproxy sidecar``: carry this pod's traffic until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from tproxy.cli import Verbs
from tproxy.cli.log import add_log_options, record_writer, start_logging
from tproxy.cli.source import add_config_option, config_of
from tproxy.core.config import Config, Files, Identity, Relay, Sockmap, parse_port
from tproxy.core.fields import ConfigError
from tproxy.core.identity_config import parse_socket
from tproxy.core.settings import WorkloadApi

if TYPE_CHECKING:
    from tproxy.admin.http import Pages
    from tproxy.admin.metrics import Metrics
    from tproxy.admin.probes import Probes
    from tproxy.core.record import Record
    from tproxy.identity.directory import Directory
    from tproxy.kernel.sockmap import Shortcut
    from tproxy.proxy.generations import Generations
    from tproxy.proxy.side import State
    from tproxy.proxy.sidecar import Sidecar

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
        from tproxy.identity import directory  # noqa: F401  # gRPC costs memory
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
    config = config_of(args)
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
        if directory is not None:
            directory.renewed(state.contexts.snapshot)

    directory = _directory(config, metrics)
    sidecar = Sidecar(finished, shortcut, directory.find if directory else no_directory)
    generations = Generations(config, lambda: effective(args), args.config or "", taken, metrics.refused)
    metrics.watch(sidecar.open_connections, lambda: generations.status.failures)
    metrics.watch_routers(lambda: _up(sidecar))
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, generations.reload)
    servers = [
        await serve(sock, pages, probes) for sock, pages in _pages(config, sidecar, generations, metrics, directory)
    ]
    carrying = asyncio.create_task(_carry(sidecar, generations, metrics, directory))
    told = asyncio.create_task(stopping.wait())
    await asyncio.wait((carrying, told), return_when=asyncio.FIRST_COMPLETED)
    if carrying.done():
        carrying.result()
    log.info("stopping: %d connections have %g s to finish", sidecar.open_connections(), config.limits.drain)
    carrying.cancel()
    cut = await sidecar.stop()
    for server in servers:
        server.close()
    log.info("stopped: %d connections were cut", cut)
    return 0


async def _carry(sidecar: Sidecar, generations: Generations, metrics: Metrics, directory: Directory | None) -> None:
    """From the first credentials on, for ever. Until then nothing listens, and the capture rules refuse."""
    try:
        state = await generations.first()
        metrics.loaded(state.contexts.snapshot)
        sidecar.start(state)
        ports = state.config.ports
        log.info("ready: %s, egress %d, ingress %d, uid %d", state.own, ports.egress, ports.ingress, os.geteuid())
        work = [generations.run(), sidecar.sweep(), sidecar.watch_routers()]
        if directory is not None:
            directory.renewed(state.contexts.snapshot)
            work.append(directory.run(sidecar.moved))
        await asyncio.gather(*work)
    finally:
        generations.stop()


def _up(sidecar: Sidecar) -> dict[tuple[str, int], bool]:
    """Every router's host and port, and whether it is up."""
    hops = sidecar.state.config.egress_routes.hops if sidecar.state else ()
    return {hop: hop not in sidecar.routers.down for hop in hops}


def _directory(config: Config, metrics: Metrics) -> Directory | None:
    """Where it is configured."""
    if config.directory is None:
        return None
    from tproxy.identity.directory import Directory  # gRPC costs memory

    made = Directory(config.directory, config.trust_domain)
    status = made.status
    metrics.watch_directory(lambda: status.entries, lambda: status.updated, lambda: status.failures)
    return made


def _pages(
    config: Config, sidecar: Sidecar, generations: Generations, metrics: Metrics, directory: Directory | None
) -> list[tuple[socket.socket, Pages]]:
    """What the three ports answer; the first is for this pod only."""
    from tproxy.admin import dump
    from tproxy.admin.http import Answer
    from tproxy.kernel.sock import any_host, plain_listener

    def ready() -> Answer:
        why = sidecar.not_ready()
        error = generations.status.error if why else ""
        why = why or (directory.not_ready() if directory else "")
        return Answer.text(": ".join(filter(None, (why, error))), 503) if why else Answer.text("ready")

    def whole() -> Answer:
        state = sidecar.state
        others = asdict(directory.status) if directory else None
        return Answer.json(dump.config_dump(state.config, state.contexts.snapshot, others) if state else {})

    def others() -> Answer:
        return Answer.json(dump.directory_dump(asdict(directory.status), directory.entries) if directory else {})

    def identity() -> Answer:
        state = sidecar.state
        return Answer.json(dump.identity_dump(asdict(generations.status), state.contexts.snapshot if state else None))

    ports = config.ports
    health: dict[str, Callable[[], Answer]] = {"/healthz/ready": ready}
    scrape = {"/metrics": metrics.page, **health}
    admin = {"/config_dump": whole, "/identity": identity, "/directory": others, **scrape}
    return [
        (plain_listener("127.0.0.1", ports.admin), admin),
        (plain_listener(any_host(), ports.metrics), scrape),
        (plain_listener(any_host(), ports.ready), health),
    ]
