"""Programs that the world starts, and waiting for what they do: with a deadline, and with their last words."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def wait_for(predicate: Callable[[], T], seconds: float, what: str, *needed: Process) -> T:
    """Poll until the answer is true, and return it. TimeoutError says what was missing, or which process ended."""
    deadline = time.monotonic() + seconds
    while not (answer := predicate()):
        for process in needed:
            if not process.alive and not (answer := predicate()):
                raise TimeoutError(f"{what}: {process} has ended\n{process.tail()}")
        if answer:
            break
        if time.monotonic() > deadline:
            tails = "".join(f"\n{process}:\n{process.tail()}" for process in needed)
            raise TimeoutError(f"{what}: not within {seconds} s{tails}")
        time.sleep(0.01)
    return answer


class Process:
    """A program in a pod, with its output in a file. Its pid is the program's own: nothing stands between."""

    def __init__(self, popen: subprocess.Popen[bytes], argv: Sequence[str], log: Path, where: str) -> None:
        self.popen, self.argv, self.log, self.where = popen, list(argv), log, where
        self.pid = popen.pid

    def __repr__(self) -> str:
        state = "running" if self.alive else f"exit code {self.popen.returncode}"
        return f"<{' '.join(self.argv[:4])} in {self.where}, pid {self.pid}, {state}>"

    @property
    def alive(self) -> bool:
        """Whether it runs; reaps it if not."""
        return self.popen.poll() is None

    def tail(self, lines: int = 20) -> str:
        """The last lines that it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def pss(self) -> int:
        """Proportional set size in bytes, of the program and its children; proc(5)."""
        return sum(_pss(pid) for pid in _family(self.pid))

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        self.popen.send_signal(number)

    def wait(self, seconds: float = 10) -> int:
        """Wait for its end; the exit code, negative for a signal. TimeoutError shows its last lines."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self} does not end within {seconds} s\n{self.tail()}") from None

    def stop(self, seconds: float = 10, number: int = signal.SIGTERM) -> int:
        """Ask it to end, wait, and give its exit code."""
        self.send(number)
        code = self.wait(seconds)
        self._close()
        return code

    def kill(self) -> None:
        """SIGKILL and reap; may be said twice."""
        self.popen.kill()
        self.popen.wait()
        self._close()

    def _close(self) -> None:
        if self.popen.stdin is not None:
            with suppress(BrokenPipeError):
                self.popen.stdin.close()


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in _family(int(child)))]


def _pss(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
