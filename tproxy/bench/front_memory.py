"""What a gateway and Envoy weigh: at rest, after the load, and with clients that stay connected.

Resident memory (proc_pid_statm(5)), not its proportional share: a pod alone on its node has nobody to share with.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import time

from tproxy.bench.front import Fronts
from tproxy.bench.front_config import NAME

SETTLE = 1.0  # seconds in which what ended is given back
REQUEST = f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
Weights = dict[str, float]  # of a front, by its name: MiB


def weights(fronts: Fronts) -> Weights:
    """Both, as they are now."""
    time.sleep(SETTLE)
    return {front.name: front.memory() for front in fronts.made}


def crowded(fronts: Fronts, ended: int, passed: int) -> Weights:
    """With so many connections whose TLS it ends, and so many that it passes through; each has asked once."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found: Weights = {}
    for front in fronts.made:
        with contextlib.ExitStack() as stack:
            for port, count in ((front.https, ended), (front.passthrough, passed)):
                for _ in range(count):
                    stack.enter_context(_asked(port))
            found[front.name] = weights(fronts)[front.name]
    return found


def _asked(port: int) -> ssl.SSLSocket:
    """A connection that stays after its first answer."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    sock = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname=NAME)
    sock.sendall(REQUEST)
    answer = b""
    while b"bytes" not in answer:
        data = sock.recv(4096)
        if not data:
            raise RuntimeError(f"port {port} closed a connection that was to stay")
        answer += data
    return sock


def rows(at_rest: Weights, after: Weights, with_clients: Weights, ended: int, passed: int) -> list[str]:
    """Of the table."""
    names = (
        "memory, after the start",
        "memory, after all of this",
        f"memory, with {ended} clients whose TLS it ends and {passed} passed through",
    )
    return [
        f"| {name} | {of['tproxy']:.0f} MiB | {of['envoy']:.0f} MiB | {of['tproxy'] / of['envoy']:.2f} | | | |"
        for name, of in zip(names, (at_rest, after, with_clients), strict=True)
    ]
