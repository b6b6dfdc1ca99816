"""podman and buildah with a storage of our own under one folder: nothing of the machine's own containers is touched.

>>> Engine(Path("build/podman")).run("podman", "images")                                       # doctest: +SKIP
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

PROGRAMS = {
    "podman": "podman",
    "buildah": "buildah",
    "runc": "runc",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
    "tcpdump": "tcpdump",
    "nsenter": "util-linux",
}
# Limits no higher than ours, because raising one takes CAP_SYS_RESOURCE; runc, because crun 1.8 refuses a machine on
# which both versions of cgroups are mounted.
CONTAINERS = """\
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{run}/libpod"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{run}/storage"
[storage.options.overlay]
skip_mount_home = "true"
"""  # no mount of the folder on itself, so that it can be removed


class EngineError(RuntimeError):
    """What failed, in words for whoever typed ``make``."""


class Engine:
    """One folder for everything that stays, one under /run for what does not."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder.absolute(), folder.absolute() / "log"
        run = Path("/run") / f"tproxy-{folder.absolute().as_posix().replace('/', '_')[-40:]}"
        for place in (self.folder, self.folder / "networks", run):
            place.mkdir(parents=True, exist_ok=True)
            place.chmod(0o700)
        names = {"folder": self.folder, "run": run, "files": _most(resource.RLIMIT_NOFILE)}
        names["processes"] = min(4096, _most(resource.RLIMIT_NPROC))  # buildah lowers its own
        self.environment: Mapping[str, str] = {
            **os.environ,
            "CONTAINERS_CONF": str(self._file("containers.conf", CONTAINERS.format(**names))),
            "CONTAINERS_STORAGE_CONF": str(self._file("storage.conf", STORAGE.format(**names))),
        }

    def run(self, *argv: str | Path, stdin: str = "", timeout: float = 120, check: bool = True) -> str:
        """What it printed. EngineError with the last lines, unless ``check`` is False; the log keeps all."""
        done = self.ask(*argv, stdin=stdin, timeout=timeout)
        output = done.stdout + done.stderr
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(map(str, argv))}\n{output}")
        if check and done.returncode:
            tail = "\n".join(output.splitlines()[-8:])
            what = " ".join(map(str, argv[:2]))
            raise EngineError(f"{what} failed with exit code {done.returncode}; all of it is in {self.log}\n{tail}")
        return done.stdout

    def ask(self, *argv: str | Path, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Exit code, stdout and stderr. EngineError if it takes too long."""
        try:
            return subprocess.run(
                list(map(str, argv)),
                input=stdin,
                env=self.environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EngineError(f"{' '.join(map(str, argv[:3]))} did not end within {timeout:g} s") from None

    def _file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path


def need() -> None:
    """EngineError names the Debian packages of programs that are missing, or says that root is needed."""
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if missing:
        raise EngineError(f"please install: apt-get install --no-install-recommends {' '.join(missing)}")
    if os.geteuid():
        raise EngineError("containers with network rules of their own need root here")


def _most(limit: int) -> int:
    """Our own hard limit, as a number that podman takes."""
    hard = resource.getrlimit(limit)[1]
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard
