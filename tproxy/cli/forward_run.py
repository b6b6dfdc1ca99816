"""What ``tproxy forward run`` does: listen, carry, look after the target, drain."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from tproxy.cli.log import record_writer, start_logging
from tproxy.core.socat import Listen, Target

if TYPE_CHECKING:
    from tproxy.admin.http import Answer
    from tproxy.core.record import Record
    from tproxy.gateway.forward import Forwarder
    from tproxy.proxy.trace import Trace

log = logging.getLogger("tproxy")


def run(args: argparse.Namespace) -> int:
    """Both addresses are read before anything listens."""
    import uvloop

    from tproxy.kernel import privileges

    listen, target = Listen.parse(args.listen), Target.parse(args.target)
    start_logging(args)
    privileges.raise_open_files()
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(args, listen, target))


async def _serve(args: argparse.Namespace, listen: Listen, target: Target) -> int:
    from tproxy.admin.http import serve
    from tproxy.admin.metrics import Metrics
    from tproxy.core.record import Direction
    from tproxy.core.routes import ProxyProtocol
    from tproxy.core.settings import Relay
    from tproxy.gateway.forward import Forwarder, carry, watch
    from tproxy.kernel.sock import any_host, front_listener, plain_listener
    from tproxy.proxy.compiled import reactor
    from tproxy.proxy.server import Server, drain

    metrics, write = Metrics(), record_writer(args.log_format)
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()

    def finished(record: Record) -> None:
        write(record)
        metrics.finished(record)
        if not listen.fork:
            stopping.set()

    async def handler(down: socket.socket, trace: Trace, forwarder: Forwarder) -> Record:
        if not listen.fork:  # as socat: one connection, then the end
            server.stop()
        return await carry(down, trace, forwarder)

    proxy = ProxyProtocol(args.proxy_protocol)
    most = args.connections if listen.fork else 1
    forwarder = Forwarder(target, finished, reactor(Relay.AUTO), most, args.connect, proxy)
    server = Server(front_listener(listen.host, listen.port), Direction.GATEWAY, handler, forwarder)
    metrics.watch(lambda: len(server.tasks), lambda: 0)
    pages = plain_listener(any_host(), args.metrics_port) if args.metrics_port else None
    admin = (
        None if pages is None else await serve(pages, {"/metrics": metrics.page, "/healthz/ready": ready(forwarder)})
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server.start()
    log.info("ready: %s -> %s%s", listen, target, "" if proxy == "none" else f", PROXY protocol {proxy}")
    watching = loop.create_task(watch(forwarder, args.health)) if args.health else None
    await stopping.wait()
    if watching is not None:
        watching.cancel()
    log.info("stopping: %d connections have %g s to finish", len(server.tasks), args.drain)
    cut = await drain([server], args.drain)
    if admin is not None:
        admin.close()
    log.info("stopped: %d connections were cut", cut)
    return 0


def ready(forwarder: Forwarder) -> Callable[[], Answer]:
    """The page that says whether the target could be reached when it was last tried."""
    from tproxy.admin.http import Answer

    return lambda: Answer.text(forwarder.trouble, 503) if forwarder.trouble else Answer.text("ready")
