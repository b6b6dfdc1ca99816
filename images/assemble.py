"""Runs in the build stage: what ``tproxy`` needs to run, and nothing else, into one folder that becomes the image.

    python3 images/assemble.py /out

Seeds are Python with its library, our virtual environment, and the two libraries that are opened by name; then comes
whatever shared library these ask for (ldd). No shell, no package manager, no compiler, no caches; /usr/share/doc keeps
the copyright of each Debian package, and /var/lib/dpkg/status.d its entry, so that scanners see what is there.
Bytecode is compiled with unchecked hashes: a read-only root needs no writing, and the result does not depend on time.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
LIBRARY, VENV = Path("/usr/lib") / PYTHON, Path("/opt/tproxy")
SEEDS = (Path("/usr/bin") / PYTHON, Path("/usr/bin/python3"), LIBRARY, VENV, Path("/etc/ssl/openssl.cnf"))
BY_NAME = ("libnftables.so.1", "libbpf.so.1", "libgcc_s.so.1")  # dlopen
NOT = (  # of the library and of the virtual environment, by their first parts
    *("test", "idlelib", "ensurepip", "tkinter", "turtledemo", "pydoc_data", "turtle.py", "_pyrepl", "lib2to3"),
    *("config-*", "dist-packages", "__phello__", "EXTERNALLY-MANAGED", "sitecustomize.py"),
    *("lib-dynload/_dbm.*", "lib-dynload/_curses*", "lib-dynload/readline.*"),
)
NOT_PACKAGES = ("pip", "pip-*", "setuptools", "setuptools-*", "_distutils_hack", "distutils-precedence.pth")
JUNK = ("__pycache__", "*.pyc", "*.pyx", "*.pxd", "*.c", "*.h", "*.cpp", "tests", "*.a")
NAMES = {  # a root without these has no names for the uids in it
    "etc/passwd": "root:x:0:0::/:/nologin\ntproxy:x:1337:1337::/:/nologin\nnobody:x:65534:65534::/:/nologin\n",
    "etc/group": "root:x:0:\ntproxy:x:1337:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/os-release": Path("/etc/os-release").read_text(encoding="utf-8"),
}


def main(out: Path) -> None:
    """Everything into ``out``, which must not exist."""
    for place in ("usr/bin", "usr/lib", "usr/lib64", "etc", "tmp", "run", "proc", "sys", "dev", "var/lib"):
        (out / place).mkdir(parents=True)
    (out / "tmp").chmod(0o1777)
    for link in ("bin", "lib", "lib64"):
        (out / link).symlink_to(f"usr/{link}")
    (out / "var/run").symlink_to("/run")
    for seed in SEEDS:
        _copy(seed, out)
    for folder, names in ((LIBRARY, NOT), (VENV / f"lib/{PYTHON}/site-packages", NOT_PACKAGES)):
        for path in (one for name in names for one in (out / folder.relative_to("/")).glob(name)):
            _remove(path)
    for path in (VENV / "bin").iterdir():
        if not path.name.startswith("python") and path.name != "tproxy":
            _remove(out / path.relative_to("/"))
    libraries = set(_needed(out))
    for path in libraries:
        target = out / "usr" / path.relative_to("/").as_posix().removeprefix("usr/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for name, text in NAMES.items():
        (out / name).write_text(text, encoding="utf-8")
    _packages(out, {*libraries, *SEEDS[:2], LIBRARY / "os.py", LIBRARY / "asyncio/__init__.py"})
    for path in (VENV / f"lib/{PYTHON}/site-packages").rglob("*.so*"):
        _strip(out / path.relative_to("/"))
    _compile(out)


def _copy(seed: Path, out: Path) -> None:
    target = out / seed.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if seed.is_dir() and not seed.is_symlink():
        shutil.copytree(seed, target, symlinks=True, ignore=shutil.ignore_patterns(*JUNK))
    else:
        shutil.copy(seed, target, follow_symlinks=False)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _needed(out: Path) -> Iterator[Path]:
    """Shared libraries outside of the seeds, by the paths under which the loader finds them."""
    cache = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    known = dict(re.findall(r"^\s(\S+) \(.*?\) => (\S+)$", cache, re.MULTILINE)[::-1])
    opened = [Path(known[name]) for name in BY_NAME]
    yield from opened
    programs = [path for path in out.rglob("*") if path.is_file() and not path.is_symlink() and _is_elf(path)]
    for path in (*programs, *opened):
        # asked where it really stands, so that libraries beside it are found
        real = Path("/") / path.relative_to(out) if path.is_relative_to(out) else path
        asked = subprocess.run(["ldd", real], capture_output=True, text=True, check=False).stdout
        for found in re.findall(r"(?:=> |^\s)(/\S+) \(", asked, re.MULTILINE):
            if not Path(found).is_relative_to(VENV):
                yield Path(found)


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _packages(out: Path, files: set[Path]) -> None:
    """Which Debian packages these files came from: status.d (as distroless images have it) and copyright."""
    names = set()
    for path in files:
        for spelled in dict.fromkeys((path, path.resolve(), Path("/usr") / path.resolve().relative_to("/"))):
            found = subprocess.run(["dpkg-query", "-S", spelled], capture_output=True, text=True, check=False).stdout
            names |= set(re.findall(r"^([a-z0-9+.-]+)(?::\w+)?(?:, .*)?: ", found, re.MULTILINE))
    (out / "var/lib/dpkg/status.d").mkdir(parents=True)
    for name in sorted(names):
        entry = subprocess.run(["dpkg-query", "-s", name], capture_output=True, text=True, check=True).stdout
        (out / "var/lib/dpkg/status.d" / name).write_text(entry, encoding="utf-8")
        copyright_file = Path("/usr/share/doc") / name / "copyright"
        if copyright_file.exists():
            target = out / copyright_file.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(copyright_file, target)


def _strip(path: Path) -> None:
    """Without symbols; a library that strip would damage stays as it is."""
    if path.is_file() and not path.is_symlink():
        subprocess.run(["strip", "--strip-unneeded", path], check=False, stderr=subprocess.DEVNULL)


def _compile(out: Path) -> None:
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for folder in (LIBRARY, VENV):
        place = out / folder.relative_to("/")
        fine = compileall.compile_dir(place, quiet=2, workers=os.cpu_count() or 1, stripdir=out, invalidation_mode=mode)
        if not fine:
            raise SystemExit(f"some of {folder} cannot be compiled")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
