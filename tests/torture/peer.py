"""The two applications: many connections at once, each as its plan says; what arrives is compared byte by byte.

python -m tests.torture.peer serve --ports 7000,7001
python -m tests.torture.peer connect --to 10.77.0.2 --ports 7000,7001 --first 1 --seconds 5 --at-once 50 [--disturbed]

On the second port the server speaks first. The client's last line is a summary in JSON; so is the server's, at SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import socket
import struct
import time
from dataclasses import asdict, dataclass, field

import uvloop

from tests.torture.plan import HEADER, End, Plan, Side, difference, piece, plan

READ = 1 << 18
RESET = struct.pack("ii", 1, 0)
CLOSED = 7  # linux/tcp_states.h: TCP_CLOSE
PATIENCE = 60.0  # seconds for a connection that hangs
PAUSE = 0.03  # seconds at most


@dataclass
class Seen:
    """What one process saw."""

    connections: int = 0
    messages: int = 0
    bytes: int = 0
    broken: int = 0  # ended by an error, as planned or as disturbances do
    wrong: list[str] = field(default_factory=list)

    def fault(self, number: int, what: str) -> None:
        """A violation; the first hundred are kept."""
        if len(self.wrong) < 100:
            self.wrong.append(f"connection {number}: {what}")


class ResetError(Exception):
    """This side has sent its RST."""


async def send(writer: asyncio.StreamWriter, side: Side, number: int, seen: Seen) -> None:
    """The whole stream in messages, then FIN; or RST where the plan says so."""
    rng, at = random.Random(~number), 0
    until = side.total if side.reset_after is None else side.reset_after
    while at < until:
        size = min(rng.randrange(1, side.largest + 1), until - at)
        if side.stall and rng.random() < side.stall:
            await asyncio.sleep(rng.random() * PAUSE)
        if writer.is_closing():
            raise ConnectionResetError("lost")
        writer.write(piece(side.start, at, size))
        await writer.drain()
        at, seen.messages, seen.bytes = at + size, seen.messages + 1, seen.bytes + size
    if writer.is_closing():
        raise ConnectionResetError("lost")
    if side.reset_after is not None:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
        raise ResetError
    writer.write_eof()


def was_reset(writer: asyncio.StreamWriter) -> bool:
    """A write may swallow ECONNRESET, and the read behind it sees 0 bytes; TCP_INFO tells the state (tcp(7))."""
    sock = writer.get_extra_info("socket")
    return sock is None or sock.fileno() < 0 or sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == CLOSED


async def receive(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, side: Side, number: int, seen: Seen
) -> None:
    """To the end; every byte is compared."""
    rng, at = random.Random(number ^ 0x5A5A), 0
    while True:
        if side.sleepy and rng.random() < side.sleepy:
            await asyncio.sleep(rng.random() * PAUSE)
        part = await reader.read(READ)
        if not part:
            break
        if found := difference(side.start, at, part):
            seen.fault(number, found)
            return
        at += len(part)
        if at > side.total:
            seen.fault(number, f"{at - side.total} bytes more than were sent")
            return
    if at < side.total and was_reset(writer):
        raise ConnectionResetError("reset")
    if at < side.total:
        seen.fault(number, f"a clean end after {at} of {side.total} bytes")


async def both(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: Plan, client: bool, seen: Seen, disturbed: bool
) -> None:
    """One connection's two directions."""
    mine, theirs = (what.client, what.server) if client else (what.server, what.client)
    seen.connections += 1
    try:
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            group.create_task(send(writer, mine, what.number, seen))
            group.create_task(receive(reader, writer, theirs, what.number, seen))
    except* ResetError:
        seen.broken += 1
    except* TimeoutError:
        writer.transport.abort()
        seen.fault(what.number, f"hangs for {PATIENCE:g} s")
    except* OSError as error:
        seen.broken += 1
        if what.end is End.CLEAN and not disturbed:
            seen.fault(what.number, f"broken: {error.exceptions[0]!r}")
    finally:
        writer.close()


async def serve(ports: list[int], disturbed: bool) -> Seen:
    """Until SIGTERM."""
    seen, stop, tasks = Seen(), asyncio.Event(), set[asyncio.Task[None]]()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        try:
            if writer.get_extra_info("sockname")[1] == ports[1]:
                writer.write(b"hi")
            number = int.from_bytes(await reader.readexactly(HEADER), "big")
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
            return
        await both(reader, writer, plan(number), False, seen, disturbed)

    listening = [await asyncio.start_server(handle, "0.0.0.0", port, limit=READ, backlog=1024) for port in ports]
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    for one in listening:
        one.close()
    if tasks:
        await asyncio.wait(tasks, timeout=5)
    return seen


async def connect(args: argparse.Namespace, ports: list[int]) -> Seen:
    """So many at once, again and again, until the time is over."""
    seen, until, numbers = Seen(), time.monotonic() + args.seconds, iter(range(args.first, 1 << 62))

    async def one() -> None:
        while time.monotonic() < until:
            what = plan(next(numbers))
            port = ports[1] if what.server_first else ports[0]
            try:
                reader, writer = await asyncio.open_connection(args.to, port, limit=READ)
                if what.server_first and await reader.readexactly(2) != b"hi":
                    seen.fault(what.number, "the server's greeting is wrong")
                writer.write(what.number.to_bytes(HEADER, "big"))
            except (OSError, asyncio.IncompleteReadError) as error:
                if not args.disturbed:
                    seen.fault(what.number, f"not connected: {error!r}")
                await asyncio.sleep(0.05)
                continue
            await both(reader, writer, what, True, seen, args.disturbed)

    await asyncio.gather(*(one() for _ in range(args.at_once)))
    return seen


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("serve", "connect"))
    parser.add_argument("--ports", default="7000,7001")
    parser.add_argument("--to", default="")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--disturbed", action="store_true")
    args = parser.parse_args()
    ports = [int(port) for port in args.ports.split(",")]
    work = serve(ports, args.disturbed) if args.what == "serve" else connect(args, ports)
    print(json.dumps(asdict(uvloop.run(work))), flush=True)


if __name__ == "__main__":
    main()
