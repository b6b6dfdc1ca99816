"""``tproxy gateway run --workers N``: so many processes on the same ports, which the kernel shares out (SO_REUSEPORT).

This one carries nothing: it passes signals on, answers for all of them what is asked of metrics and health, and ends
them all when one ends. A worker whose parent is gone ends, too.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tproxy.cli.gateway_dump import admin_socket, stats_socket
from tproxy.core.metrics_text import added

if TYPE_CHECKING:
    from tproxy.admin.http import Answer, Asked

log = logging.getLogger("tproxy")
ANSWER = 2.0  # seconds for a worker's page
PAGES = frozenset({"/metrics", "/stats/prometheus", "/healthz/ready", "/config_dump", "/clusters"})


@dataclass(frozen=True, slots=True)
class Ties:
    """What a worker has of its parent: where it is asked for its pages, and a pipe that ends with the parent."""

    number: int
    pages: socket.socket
    parent: int
    family: str  # drawn, for claims of ports


@dataclass(frozen=True, slots=True)
class _Worker:
    pid: int
    address: str


def run(args: argparse.Namespace, one: Callable[[argparse.Namespace, Ties], int]) -> int:
    """Fork, and stay until all have ended; 0 if all ended well after a signal."""
    mine, theirs = os.pipe()  # the end that is written to is ours alone: it closes when we are gone
    workers, family = [], os.urandom(8).hex()
    for number in range(args.workers):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind("")  # unix(7), autobind: an abstract name that nobody has
        listener.listen(16)
        pid = os.fork()
        if not pid:
            os.close(theirs)
            os._exit(_worker(args, one, Ties(number, listener, mine, family)))
        workers.append(_Worker(pid, listener.getsockname()))
        listener.close()
    os.close(mine)
    return asyncio.run(_watch(args, workers))


def _worker(args: argparse.Namespace, one: Callable[[argparse.Namespace, Ties], int], ties: Ties) -> int:
    """Its exit code, also where ``tproxy`` itself would have made one of an error."""
    from tproxy.core.fields import ConfigError
    from tproxy.kernel.errors import KernelError

    try:
        return one(args, ties)
    except ConfigError as error:
        log.error("worker %d: %s", ties.number, error)
        return 2
    except KernelError as error:
        log.error("worker %d: %s", ties.number, error)
        return 3
    except BaseException:
        log.exception("worker %d", ties.number)
        return 1


async def _watch(args: argparse.Namespace, workers: list[_Worker]) -> int:
    from tproxy.admin.http import serve

    loop, ended, codes = asyncio.get_running_loop(), asyncio.Event(), dict[int, int]()
    stopping = False

    def stop() -> None:
        nonlocal stopping
        stopping = True
        _tell(workers, codes, signal.SIGTERM)

    def child() -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            codes[pid] = os.waitstatus_to_exitcode(status)
            if not stopping:
                log.error("a worker ended with code %d: all of them are stopped", codes[pid])
                stop()
        if len(codes) == len(workers):
            ended.set()

    loop.add_signal_handler(signal.SIGCHLD, child)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, _tell, workers, codes, signal.SIGHUP)
    child()  # who ended before we listened
    pages = _Pages([worker.address for worker in workers])
    servers = []
    for sock in () if stopping else _sockets(args):
        servers.append(await serve(sock, {}, pages))
    await ended.wait()
    for server in servers:
        server.close()
    return max((code if code >= 0 else 1 for code in codes.values()), default=1)


def _sockets(args: argparse.Namespace) -> Iterator[socket.socket]:
    """Where we are asked."""
    from tproxy.kernel.sock import any_host, plain_listener

    for port in (args.metrics_port, args.ready_port):
        if port:
            yield plain_listener(any_host(), port)
    if args.stats_port and (stats := stats_socket(args.stats_port)) is not None:
        yield stats
    if args.admin_port and (admin := admin_socket(args.admin_port)) is not None:
        yield admin


def _tell(workers: Iterable[_Worker], codes: dict[int, int], number: signal.Signals) -> None:
    for worker in workers:
        if worker.pid not in codes:
            os.kill(worker.pid, number)


class _Pages:
    """Everybody's answers as one."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses

    def seconds(self, path: str) -> float | None:
        """The same pages as a worker's."""
        return ANSWER if path in PAGES else None

    async def answer(self, asked: Asked) -> Answer:
        """Metrics are added up; all are ready, or the first that is not says why."""
        from tproxy.admin.http import Answer

        found = await asyncio.gather(*(_ask(address, asked.path) for address in self.addresses))
        bad = next(((status, body) for status, _, body in found if status != 200), None)
        if bad is not None:
            return Answer(bad[0], bad[1])
        kind = found[0][1]
        if asked.path not in {"/metrics", "/stats/prometheus"}:  # the same in all of them
            return Answer(200, found[0][2], kind)
        return Answer(200, added(body.decode() for _, _, body in found).encode(), kind)


async def _ask(address: str, path: str) -> tuple[int, str, bytes]:
    """Status, type and body of a worker's page."""
    try:
        async with asyncio.timeout(ANSWER):
            reader, writer = await asyncio.open_unix_connection(address)
            writer.write(f"GET {path} HTTP/1.1\r\nhost: worker\r\n\r\n".encode())
            data = await reader.read(-1)
            writer.close()
    except (TimeoutError, OSError) as error:
        return 503, "", f"a worker does not answer: {error}\n".encode()
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    kind = next((line.partition(":")[2].strip() for line in lines if line.lower().startswith("content-type:")), "")
    return int(first.split(" ")[1]), kind, body
