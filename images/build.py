"""``python -m images.build``: a base by debootstrap, then images/Dockerfile on it, as a registry's base would be used.

The base is made once and kept; podman keeps the layers of what has not changed. The image's files carry one time,
SOURCE_DATE_EPOCH or that of the last commit.
"""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
import time
from pathlib import Path

from images.engine import Engine, EngineError, need
from tproxy import __version__

MIRROR, SUITE = "http://deb.debian.org/debian", "trixie"
BASE = f"localhost/tproxy-base:{SUITE}"
IMAGE = f"localhost/tproxy:{__version__}"
EXAMPLE = "localhost/tproxy-example:1"  # nginx and curl
FOLDER = Path("build/podman")
PIP_CONF = "[global]\ncert = /run/host-ca.pem\n"  # whom this machine trusts, for the build stage only


def build(engine: Engine) -> None:
    """Everything that is missing or out of date. EngineError says which step failed."""
    engine.run("buildah", "rm", "--all")  # what a build that was killed has left
    if engine.ask("podman", "image", "exists", BASE).returncode:
        _base(engine)
    _dockerfile(engine, "images/Dockerfile", IMAGE)
    _dockerfile(engine, "images/example.Dockerfile", EXAMPLE)


def _base(engine: Engine) -> None:
    say(f"a base of Debian {SUITE} by debootstrap: a minute, and only once")
    root, archive = engine.folder / "root", engine.folder / "root.tar"
    shutil.rmtree(root, ignore_errors=True)
    engine.run("debootstrap", "--variant=minbase", SUITE, root, MIRROR, timeout=900)
    engine.run("tar", "--sort=name", "-C", root, "--exclude=./var/cache/apt/*", "-cf", archive, ".", timeout=300)
    engine.run("podman", "import", archive, BASE, timeout=300)
    shutil.rmtree(root)
    archive.unlink()


def _dockerfile(engine: Engine, path: str, name: str) -> None:
    say(f"{name} from {path}")
    conf = engine.folder / "pip.conf"
    conf.write_text(PIP_CONF)
    trusted = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    argv = ["buildah", "bud", "--layers", "--network", "host", "--timestamp", _moment(), "-f", path, "-t", name]
    argv += ["--build-arg", f"BASE={BASE}", "-v", f"{conf}:/etc/pip.conf:ro"]
    argv += ["-v", f"{Path(trusted).resolve()}:/run/host-ca.pem:ro", "."]
    engine.run(*argv, timeout=1200)


def _moment() -> str:
    """Unix seconds."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    found = subprocess.run(["git", "log", "-1", "--format=%ct"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "0"


def size(engine: Engine, name: str = IMAGE) -> float:
    """Megabytes (10^6 bytes), not compressed."""
    return int(engine.run("podman", "image", "inspect", "--format", "{{.Size}}", name)) / 1e6


def say(text: str) -> None:
    """One line of progress."""
    print(f"images: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """0, or 3 if something is missing."""
    began = time.monotonic()
    try:
        need()
        engine = Engine(FOLDER)
        build(engine)
        say(f"{IMAGE}: {size(engine):.0f} MB, after {time.monotonic() - began:.0f} s")
    except EngineError as error:
        say(str(error))
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
