"""``python -m guest``: build what is missing, boot, run a command inside, and end with its exit code."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from guest import SEEN
from guest.boot import CODE, SilentError, boot, initramfs
from guest.build import Build
from guest.shell import GuestError, need, say

BOOTS = 3  # tries
JOB = "python3 -m guest.job"


def main() -> int:
    """0 if every guest's command ended with 0; 3 if something is missing."""
    parser = argparse.ArgumentParser(prog="guest", description=__doc__)
    parser.add_argument("--kernel", default="", metavar="6.12", help="only this one")
    parser.add_argument("--kvm", action="store_true", help="let the processor do it; nested machines often cannot")
    parser.add_argument("--seconds", type=float, default=1800, help="how long a guest may take (default 1800)")
    parser.add_argument("command", nargs="*", help=f"a shell line, or a program and its arguments; default: {JOB}")
    args = parser.parse_args()
    try:
        need()
        if os.geteuid():
            raise GuestError("debootstrap and chroot need root")
        build = Build(Path.cwd(), Path("build/guest").absolute())
        build.all()
        line = args.command[0] if len(args.command) == 1 else shlex.join(args.command)
        build.sources(line or JOB)
        chosen = [release for release in build.kernels() if _is(release, args.kernel)]
        if not chosen:
            raise GuestError(f"no kernel {args.kernel}; there are {', '.join(build.kernels())}")
        ended = [one(build, release, args.kvm, args.seconds) for release in chosen]
    except GuestError as error:
        say(str(error))
        return 3
    for line in (line for _, seen in ended for line in seen):
        print(line)
    return max(code for code, _ in ended)


def _is(release: str, wanted: str) -> bool:
    """6.1 is 6.1.0-50-cloud-amd64, and not 6.12."""
    return not wanted or f"{release}.".startswith(f"{wanted}.")


def one(build: Build, release: str, kvm: bool, seconds: float) -> tuple[int, list[str]]:
    """The command's exit code under one kernel, and what was seen; a machine that hangs is booted again."""
    ramdisk, began = build.folder / f"initramfs-{release}", time.monotonic()
    initramfs(build.root, release, ramdisk)
    for last in (False,) * (BOOTS - 1) + (True,):
        say(f"booting {release}")
        try:
            code, seen = _booted(boot(build.kernels()[release], ramdisk, (build.image, build.source), kvm, seconds))
        except SilentError as error:
            if last:
                raise
            say(f"{error}; once more")
        else:
            say(f"{release}: exit code {code} after {time.monotonic() - began:.0f} s")
            return code, seen
    raise AssertionError  # the loop returns or raises


def _booted(console: Iterator[str]) -> tuple[int, list[str]]:
    """Show what it says; the exit code that it says last, and the lines that sum up."""
    code, seen = None, []
    for line in console:
        print(line, flush=True)
        if found := CODE.match(line):
            code = int(found[1])
        if line.startswith(SEEN):
            seen.append(line)
    if code is None:
        raise GuestError("the guest went down before the command had ended")
    return code, seen


if __name__ == "__main__":
    sys.exit(main())
