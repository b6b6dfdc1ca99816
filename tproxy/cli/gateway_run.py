"""What ``tproxy gateway run`` does: read, listen, carry, read again when files change, drain."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import secrets
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tproxy import native
from tproxy.cli import gateway_source as source
from tproxy.cli import gateway_workers
from tproxy.cli.gateway_dump import Dump, admin_socket, endpoints_page, pages_of, stats_socket
from tproxy.cli.gateway_kubernetes import Following, misplaced
from tproxy.cli.log import record_writer, start_logging
from tproxy.cli.words import counted
from tproxy.core.fields import ConfigError
from tproxy.kernel.errors import KernelError

if TYPE_CHECKING:
    from tproxy.admin.http import Pages
    from tproxy.admin.metrics import Metrics
    from tproxy.cli.gateway_workers import Ties
    from tproxy.gateway.compile import Loaded
    from tproxy.gateway.directory import Directory
    from tproxy.gateway.gate import Gate
    from tproxy.gateway.settings import Settings

log = logging.getLogger("tproxy")


def run(args: argparse.Namespace) -> int:
    """In this process, or in several."""
    start_logging(args)
    misplaced(args)
    if args.workers < 1:
        raise ConfigError("command line", "--workers", "expected 1 or more", args.workers)
    args.session_key = secrets.token_bytes(32)  # before workers are: they know each other's sessions
    return _run(args, None) if args.workers == 1 else gateway_workers.run(args, _run)


def _run(args: argparse.Namespace, ties: Ties | None) -> int:
    """Everything is read and checked before anything listens."""
    import uvloop

    from tproxy.gateway.directory import Directory
    from tproxy.kernel import privileges

    if native.FINDER.why_not:
        log.warning("HTTP: Python runs it, which is slower: %s", native.FINDER.why_not)
    settings = source.settings_of(args)
    if ties is not None:
        settings = replace(settings, worker=ties.number, family=ties.family)
    if args.mesh:
        from tproxy.cli.gateway_mesh import mesh_of

        mesh_of(args.mesh)
    world = Following(args, writes=not settings.worker) if args.kubernetes else Directory(source.folder_of(args))
    loaded = _compiled(world, args) if isinstance(world, Directory) else None
    if loaded and loaded.errors:
        raise ConfigError(
            str(source.folder_of(args)),
            "",
            f"{counted(len(loaded.errors), 'error')}: tproxy gateway check lists them",
        )
    gc.collect()  # what the YAML was: keys were in it
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    privileges.raise_open_files()
    privileges.keep_secrets()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(args, settings, world, loaded, ties))


def _compiled(directory: Directory, args: argparse.Namespace) -> Loaded:
    from tproxy.gateway.compile import compile_table

    loaded = compile_table(*directory.read(), source.labels_of(args), source.site_of(args))
    for finding in loaded.findings:
        log.log(logging.ERROR if finding.level == "error" else logging.WARNING, "%s", finding.text)
    return loaded


async def _serve(
    args: argparse.Namespace,
    settings: Settings,
    world: Directory | Following,
    loaded: Loaded | None,
    ties: Ties | None,
) -> int:
    from tproxy.admin.http import serve
    from tproxy.admin.metrics import Metrics
    from tproxy.core.record import Record
    from tproxy.gateway.carry import carry
    from tproxy.gateway.gate import Gate

    metrics, write = Metrics(), record_writer(args.log_format)

    def finished(record: Record) -> None:
        write(record)
        metrics.finished(record)

    gate = Gate(carry, finished, settings)
    metrics.watch(gate.open_connections, lambda: 0)
    metrics.registry.register(gate.web.journal)
    metrics.registry.register(gate.web.engine.guards)
    if loaded is not None:
        gate.take(loaded.table, loaded.material)
    loop, stopping, again = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, again.set)
    if ties is not None:
        loop.add_reader(ties.parent, stopping.set)  # it ends with the parent
    not_ready = world.not_ready if isinstance(world, Following) else lambda: ""
    servers = [await serve(sock, pages) for sock, pages in _pages(args, gate, metrics, not_ready, ties)]
    log.info("ready: %s", _ports(gate))
    if isinstance(world, Following):
        following = asyncio.create_task(world.follow(gate, metrics, again))
    else:
        following = asyncio.create_task(_follow(args, world, gate, metrics, again))
    work = [following]
    if args.mesh:
        from tproxy.cli.gateway_mesh import join

        work.append(asyncio.create_task(join(args.mesh, gate, metrics.refused)))
    told = asyncio.create_task(stopping.wait())
    await asyncio.wait((*work, told), return_when=asyncio.FIRST_COMPLETED)
    if ties is not None:
        loop.remove_reader(ties.parent)
    for task in work:
        if task.done():
            task.result()
    log.info("stopping: %d connections have %g s to finish", gate.open_connections(), settings.drain)
    for task in work:
        task.cancel()
    cut = await gate.stop()
    gate.web.journal.flush()
    for server in servers:
        server.close()
    log.info("stopped: %d connections were cut", cut)
    return 0


async def _follow(
    args: argparse.Namespace, directory: Directory, gate: Gate, metrics: Metrics, again: asyncio.Event
) -> None:
    """Take up what changes, for ever. A configuration with errors is not taken up: the one before goes on, whole."""
    while True:
        waits = [asyncio.create_task(directory.change()), asyncio.create_task(again.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        again.clear()
        try:
            loaded = await asyncio.to_thread(_compiled, directory, args)
            if loaded.errors:
                raise ConfigError(str(source.folder_of(args)), "", counted(len(loaded.errors), "error"))
            gate.take(loaded.table, loaded.material)
        except (ConfigError, KernelError) as error:
            metrics.refused()
            log.error("not taken up, what was served before goes on: %s", error)
        else:
            metrics.taken()
            log.info("reloaded: %s", _ports(gate))


def _ports(gate: Gate) -> str:
    ports = sorted(port for _, port in (*gate.table.listeners, *gate.table.datagrams))
    return f"ports {', '.join(map(str, ports)) or 'none'}"


def _pages(
    args: argparse.Namespace, gate: Gate, metrics: Metrics, not_ready: Callable[[], str], ties: Ties | None
) -> list[tuple[socket.socket, Pages]]:
    from tproxy.admin.http import Answer
    from tproxy.kernel.sock import any_host, plain_listener

    def ready() -> Answer:
        why = "draining" if gate.draining else not_ready()
        return Answer.text(why, 503) if why else Answer.text("ready")

    health: dict[str, Callable[[], Answer]] = {"/healthz/ready": ready}
    told = {"/metrics": metrics.page, "/stats/prometheus": metrics.page, **health}
    dump = Dump(
        lambda: gate.table,
        lambda: {name: one.pair.chain for name, one in gate.contexts.material.items()},
        pages_of(args),
    )
    admin = {"/config_dump": dump.page, "/clusters": lambda: endpoints_page(gate)}
    if ties is not None:
        return [(ties.pages, {**admin, **told})]
    made: list[tuple[socket.socket, Pages]] = []
    if args.metrics_port:
        made.append((plain_listener(any_host(), args.metrics_port), told))
    if args.stats_port and (sock := stats_socket(args.stats_port)) is not None:
        made.append((sock, told))
    if args.admin_port and (sock := admin_socket(args.admin_port)) is not None:
        made.append((sock, {**admin, **told}))
    if args.ready_port:
        made.append((plain_listener(any_host(), args.ready_port), health))
    return made
