"""A small TCP application for tests and demo: it speaks first, echoes, sinks, or moves exact bytes both ways.

python -m tproxy.world.peer listen --port 9000 --mode duplex --bytes 1073741824
python -m tproxy.world.peer connect --to 10.77.0.1:9000 --bytes 1073741824 --expect 1073741824

Content depends on seed and position, so that a lost, doubled or moved byte changes the digest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

BLOCK = 1 << 20
BANNER = b"220 mail.example.org ESMTP\r\n"


def content(seed: str, count: int) -> Iterator[memoryview]:
    """``count`` bytes in blocks; each block begins with its own number."""
    block = bytearray(hashlib.shake_128(seed.encode()).digest(BLOCK))
    for index in range(0, count, BLOCK):
        block[:8] = index.to_bytes(8, "big")
        yield memoryview(block)[: min(BLOCK, count - index)]


def digest(seed: str, count: int) -> str:
    """The SHA-256 of ``content``, in hexadecimal."""
    total = hashlib.sha256()
    for block in content(seed, count):
        total.update(block)
    return total.hexdigest()


def send(sock: socket.socket, seed: str, count: int) -> None:
    """Send the content and half-close."""
    for block in content(seed, count):
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)


def receive(sock: socket.socket, into: dict[str, Any]) -> None:
    """Read to the end; ``received`` and ``sha256`` are left in ``into``."""
    total, count, buffer = hashlib.sha256(), 0, bytearray(BLOCK)
    while got := sock.recv_into(buffer):
        total.update(memoryview(buffer)[:got])
        count += got
    into.update(received=count, sha256=total.hexdigest())


def duplex(sock: socket.socket, seed: str, count: int) -> dict[str, Any]:
    """Send ``count`` bytes and half-close, while reading to the end."""
    found: dict[str, Any] = {"sent": count}
    failed: list[OSError] = []

    def sender() -> None:
        try:
            send(sock, seed, count)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=sender)
    thread.start()
    try:
        receive(sock, found)
    except OSError as error:
        failed.append(error)
    thread.join()
    if failed:
        found["error"] = str(failed[0])
    return found


def answer(sock: socket.socket, mode: str, count: int) -> dict[str, Any]:
    """Serve one connection."""
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if mode == "duplex":
            return duplex(sock, "server", count)
        if mode == "sink":
            found: dict[str, Any] = {}
            receive(sock, found)
            sock.sendall(json.dumps(found).encode())
            return found
        if mode == "stall":
            while sock.recv(1, socket.MSG_PEEK):
                time.sleep(0.2)
            return {}
        if mode == "banner":
            sock.sendall(BANNER)
        moved = 0
        while data := sock.recv(BLOCK):
            sock.sendall(data)
            moved += len(data)
        return {"echoed": moved}


def listen(args: argparse.Namespace) -> None:
    """Accept for ever, a thread a connection; one line of JSON for each that ended."""

    def serve(sock: socket.socket, name: str) -> None:
        try:
            found = answer(sock, args.mode, args.bytes)
        except OSError as error:
            found = {"error": str(error)}
        print(json.dumps({"from": name, **found}), flush=True)

    with socket.create_server(
        (args.host, args.port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
    ) as server:
        while True:
            sock, name = server.accept()
            threading.Thread(target=serve, args=(sock, name[0].removeprefix("::ffff:")), daemon=True).start()


def connect(args: argparse.Namespace) -> int:
    """One duplex connection; 0 if what came is exactly what a duplex server sends."""
    host, _, port = args.to.rpartition(":")
    began = time.monotonic()
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=args.timeout) as sock:
            found = duplex(sock, "client", args.bytes)
    except OSError as error:
        found = {"error": str(error)}
    found["seconds"] = round(time.monotonic() - began, 3)
    found["exact"] = found.get("sha256") == digest("server", args.expect)
    found["sha256_sent"] = digest("client", args.bytes)
    print(json.dumps(found), flush=True)
    return 0 if found["exact"] and "error" not in found else 1


def main(argv: list[str]) -> int:
    """Run one role."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    roles = parser.add_subparsers(dest="role", required=True)
    server = roles.add_parser("listen")
    server.add_argument("--host", default="::")
    server.add_argument("--port", type=int, required=True)
    server.add_argument("--mode", choices=("echo", "banner", "sink", "duplex", "stall"), default="echo")
    server.add_argument("--bytes", type=int, default=0)
    client = roles.add_parser("connect")
    client.add_argument("--to", required=True)
    client.add_argument("--bytes", type=int, default=0)
    client.add_argument("--expect", type=int, default=0)
    client.add_argument("--timeout", type=float, default=120)
    args = parser.parse_args(argv)
    if args.role == "connect":
        return connect(args)
    listen(args)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
