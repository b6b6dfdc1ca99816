"""The short cut between the application's socket and ours: bpf/sockmap.bpf.c, seen from user space.

Programs decide and redirect by themselves; user space only says how much of a flow was consumed, now and then. What we
read we count; what the application has left unread we ask of sock_diag(7).
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from tproxy.core.address import Endpoint
from tproxy.core.settings import Marks
from tproxy.kernel.cgroup import find
from tproxy.kernel.libbpf import EXIST, SK_MSG_VERDICT, Program
from tproxy.kernel.sockdiag import SockDiag

OBJECT = Path(__file__).with_name("sockmap.bpf.o")
SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14
NOBODY = 1 << 16  # no port
WINDOW = 512 * 1024  # bytes redirected and not consumed, at most; as in the C source
LEAVE = 1 << 63  # as in the C source
STEP = 128 * 1024  # bytes between two reports
KEY = struct.Struct("=Q16s16sHHI")  # struct key
FLOW = struct.Struct("=QIIII")  # struct flow
SETTINGS = struct.Struct("=QIIII")  # struct settings


@dataclass(frozen=True, slots=True)
class Off:
    """There is no short cut, and why."""

    why: str


def netns_cookie() -> int:
    """The number of our network namespace, never used twice."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")


class Shortcut:
    """Loaded and attached; gone when the process is, however it ends. ``both``: also for what applications receive."""

    def __init__(self, marks: Marks, both: bool = False) -> None:
        self.marks, self.both = marks, both
        self.cgroup = find()
        self.cookie = netns_cookie()
        self._program = Program(OBJECT)
        try:
            self.flows = self._program.map("flows")
            self.consumed = self._program.map("consumed")
            self.admit(NOBODY)
            for name in ("apps", "owns") if both else ("apps",):
                self._program.attach_map("send", self._program.map(name), SK_MSG_VERDICT)
            self._program.attach_cgroup("refuse", self.cgroup.path)
            self._program.attach_cgroup("established", self.cgroup.path)
            self.diag = SockDiag()
        except BaseException:
            self._program.close()
            raise
        self.accounted = False  # whether sock_diag sees what was redirected; the self-test finds out

    def admit(self, port: int) -> None:
        """Let connections with this port take part from now on, or 0 for all: nobody else notices the self-test."""
        settings = SETTINGS.pack(self.cookie, self.marks.own, self.marks.mask, self.both, port)
        self._program.map("config").update(bytes(4), settings)

    def close(self) -> None:
        """Detach; connections go on by TCP."""
        self.diag.close()
        self._program.close()

    def key(self, sender: Endpoint, receiver: Endpoint) -> bytes:
        """The flow from one socket of a pair to the other."""
        return KEY.pack(self.cookie, _sixteen(sender), _sixteen(receiver), sender.port, receiver.port, 0)

    def flow(self, sock: socket.socket) -> Flow:
        """Both directions of the application's leg; cheap, and right whether or not they take the short cut."""
        return Flow(self, sock)

    def state(self, key: bytes) -> tuple[int, bool] | None:
        """Bytes redirected, and whether the flow is TCP's for good; None if it is not a flow of ours."""
        found = self.flows.lookup(key, FLOW.size)
        if found is None:
            return None
        redirected, off, *_ = FLOW.unpack(found)
        return redirected, bool(off)


class Flow:
    """Reports on one application leg. ``total`` counts from the beginning of the connection."""

    __slots__ = ("_names", "_shortcut", "_sock")

    def __init__(self, shortcut: Shortcut, sock: socket.socket) -> None:
        self._shortcut, self._sock = shortcut, sock
        self._names: tuple[Endpoint, Endpoint] | None = None

    def received(self, total: int) -> None:
        """We have read so much from the application."""
        with contextlib.suppress(OSError):  # without a report the flow goes on by TCP
            own, app = self._ends()
            self._report(app, own, total)

    def sent(self, total: int) -> None:
        """We have sent so much to the application; what it has not read is asked of the kernel."""
        if not self._shortcut.both or not self._shortcut.accounted:
            return  # after WINDOW bytes, or from the first one, this direction is TCP's
        with contextlib.suppress(OSError):
            own, app = self._ends()
            unread = self._shortcut.diag.unread(app, own)
            if unread is not None and unread < total:
                self._report(own, app, total - unread)

    def by_tcp(self, total: int) -> bool:
        """Ask the application's direction to leave the short cut; whether all it redirected has been received.

        Looked up twice, because the count is final only once ``off`` has been seen.
        """
        with contextlib.suppress(OSError):
            own, app = self._ends()
            key = self._shortcut.key(app, own)
            self._report(app, own, LEAVE)
            if (self._shortcut.state(key) or (0, True))[1]:
                return (self._shortcut.state(key) or (0, True))[0] <= total
        return False

    def _report(self, sender: Endpoint, receiver: Endpoint, consumed: int) -> None:
        self._shortcut.consumed.update(self._shortcut.key(sender, receiver), consumed.to_bytes(8, "little"), EXIST)

    def _ends(self) -> tuple[Endpoint, Endpoint]:
        """Our name and the application's; asked for only by connections that move much."""
        if self._names is None:
            self._names = Endpoint.of_socket(self._sock.getsockname()), Endpoint.of_socket(self._sock.getpeername())
        return self._names


def _sixteen(name: Endpoint) -> bytes:
    """IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2)."""
    return name.ip.packed if name.ip.version == 6 else bytes(10) + b"\xff\xff" + name.ip.packed
