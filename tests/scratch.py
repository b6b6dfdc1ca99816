"""Two namespaces on a veth, made with iproute2 alone: what tests the rules must not be made with what installs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

TPROXY = (sys.executable, "-m", "tproxy")
NO_ADMIN = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")
MEGABYTE = 1 << 20

CLIENT = """
import hashlib, json, os, socket, sys, time
want = json.loads(sys.argv[1])
v6 = ":" in want["host"]
sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET)
sock.settimeout(want["timeout"])
began = time.monotonic()
def say(**what): print(json.dumps({"seconds": time.monotonic() - began, **what})); sys.exit()
try:
    if want["mark"]: sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, want["mark"])
    if want["source_port"]:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", want["source_port"]))
    sock.connect(socket.getaddrinfo(want["host"], want["port"], type=socket.SOCK_STREAM)[0][4])
    sock.sendall(bytes(want["size"])); sock.shutdown(socket.SHUT_WR)
    got = b""
    while chunk := sock.recv(65536): got += chunk
    say(error="", got=len(got), start=got[:60].decode(errors="replace"))
except OSError as error:
    say(error=type(error).__name__, got=0, start="")
"""

LISTENER = """
import sys
from tproxy.kernel.sock import listener, original_destination, reset_on_close
taker = listener(int(sys.argv[1]), 2)
taker.setblocking(True)
while True:
    sock = taker.accept()[0]
    reset_on_close(sock, False)
    sock.setblocking(True)
    while sock.recv(65536): pass
    sock.sendall(str(original_destination(sock)).encode())
    sock.close()
"""

ECHO = """
import socket, sys, threading
def echo(sock):
    with sock:
        while chunk := sock.recv(65536): sock.sendall(chunk)
listener = socket.create_server(("", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
while True: threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()
"""


@dataclass(frozen=True)
class Answer:
    """How a connection went."""

    error: str
    got: int
    seconds: float
    start: str  # of what came back


class Netns:
    """A namespace made by ``ip netns add``; what was started in it ends with it."""

    def __init__(self, name: str) -> None:
        self.name, self.started = name, list[subprocess.Popen[bytes]]()

    def argv(self, *command: str) -> list[str]:
        """What to execute so that the command runs inside."""
        return ["nsenter", f"--net=/run/netns/{self.name}", "--", *command]

    def run(self, *command: str, check: bool = True, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        done = subprocess.run(self.argv(*command), input=text, capture_output=True, text=True, check=False, timeout=60)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def tproxy(self, *args: str, prefix: Sequence[str] = (), check: bool = True) -> subprocess.CompletedProcess[str]:
        """Our command line."""
        return self.run(*prefix, *TPROXY, *args, check=check)

    def echo(self, port: int) -> None:
        """An echo server, IPv4 and IPv6, that listens when this returns."""
        self._serve(ECHO, port)

    def take(self, port: int) -> None:
        """A listener as the sidecar's, which answers with the original destination."""
        self._serve(LISTENER, port)

    def _serve(self, program: str, port: int) -> None:
        process = subprocess.Popen(self.argv(sys.executable, "-c", program, str(port)), stderr=subprocess.DEVNULL)
        self.started.append(process)
        until(lambda: f":{port} " in self.run("ss", "-Hltn").stdout, f"port {port} in {self.name}")

    def call(
        self,
        host: str,
        port: int,
        *,
        size: int = 10,
        mark: int = 0,
        source_port: int = 0,
        uid: int | None = None,
        caps: str = "",
        timeout: float = 5,
    ) -> Answer:
        """Connect, send, and count what comes back; as a user with no more than the named capability."""
        names = {"host": host, "port": port, "size": size, "mark": mark, "source_port": source_port}
        who = [] if uid is None else ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
        who += [f"--inh-caps=-all,+{caps}", f"--ambient-caps=-all,+{caps}"] if caps else []
        argument = json.dumps({**names, "timeout": timeout})
        return Answer(**json.loads(self.run(*who, sys.executable, "-c", CLIENT, argument).stdout))

    def rules(self) -> str:
        """All nft rules, ip rules and our routing table, without counters and handles."""
        shown = [
            self.run("nft", "-s", "list", "ruleset"),
            self.run("ip", "-4", "rule"),
            self.run("ip", "-6", "rule"),
            self.run("ip", "-4", "route", "show", "table", "133", check=False),
            self.run("ip", "-6", "route", "show", "table", "133", check=False),
        ]
        return "".join(done.stdout for done in shown)

    def close(self) -> None:
        """End everything inside, then the namespace."""
        for process in self.started:
            process.kill()
            process.wait()
        subprocess.run(["ip", "netns", "del", self.name], check=True)


@dataclass(frozen=True)
class Pair:
    """A pod, and somebody outside on the same wire."""

    pod: Netns
    outside: Netns

    pod4: str = "10.66.0.1"
    pod6: str = "fd66::1"
    outside4: str = "10.66.0.2"
    outside6: str = "fd66::2"


@contextmanager
def netns() -> Iterator[Netns]:
    """One namespace with lo; its name says whose it is, for ``tproxy.world.pods.sweep``."""
    made = Netns(f"tp{os.getpid()}-{uuid.uuid4().hex[:8]}")
    subprocess.run(["ip", "netns", "add", made.name], check=True)
    try:
        made.run("ip", "link", "set", "lo", "up")
        yield made
    finally:
        made.close()


@contextmanager
def pair() -> Iterator[Pair]:
    """Two namespaces, an echo server on port 7 in each."""
    with netns() as pod, netns() as outside:
        made = Pair(pod, outside)
        pod.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", outside.name)
        for side, v4, v6 in ((pod, made.pod4, made.pod6), (outside, made.outside4, made.outside6)):
            side.run("ip", "link", "set", "eth0", "up")
            side.run("ip", "addr", "add", f"{v4}/24", "dev", "eth0")
            side.run("ip", "addr", "add", f"{v6}/64", "dev", "eth0", "nodad")
            side.echo(7)
        until(lambda: linklocal(pod) and linklocal(outside), "link-local addresses")
        yield made


def linklocal(side: Netns) -> str:
    """The usable fe80:: address of eth0, or nothing yet."""
    shown = side.run("ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link").stdout
    return "" if "tentative" in shown or "fe80" not in shown else shown.split()[3].partition("/")[0]


def until(predicate: Callable[[], object], what: str, seconds: float = 10) -> None:
    """Wait for an event, with a deadline."""
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def config(folder: Path, **fields: object) -> str:
    """A configuration file; its path."""
    path = folder / "sidecar.yaml"
    path.write_text(yaml.safe_dump(fields))
    return str(path)
