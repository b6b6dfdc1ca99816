"""What ``tproxy control`` runs: CA API, webhook, health and metrics, and a look now and then at what changed."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc.aio
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tproxy.admin.http import Answer
from tproxy.admin.http import serve as serve_pages
from tproxy.control import rotation, streams
from tproxy.control.authenticate import Door
from tproxy.control.authority import utc_now
from tproxy.control.config import Control
from tproxy.control.directory import Directory
from tproxy.control.injector import Injector
from tproxy.control.issuer import Issuer, Made
from tproxy.control.ledger import Ledger
from tproxy.control.metrics import Metrics
from tproxy.control.policies import Policies
from tproxy.control.record import Issued, Line, as_json, text
from tproxy.control.service import Service
from tproxy.control.serving import Serving
from tproxy.control.state import State
from tproxy.core.fields import ConfigError
from tproxy.kernel.sock import any_host, plain_listener

log = logging.getLogger("tproxy")
LOOK = 0.5  # seconds between two looks at the rotation and at the clock
PRUNE = 600.0  # seconds
SHORT = timedelta(days=30)  # left to an intermediate whose root is offline


@dataclass(frozen=True, slots=True)
class _Parts:
    """What runs."""

    issuer: Issuer
    ledger: Ledger
    serving: Serving
    service: Service
    metrics: Metrics
    directory: Directory | None
    policies: Policies | None
    injector: Injector | None

    @property
    def told(self) -> list[Directory | Policies]:
        """What sidecars follow."""
        return [one for one in (self.directory, self.policies) if one is not None]


async def serve(config: Control, form: str) -> int:
    """Until SIGTERM; the exit code."""
    parts = _parts(config, form)
    door = plain_listener(config.address or any_host(), config.health)
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    _signs(parts)
    await parts.serving.renew()
    server, teller = _listen(parts, config), _teller(parts, config)  # each has its port before one of them begins
    if parts.injector is not None:
        await parts.injector.start(config.address or any_host(), stopping.set)
    await server.start()
    following = await _follow(parts, teller, stopping)
    pages = await _pages(parts, door, stopping)
    watch = asyncio.create_task(_watch(parts, config))
    watch.add_done_callback(lambda _: stopping.set())  # it ends only by a defect: better to start anew than to go blind
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
    if teller is not None and following is not None:
        following.cancel()
        await teller.stop(0)  # its streams have no end; sidecars go on elsewhere
    if parts.injector is not None:
        await asyncio.gather(server.stop(config.drain), parts.injector.stop(config.drain))
    else:
        await server.stop(config.drain)
    await parts.ledger.close()
    pages.close()
    log.info("stopped")
    for task in (watch, following):
        if task is not None and task.done() and not task.cancelled():
            task.result()
    return 0


def _parts(config: Control, form: str) -> _Parts:
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
    directory = Directory(config, domain, finished) if config.directory is not None else None
    if directory is not None:
        gauges: dict[str, Callable[[], float]] = {
            "entries": lambda: directory.entries,
            "streams": lambda: directory.streams.running,
            "version": lambda: directory.feed.version.number,
            "failures": directory.failures,
        }
        metrics.watch_directory(gauges)
    policies = Policies(config, domain, finished) if config.policies is not None else None
    if policies is not None:
        metrics.watch_policies(
            {
                "objects": lambda: len(policies.shelf),
                "invalid": lambda: len(policies.shelf.invalid),
                "streams": lambda: policies.streams.running,
                "failures": policies.failures,
            }
        )
    injector = None
    if config.webhook is not None:
        injector = Injector(config, config.webhook, issuer, serving, finished, metrics.current)
    return _Parts(issuer, ledger, serving, service, metrics, directory, policies, injector)


def _teller(parts: _Parts, config: Control) -> grpc.aio.Server | None:
    """The server of what sidecars follow, if there is one."""
    settings = config.directory
    if settings is None or not parts.told:
        return None
    methods = [one.streams for one in parts.told]
    try:
        return streams.listen(config, settings.port, settings.streams, methods, parts.serving.credentials(mutual=True))
    except RuntimeError as error:
        why = "cannot be listened on: is another server running, or is the address not ours?"
        raise ConfigError("configuration", "directory.port", why, settings.port) from error


async def _follow(parts: _Parts, teller: grpc.aio.Server | None, stopping: asyncio.Event) -> asyncio.Task[None] | None:
    """Tell what sidecars follow, and follow what it lives from."""
    if teller is None:
        return None
    await teller.start()

    async def follow() -> None:
        async with asyncio.TaskGroup() as group:
            for one in parts.told:
                group.create_task(one.run())

    following = asyncio.create_task(follow())
    following.add_done_callback(lambda _: stopping.set())  # as with the watch below
    return following


def _listen(parts: _Parts, config: Control) -> grpc.aio.Server:
    try:
        return parts.service.listen(parts.serving.credentials())
    except RuntimeError as error:
        why = "cannot be listened on: is another server running, or is the address not ours?"
        raise ConfigError("configuration", "listen.port", why, config.port) from error


async def _watch(parts: _Parts, config: Control) -> None:
    """Take up rotation steps, renew what ages, forget what is old."""
    pruned, seen, said = time.monotonic(), parts.issuer.signer, ""
    while True:
        await asyncio.sleep(LOOK)
        try:
            parts.issuer.refresh()
            if parts.issuer.signer is not seen:  # a call that came in between may have refreshed it before us
                seen = parts.issuer.signer
                _signs(parts)
                if parts.injector is not None:
                    parts.injector.look()
            if parts.serving.is_due():
                await parts.serving.renew()
            if time.monotonic() - pruned > PRUNE:
                pruned = time.monotonic()
                await parts.ledger.prune(int(time.time()) - config.keep)
            said = ""
        except ConfigError as error:
            log.log(logging.DEBUG if said == str(error) else logging.ERROR, "going on with what there is: %s", error)
            said = str(error)


def _signs(parts: _Parts) -> None:
    signs = parts.issuer.signer
    parts.metrics.signs(signs.generation, signs.ends().timestamp())
    if not signs.in_memory and signs.ends() - utc_now() < SHORT:
        log.warning("the intermediate ends at %s: make another (tproxy ca intermediate)", signs.ends())
    log.info("generation %d signs until %s, bundle version %d", signs.generation, signs.ends(), signs.version)


async def _pages(parts: _Parts, door: socket.socket, stopping: asyncio.Event) -> asyncio.Server:
    def ready() -> Answer:
        if stopping.is_set():
            return Answer.text("stopping", 503)
        if parts.issuer.signer.ends() <= utc_now():
            return Answer.text("the signing certificate has ended", 503)
        if parts.directory is not None and (why := parts.directory.not_ready()):
            return Answer.text(f"the directory waits: {why}", 503)
        if parts.policies is not None and (why := parts.policies.not_ready()):
            return Answer.text(f"policies wait: {why}", 503)
        return Answer.text("ready")

    def metrics() -> Answer:
        return Answer(200, generate_latest(parts.metrics.registry), CONTENT_TYPE_LATEST)

    return await serve_pages(door, {"/healthz/ready": ready, "/metrics": metrics})


def _writer(form: str) -> Callable[[Line], None]:
    shown, out = as_json if form == "json" else text, sys.stdout

    def write(line: Line) -> None:
        out.write(shown(line) + "\n")
        out.flush()

    return write
