"""curl in a pod, again and again: one that opens a connection for each request, and two that keep theirs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

RATE = 20  # requests a second, of each
NEW, KEPT = 40, 300  # requests of one curl
SEEN = "%{http_code} %{exitcode} %{num_connects} %{errormsg}\\n"
FINE = "200 0 "


@dataclass(frozen=True, slots=True)
class Answers:
    """What one way of asking has seen; ``connections`` are those that were opened."""

    requests: int = 0
    connections: int = 0
    failed: tuple[str, ...] = ()

    def and_those(self, output: str, asked: int) -> Answers:
        """With another curl's; what it says nothing about has failed, too."""
        lines = output.splitlines()
        bad = tuple(line for line in lines if not line.startswith(FINE))
        bad += (f"{asked - len(lines)} requests without a word",) if len(lines) < asked else ()
        opened = sum(int(line.split()[2]) for line in lines if line.startswith(FINE))
        return Answers(self.requests + asked, self.connections + opened, self.failed + bad)


class Load:
    """From its beginning to its end without a pause; ``execute`` runs a command in the calling pod."""

    def __init__(self, execute: Callable[..., tuple[int, str]], url: str) -> None:
        self._execute, self._url = execute, url
        self._stop, self._lock = threading.Event(), threading.Lock()
        self.new, self.kept = Answers(), Answers()
        self._threads = [threading.Thread(target=self._run, args=(keeps,)) for keeps in (False, True, True)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """What has begun is waited for."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, keeps: bool) -> None:
        count = KEPT if keeps else NEW
        argv = ["curl", "-s", "-o", "/dev/null", "-m", "5", "--rate", f"{RATE}/s", "-w", SEEN]
        argv += [] if keeps else ["-H", "Connection: close"]
        while not self._stop.is_set():
            _, out = self._execute(*argv, f"{self._url}?load=[1-{count}]")
            with self._lock:
                if keeps:
                    self.kept = self.kept.and_those(out, count)
                else:
                    self.new = self.new.and_those(out, count)
