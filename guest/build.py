"""Making what is booted: a root of Debian 13 with Python 3.13, two kernels, and the wheels that the project needs.

The root has no compiler: the relay's twin in Python runs there.
Each step leaves a stamp with what it was made from, and is done again only when that has changed.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from guest.shell import GuestError, run, say

MIRROR = "http://deb.debian.org/debian"
SUITE, OLDER = "trixie", "bookworm"
PACKAGES = (
    *("python3", "python3-venv", "libbpf1", "bpftool", "nftables", "libnftables1", "iproute2", "kmod"),
    *("curl", "openssl", "nginx-light", "util-linux", "busybox-static", "ca-certificates"),
)
TESTING = ["pytest>=8,<10", "pytest-timeout>=2.3,<3", "hypothesis>=6.100,<7"]
PYTHON = "3.13"  # trixie's
KERNEL = "linux-image-cloud-amd64"
IMAGE_SIZE = "3G"  # sparse
SOURCE = ("tproxy", "tests", "guest", "pyproject.toml")


class Build:
    """Everything under one folder; ``project`` is the source tree."""

    def __init__(self, project: Path, folder: Path) -> None:
        self.project, self.folder = project, folder
        self.root, self.log = folder / "root", folder / "build.log"
        self.image, self.source = folder / "root.ext4", folder / "source.ext4"
        folder.mkdir(parents=True, exist_ok=True)

    def all(self) -> None:
        """What is missing or out of date. GuestError says which step failed."""
        made = self._step("root", " ".join((SUITE, *PACKAGES)), self._root)
        made = self._step("kernels", made + OLDER, self._kernels)
        wheels = self._requirements()
        made = self._step("wheels", made + " ".join(wheels), lambda: self._wheels(wheels))
        self._step("image", made, self._image)

    def kernels(self) -> dict[str, Path]:
        """Releases such as 6.12.107+deb13-cloud-amd64, and their vmlinuz."""
        return {path.name.removeprefix("vmlinuz-"): path for path in sorted((self.folder / "boot").glob("vmlinuz-*"))}

    def sources(self, command: str) -> None:
        """The second disk: the working tree as it is now, and what to run in it."""
        tree = self.folder / "source"
        shutil.rmtree(tree, ignore_errors=True)
        for name in SOURCE:
            here = self.project / name
            if here.is_dir():
                shutil.copytree(
                    here, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "_compiled.c", "_native")
                )
            else:
                shutil.copy(here, tree / name)
        (tree / "command").write_text(command + "\n")
        self._ext4(tree, self.source, "256M")

    def _step(self, name: str, inputs: str, make: Callable[[], None]) -> str:
        stamp, digest = self.folder / f"{name}.made", hashlib.sha256(inputs.encode()).hexdigest()
        if not stamp.exists() or stamp.read_text() != digest:
            stamp.unlink(missing_ok=True)
            make()
            stamp.write_text(digest)
        return digest

    def _root(self) -> None:
        say(f"a root of Debian {SUITE} by debootstrap: some minutes, and only once")
        shutil.rmtree(self.root, ignore_errors=True)
        include = f"--include={','.join(PACKAGES)}"
        run(["debootstrap", "--variant=minbase", include, SUITE, self.root, MIRROR], self.log)
        shutil.rmtree(self.root / "var/cache/apt/archives", ignore_errors=True)

    def _kernels(self) -> None:
        say(f"the kernels of Debian {SUITE} and {OLDER}")
        sources = self.root / "etc/apt/sources.list.d/older.list"
        sources.write_text(f"deb {MIRROR} {OLDER} main\n")
        (self.root / "var/cache/apt/archives/partial").mkdir(parents=True, exist_ok=True)
        resolv = Path("/etc/resolv.conf")
        shutil.copy(resolv, self.root / "etc/resolv.conf")
        self._inside("apt-get", "update", "-q")
        names = set(re.findall(r"^Depends: (linux-image-\S+)", self._inside("apt-cache", "show", KERNEL), re.MULTILINE))
        if len(names) < 2:
            raise GuestError(f"apt knows only these kernels: {', '.join(names) or 'none'}")
        shutil.rmtree(self.folder / "boot", ignore_errors=True)
        (self.folder / "boot").mkdir()
        for name in names:
            self._kernel(name)

    def _kernel(self, name: str) -> None:
        say(f"  {name}")
        away = self.root / "tmp/kernel"
        shutil.rmtree(away, ignore_errors=True)
        away.mkdir()
        self._inside("sh", "-c", f"cd /tmp/kernel && apt-get download -q {name} && dpkg-deb -x *.deb .")
        for path in away.glob("boot/vmlinuz-*"):
            shutil.copy(path, self.folder / "boot")
        release = name.removeprefix("linux-image-")
        modules = next(path for path in away.glob(f"**/modules/{release}") if path.is_dir())
        target = self.root / "usr/lib/modules" / release
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(modules, target, symlinks=True)
        shutil.rmtree(away)
        self._inside("depmod", release)

    def _requirements(self) -> list[str]:
        project = tomllib.loads((self.project / "pyproject.toml").read_text())["project"]
        return [*project["dependencies"], *TESTING]

    def _wheels(self, requirements: list[str]) -> None:
        say(f"wheels for Python {PYTHON}")
        wheels = self.root / "opt/wheels"
        shutil.rmtree(wheels, ignore_errors=True)
        tags = [f"manylinux_2_{minor}_x86_64" for minor in (17, 28, 34)] + ["manylinux2014_x86_64"]
        abis = (f"cp{PYTHON.replace('.', '')}", "abi3", "none")
        options = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
        options += [word for tag in tags for word in ("--platform", tag)]
        options += [word for abi in abis for word in ("--abi", abi)]
        run([sys.executable, "-m", "pip", "download", "-q", *options, "-d", wheels, *requirements], self.log)
        shutil.rmtree(self.root / "opt/venv", ignore_errors=True)
        self._inside("python3", "-m", "venv", "/opt/venv")
        install = ["/opt/venv/bin/pip", "install", "-q", "--no-index", "--find-links", "/opt/wheels"]
        self._inside(*install, *requirements)
        shutil.rmtree(wheels)

    def _image(self) -> None:
        say("the disk image")
        self._ext4(self.root, self.image, IMAGE_SIZE)

    def _ext4(self, tree: Path, image: Path, size: str) -> None:
        image.unlink(missing_ok=True)
        run(["mke2fs", "-q", "-t", "ext4", "-d", tree, image, size], self.log)

    def _inside(self, *argv: str) -> str:
        try:
            return run(["chroot", self.root, "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin", *argv], self.log)
        except subprocess.SubprocessError as error:
            raise GuestError(f"{argv[0]} in the root: {error}") from error
