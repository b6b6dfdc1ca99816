"""Running programs of the host, saying so, and what to install when one is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = {"debootstrap": "debootstrap", "qemu-system-x86_64": "qemu-system-x86", "mke2fs": "e2fsprogs"}


class GuestError(RuntimeError):
    """What failed, in words for whoever typed ``make guest``."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"guest: {text}", file=sys.stderr, flush=True)


def need() -> None:
    """GuestError names the packages of programs that are missing."""
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        raise GuestError(f"please install: apt-get install {' '.join(missing)}")


def run(argv: Sequence[str | Path], log: Path) -> str:
    """Run to the end; its output. GuestError shows the last of it, ``log`` keeps it all."""
    done = subprocess.run(
        list(map(str, argv)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    with log.open("a") as file:
        file.write(f"$ {' '.join(map(str, argv))}\n{done.stdout}")
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-8:])
        raise GuestError(f"{Path(argv[0]).name} failed with exit code {done.returncode}; all of it is in {log}\n{tail}")
    return done.stdout
