"""``tproxy sidecar``: carry this pod's traffic until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tproxy.cli import Verbs
from tproxy.cli.source import add_config_option, config_of
from tproxy.core.config import Config, Files, Relay, Sockmap, parse_port
from tproxy.core.fields import ConfigError

if TYPE_CHECKING:
    from tproxy.admin.metrics import Metrics
    from tproxy.admin.probes import Probes
    from tproxy.core.record import Record
    from tproxy.identity.watch import Watch
    from tproxy.kernel.sockmap import Shortcut
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
    parser.add_argument(
        "-v", metavar="LEVEL", nargs="?", const="4", default="2", help="klog verbosity: 4 and up is debug"
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="how records and messages look")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load everything, drop privileges, listen, carry."""
    # everything is imported while we may still read where Python lives
    import concurrent.futures.thread  # noqa: F401
    import encodings.idna  # noqa: F401

    import uvloop

    from tproxy.admin import dump, http, metrics  # noqa: F401
    from tproxy.admin.probes import Probes
    from tproxy.core import checks
    from tproxy.core.probes import PROBERS
    from tproxy.kernel import privileges
    from tproxy.proxy import sidecar  # noqa: F401

    _logging(args)
    loader = _Loader(args)
    state = loader.load()
    probes = Probes(checks.parse(os.environ.get(PROBERS) or "{}", PROBERS))
    gc.freeze()  # what start-up made lives for ever: leave it out of every later collection
    gc.set_threshold(50_000, 20, 100)
    privileges.raise_open_files()
    shortcut = _shortcut(state)
    privileges.drop(state.config.uid, state.config.gid)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(args, loader, state, shortcut, probes))


def _shortcut(state: State) -> Shortcut | None:
    """Loaded while we may, tested, and said in one line. So is which relay runs."""
    from tproxy.kernel.selftest import open_shortcut
    from tproxy.kernel.sockmap import Off
    from tproxy.proxy import compiled

    wanted_relay = state.config.fast.relay
    if compiled.WHY_NOT and wanted_relay is Relay.COMPILED:
        raise ConfigError("configuration", "fast.relay", compiled.WHY_NOT, wanted_relay.value)
    if compiled.WHY_NOT and wanted_relay is Relay.AUTO:
        log.warning("relay: its twin in Python runs, which is slower: %s", compiled.WHY_NOT)
    made = open_shortcut(state.config)
    if isinstance(made, Off):
        wanted = state.config.fast.sockmap is not Sockmap.OFF
        log.log(logging.WARNING if wanted else logging.INFO, "sockmap is off: %s", made.why)
        return None
    log.info("sockmap is on: self-test passed, cgroup %s (%s)", made.cgroup.path, made.cgroup.how)
    return made


def effective(args: argparse.Namespace) -> Config:
    """The file's Config with the options laid over it."""
    config = config_of(args)
    old = config.identity if isinstance(config.identity, Files) else Files("", "", "")
    files = Files(args.cert or old.cert, args.key or old.key, args.ca or old.ca)
    for option in ("cert", "key", "ca"):
        if not getattr(files, option):
            raise ConfigError(args.config or "command line", f"identity.{option}", "is missing: the path of a PEM file")
    ports = replace(
        config.ports,
        egress=_port(args.egress_port, "-tcp-port", config.ports.egress),
        ingress=_port(args.ingress_port, "-tls-port", config.ports.ingress),
    )
    return replace(config, identity=files, ports=ports)


def _port(text: str | None, option: str, default: int) -> int:
    try:
        return parse_port(text) if text is not None else default
    except ValueError as error:
        raise ConfigError("command line", option, str(error), text) from error


class _Loader:
    """Files to State, again and again."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.watch: Watch | None = None

    def load(self) -> State:
        """Everything read anew; ConfigError on anything unusable, and nothing has changed then."""
        from tproxy.identity import files
        from tproxy.identity.watch import Watch
        from tproxy.proxy.side import State
        from tproxy.proxy.tls import contexts

        config = effective(self.args)
        assert isinstance(config.identity, Files)
        paths = [config.identity.cert, config.identity.key, config.identity.ca]
        self.watch = Watch([*paths, self.args.config] if self.args.config else paths)
        snapshot = files.load(config.identity, config.trust_domain, time.time())
        return State(config, contexts(snapshot, config.trust_domain, config.groups, config.fast.resumption))

    def changed(self) -> bool:
        """Whether a file that we read is another one now."""
        return self.watch is not None and self.watch.changed()


async def _serve(
    args: argparse.Namespace, loader: _Loader, state: State, shortcut: Shortcut | None, probes: Probes
) -> int:
    from tproxy.admin.metrics import Metrics
    from tproxy.proxy.sidecar import Sidecar, Source

    metrics = Metrics()
    write = _writer(args.log_format)

    def finished(record: Record) -> None:
        write(record)
        metrics.finished(record)

    source = Source(
        loader.load, loader.changed, lambda new: metrics.loaded(new.contexts.snapshot), lambda: metrics.reloaded(False)
    )
    sidecar = Sidecar(state, source, finished, shortcut)
    metrics.watch(sidecar.open_connections)
    metrics.loaded(state.contexts.snapshot)
    sidecar.start()
    servers = await _pages(sidecar, metrics, probes)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, sidecar.reload)
    watch = asyncio.create_task(sidecar.watch())
    ports = state.config.ports
    log.info("ready: %s, egress %d, ingress %d, uid %d", state.own, ports.egress, ports.ingress, os.geteuid())
    await stopping.wait()
    log.info("stopping: %d connections have %g s to finish", sidecar.open_connections(), state.config.limits.drain)
    watch.cancel()
    cut = await sidecar.stop()
    for server in servers:
        server.close()
    log.info("stopped: %d connections were cut", cut)
    return 0


async def _pages(sidecar: Sidecar, metrics: Metrics, probes: Probes) -> list[asyncio.Server]:
    from tproxy.admin.dump import config_dump
    from tproxy.admin.http import Answer, serve
    from tproxy.kernel.sock import any_host, plain_listener

    def ready() -> Answer:
        why = sidecar.not_ready()
        return Answer.text(why, 503) if why else Answer.text("ready")

    def dump() -> Answer:
        state = sidecar.side.state
        return Answer.json(config_dump(state.config, state.contexts.snapshot))

    ports = sidecar.side.state.config.ports
    health = {"/healthz/ready": ready}
    scrape = {"/metrics": metrics.page, **health}
    admin = {"/config_dump": dump, **scrape}
    return [
        await serve(plain_listener("127.0.0.1", ports.admin), admin),
        await serve(plain_listener(any_host(), ports.metrics), scrape, probes),
        await serve(plain_listener(any_host(), ports.ready), health),
    ]


def _writer(form: str) -> Callable[[Record], None]:
    out = sys.stdout

    def write(record: Record) -> None:
        out.write((record.json() if form == "json" else record.text()) + "\n")
        out.flush()

    return write


class _Json(logging.Formatter):
    """A message as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, message, and the traceback if there is one."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = {"time": stamp, "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _logging(args: argparse.Namespace) -> None:
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_Json() if args.log_format == "json" else plain)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if args.v.isdecimal() and int(args.v) >= 4 else logging.INFO)
