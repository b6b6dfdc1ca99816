"""Booting: an initramfs of busybox and the modules that find the disks, then qemu, and its console line by line."""

from __future__ import annotations

import lzma
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from guest.shell import GuestError

EARLY = ("virtio_pci", "virtio_blk", "ext4")  # modules, unless built in
BIOS = re.compile(r"\x1b\[[?=0-9;]*[A-Za-z]|\x1bc|SeaBIOS \(.*?\)|Booting from ROM\.*")
CODE = re.compile(r"^guest: exit code (\d+)$")
SILENCE = 150  # seconds
MEMORY = "1536"  # MiB
# software: works everywhere, boots in half a minute; without cx16, whose emulation in qemu 7.2 spoils the flags
TCG = ["-accel", "tcg", "-cpu", "Nehalem,+aes,+pclmulqdq,-cx16"]
KVM = ["-accel", "kvm", "-cpu", "host"]
INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do /bin/busybox insmod $module; done
for turn in 1 2 3 4 5 6 7 8 9; do [ -e /dev/vdb ] || /bin/busybox sleep 1; done
/bin/busybox mount -t ext4 /dev/vda /root || exec /bin/busybox poweroff -f
/bin/busybox mkdir -p /root/src
/bin/busybox mount -t ext4 /dev/vdb /root/src || exec /bin/busybox poweroff -f
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /bin/sh /src/guest/init.sh
"""


class SilentError(GuestError):
    """Nothing has come from it for SILENCE seconds: it hangs, or somebody has stopped it."""


def initramfs(root: Path, release: str, target: Path) -> None:
    """What the kernel needs to reach its root, as a cpio archive (kernel's buffer-format.rst)."""
    files: dict[str, bytes | None] = dict.fromkeys(("bin", "dev", "modules", "root"))
    files["init"] = INIT.encode()
    files["bin/busybox"] = (root / "usr/bin/busybox").read_bytes()
    for number, module in enumerate(_modules(root / "usr/lib/modules" / release)):
        data = module.read_bytes()
        files[f"modules/{number:02}.ko"] = lzma.decompress(data) if module.suffix == ".xz" else data
    with target.open("wb") as out:
        for name, content in (*files.items(), ("TRAILER!!!", b"")):
            out.write(_member(name, content))


def _modules(folder: Path) -> list[Path]:
    """Those of EARLY that are not built in, each behind what it depends on (modules.dep(5))."""
    lines = (line.partition(":") for line in (folder / "modules.dep").read_text().splitlines())
    needs = {name: after.split() for name, _, after in lines}
    wanted: list[str] = []
    for early in EARLY:
        for name, before in needs.items():
            if Path(name).name.split(".")[0].replace("-", "_") == early:
                wanted += [*reversed(before), name]
    return [folder / name for name in dict.fromkeys(wanted)]


def _member(name: str, content: bytes | None) -> bytes:
    """One file, or a directory where there is no content; the format newc."""
    data, path = content or b"", name.encode() + b"\0"
    mode = 0o040755 if content is None else 0o100755
    numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + path
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def boot(kernel: Path, ramdisk: Path, disks: tuple[Path, Path], kvm: bool, seconds: float) -> Iterator[str]:
    """The lines of its console, as they come. GuestError if it does not end in time, SilentError if it hangs."""
    argv = ["qemu-system-x86_64", *(KVM if kvm else TCG), "-smp", "1", "-m", MEMORY, "-nographic", "-no-reboot"]
    argv += ["-nodefaults", "-serial", "stdio", "-kernel", str(kernel), "-initrd", str(ramdisk)]
    argv += ["-append", "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off"]
    for disk in disks:  # changes are thrown away with the guest
        argv += ["-drive", f"file={disk},format=raw,if=virtio,snapshot=on"]
    environment = {**os.environ, "TMPDIR": str(ramdisk.parent)}
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    try:
        for line in _lines(process, time.monotonic() + seconds):
            if text := BIOS.sub("", line.decode(errors="replace")).rstrip():
                yield text
        if code := process.wait():
            raise GuestError(f"qemu ended with {code}")
    finally:
        process.kill()
        process.wait()


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
    """Whole lines until it ends. GuestError after the deadline, SilentError after a silence."""
    assert process.stdout is not None
    pending, console = b"", process.stdout.fileno()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise GuestError("the guest did not end in time")
        if not select.select([console], [], [], min(left, SILENCE))[0]:
            if left > SILENCE:
                raise SilentError(f"the guest has said nothing for {SILENCE} s")
            continue
        data = os.read(console, 1 << 16)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        yield from lines
