"""World, Pod, Process: pods without a cluster. Each pod is a network namespace on one bridge; all share the files.

Whatever happens to us, nothing stays behind: leaving the world kills and removes everything, the kernel kills our
children if we are killed, and the next world sweeps what a dead one could not.

>>> with World() as world:  # doctest: +SKIP
...     print(world.pod("web").run(["ip", "address"]).stdout)
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from socket import AF_PACKET, SOCK_RAW, socket
from types import FrameType, TracebackType
from typing import IO

from tproxy.kernel import netns
from tproxy.world import cgroup
from tproxy.world.process import Process, wait_for

BRIDGE = "br0"
MARKER_TYPE = 0x88B5  # IEEE 802: local experimental ethertype
JOIN = 'echo $$ >"$0" && exec "$@"'  # before the program runs: a socket belongs to the group that it was made in
_OWNED = re.compile(r"tp(\d+)-")
_STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Pod:
    """One network namespace with eth0 on the switch; ``v4`` and ``v6`` are its addresses.

    ``cgroup`` is its control group (version 2), where everything that it runs lives; None if this machine has none.
    """

    world: World = field(repr=False)
    name: str
    v4: str
    v6: str
    netns: str
    cgroup: Path | None = None

    @property
    def namespace(self) -> Path:
        """The file that stands for its network namespace."""
        return netns.path(self.netns)

    def inside(self) -> AbstractContextManager[None]:
        """Sockets that this thread creates meanwhile are the pod's."""
        return netns.inside(self.netns)

    def add_address(self, address: str) -> None:
        """One more address for eth0, in CIDR form. Every other pod reaches it, wherever it lies: routes are on-link."""
        netns.add_address(self.netns, "eth0", address)

    def listens(self, port: int, version: int = 4) -> bool:
        """Whether something in this pod listens on a TCP port, looked up without connecting."""
        table = "tcp" if version == 4 else "tcp6"
        with self.inside():
            rows = Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]
        entries = (row.split()[1:4] for row in rows)
        return any(int(local.rpartition(":")[2], 16) == port and state == "0A" for local, _, state in entries)

    def command(self, argv: Sequence[str], user: int | None = None, env: Mapping[str, str] | None = None) -> list[str]:
        """What to execute on the host so that argv runs in this pod and dies with the thread that started it."""
        die = ["setpriv", "--pdeathsig", "KILL"]  # first of all; a change of user forgets it
        who = [] if user is None else [*die, "--reuid", str(user), "--regid", str(user), "--clear-groups", "--"]
        more = ["env", *(f"{key}={value}" for key, value in env.items())] if env else []
        group = [] if self.cgroup is None else ["sh", "-c", JOIN, str(self.cgroup / "cgroup.procs")]
        return [*die, "--", *group, "nsenter", f"--net={self.namespace}", "--", *who, *more, *argv]

    def start(
        self,
        argv: Sequence[str],
        *,
        log: str | Path | None = None,
        user: int | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] | None = None,
        cwd: str | Path | None = None,
    ) -> Process:
        """Start a program; ``env`` adds to ours, output goes to ``log``. It lives as long as the calling thread."""
        return self.world.adopt(self.command(argv, user, env), argv, self.name, log, stdin=stdin, cwd=cwd)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30,
        user: int | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; with ``check`` a failure raises and shows what it wrote."""
        done = subprocess.run(
            self.command(argv, user, env),
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(
                f"{' '.join(argv)} in {self.name}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done


@dataclass(slots=True)
class Capture:
    """A pcap file; complete, and ``dropped`` known, when its context has ended."""

    path: Path
    dropped: int = 0


class World:
    """A switch and the pods on it, with a working directory for logs and configs; a context manager."""

    def __init__(self, mtu: int = 1500) -> None:
        self.mtu, self.pods = mtu, list[Pod]()
        self._processes = list[Process]()
        self._undo = ExitStack()

    def __enter__(self) -> World:
        """Make the switch. In the main thread SIGTERM leaves the world in order from now on."""
        sweep()
        with ExitStack() as undo:
            self.directory = Path(tempfile.mkdtemp(prefix=f"tp{os.getpid()}-"))
            undo.callback(shutil.rmtree, self.directory)
            self.directory.chmod(0o711)  # the sidecar's uid passes through
            undo.enter_context(_exit_on_sigterm())
            undo.callback(self._clear)
            self._switch = self._namespace("switch")
            netns.add_bridge(self._switch, BRIDGE)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill and reap all processes, remove namespaces and directory. May be called twice; signals wait meanwhile."""
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            self._undo.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    def pod(self, name: str) -> Pod:
        """A new pod with the next addresses: 10.77.0.N and fd77::N."""
        number = len(self.pods) + 1
        v4, v6 = f"10.77.0.{number}", str(ip_address(f"fd77::{number}"))
        pod = Pod(self, name, v4, v6, self._namespace(name), cgroup.create(self.directory.name, name))
        port = f"pod{number}"
        netns.add_veth(self._switch, port, bridge=BRIDGE, peer=pod.netns, peer_port="eth0", mtu=self.mtu)
        for address in (f"{pod.v4}/24", f"{pod.v6}/64"):
            pod.add_address(address)
        netns.add_default_routes(pod.netns, "eth0")
        self.pods.append(pod)
        return pod

    @contextmanager
    def tcpdump(self, path: str | Path, expression: str = "") -> Iterator[Capture]:
        """Capture what crosses the switch, from the first packet of the body to its last."""
        capture, marker = Capture(Path(path)), os.urandom(46)  # 60 bytes: the shortest Ethernet frame
        chosen = [f"({expression}) or ether proto {MARKER_TYPE}"] if expression else []
        options = ["-n", "-U", "--immediate-mode", "-s", "65535", "-B", "65536", "-Z", "root", "-i", BRIDGE]
        argv = ["tcpdump", *options, "-w", str(path), *chosen]
        switch = Pod(self, "switch", "", "", self._switch)
        process = switch.start(argv, log=self.directory / f"tcpdump-{marker[:4].hex()}.log")
        wait_for(lambda: "listening on" in process.tail(), 10, "tcpdump captures", process)
        try:
            yield capture
        finally:
            self._mark(marker)
            wait_for(
                lambda: marker in capture.path.read_bytes()[-(1 << 20) :],
                10,
                "tcpdump's last packet",
                process,
            )
            process.stop(number=signal.SIGINT)
            dropped = re.search(r"(\d+) packets? dropped by kernel", process.tail())
            capture.dropped = int(dropped[1]) if dropped else 0

    def adopt(
        self,
        command: Sequence[str],
        argv: Sequence[str],
        where: str,
        log: str | Path | None = None,
        *,
        stdin: int | IO[bytes] | None = None,
        cwd: str | Path | None = None,
    ) -> Process:
        """Start a command that ends with this world."""
        output = Path(log) if log else self.directory / f"{where}-{Path(argv[0]).name}-{len(self._processes)}.log"
        with output.open("ab") as file:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                start_new_session=True,  # Ctrl-C is ours alone
            )
            process = Process(popen, argv, output, where)
            self._processes.append(process)
        return process

    def _namespace(self, name: str) -> str:
        full = f"{self.directory.name}-{name}"
        netns.create(full)
        return full

    def _mark(self, marker: bytes) -> None:
        with netns.inside(self._switch), socket(AF_PACKET, SOCK_RAW) as raw:
            raw.bind((BRIDGE, 0))
            raw.send(bytes([2, 0, 0, 0, 0, 0] * 2) + MARKER_TYPE.to_bytes(2, "big") + marker)

    def _clear(self) -> None:
        for process in self._processes:
            process.popen.kill()
        for process in self._processes:
            process.kill()
        for name in netns.names():
            if name.startswith(f"{self.directory.name}-"):
                _remove(name)
        cgroup.remove(self.directory.name)


def sweep() -> None:
    """Remove namespaces, processes, control groups and directories of worlds whose maker is dead."""
    for name in filter(_stale, netns.names()):
        _remove(name)
    for name in filter(_stale, cgroup.worlds()):
        cgroup.remove(name)
    for directory in Path(tempfile.gettempdir()).glob("tp*-*"):
        if _stale(directory.name) and directory.lstat().st_uid == os.geteuid():
            shutil.rmtree(directory, ignore_errors=True)  # another process may sweep, too


def _stale(name: str) -> bool:
    owner = _OWNED.match(name)
    return owner is not None and not Path("/proc", owner[1]).exists()


def _remove(name: str) -> None:
    """End everything in a namespace, whoever started it, then the namespace."""

    def emptied() -> bool:
        left = netns.pids(name)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    wait_for(emptied, 10, f"the processes in {name} end")
    netns.delete(name)


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """SIGTERM as an exception, so that contexts end in order; an existing handler stays."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    try:
        previous = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # only the main thread may
        yield
        return
    if previous is not signal.SIG_DFL:
        signal.signal(signal.SIGTERM, previous)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


__all__ = ["Capture", "Pod", "Process", "World", "sweep", "wait_for"]
