"""How far we are: a bar on a terminal, a line for each step elsewhere, with an estimate of the time that is left."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tproxy.bench.plan import remaining

WIDTH = 24


class Progress:
    """Say ``step`` before each piece of work with the seconds that it should take."""

    def __init__(self, total: float, stream: TextIO | None = None) -> None:
        self.total, self.done, self.current = total, 0.0, 0.0
        self.stream = stream or sys.stderr
        self.bar, self.began = self.stream.isatty(), time.monotonic()

    def step(self, text: str, seconds: float) -> None:
        """The step before is done; this one begins."""
        self.done += self.current
        self.current = seconds
        left = remaining(self.done, self.total, time.monotonic() - self.began)
        clock = f"{int(left) // 60}:{int(left) % 60:02} left"
        if self.bar:
            full = min(WIDTH, round(WIDTH * self.done / self.total))
            shown = f"[{'#' * full:<{WIDTH}}] {clock}  {text}"
            print(f"\r{shown[:110]:<110}", end="", file=self.stream, flush=True)
        else:
            print(f"{100 * self.done / self.total:3.0f} %, {clock}: {text}", file=self.stream, flush=True)

    def end(self) -> None:
        """Leave a clean line behind."""
        if self.bar:
            print(f"\r{'':<110}\r", end="", file=self.stream, flush=True)
