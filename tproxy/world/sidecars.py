"""Sidecars in the world's pods: rules, process, certificates, records; through the real command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from signal import SIGHUP
from typing import Any

import yaml

from tproxy.world.pods import Pod, Process, World, wait_for

TPROXY = (sys.executable, "-m", "tproxy")
OWNER = "1337:1337"
Record = dict[str, Any]


def tproxy(*args: str) -> str:
    """Run the command line outside any pod; its output. RuntimeError shows what it said."""
    done = subprocess.run([*TPROXY, *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"tproxy {' '.join(args)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


class Authority:
    """An offline CA in the world's directory."""

    def __init__(self, world: World, trust_domain: str) -> None:
        self.world, self.trust_domain = world, trust_domain
        self.folder = world.directory / f"ca-{trust_domain}"
        tproxy("ca", "init", "--dir", str(self.folder), "--trust-domain", trust_domain)

    def issue(self, account: str, namespace: str = "demo", ttl: str = "1h", renew: bool = False) -> Path:
        """A folder with cert.pem, key.pem and ca.pem for one service account."""
        out = self.world.directory / f"svid-{self.trust_domain}-{namespace}-{account}"
        who = ["--namespace", namespace, "--service-account", account, "--owner", OWNER, "--ttl", ttl]
        tproxy("ca", "issue", "--dir", str(self.folder), "--out", str(out), *who, *(["--renew"] if renew else []))
        return out


class Sidecar:
    """``tproxy init`` and ``tproxy sidecar`` in one pod."""

    def __init__(self, pod: Pod, identity: Path | Mapping[str, Any], trust_domain: str, **config: Any) -> None:
        """``identity`` is a folder with an SVID, or that section of the configuration."""
        self.pod, self.process = pod, None
        self.path = pod.world.directory / f"{pod.name}.yaml"
        self.log = pod.world.directory / f"{pod.name}-sidecar.log"
        if isinstance(identity, Path):
            identity = {name: str(identity / f"{name}.pem") for name in ("cert", "key", "ca")}
        self.base: Mapping[str, Any] = {
            "trustDomain": trust_domain,
            "identity": dict(identity),
            "mesh": [{"cidr": "10.77.0.0/24"}, {"cidr": "fd77::/64"}],
        }
        self.write(**config)

    process: Process | None

    def write(self, **config: Any) -> None:
        """A new configuration file; a running sidecar sees it by itself."""
        part = self.path.with_suffix(".new")
        part.write_text(yaml.safe_dump({**self.base, **config}))
        part.chmod(0o644)
        part.rename(self.path)

    def init(self) -> str:
        """Install the capture rules."""
        return self.pod.run([*TPROXY, "init", "--config", str(self.path)], check=True).stdout

    def start(self, *prefix: str) -> Sidecar:
        """Start the process (behind ``prefix``, such as prlimit) and wait until it says that it is ready."""
        argv = [*prefix, *TPROXY, "sidecar", "--config", str(self.path), "--log-format", "json"]
        process = self.process = self.pod.start(argv, log=self.log)
        wait_for(self.ready, 20, f"the sidecar of {self.pod.name} is ready", process)
        return self

    def up(self) -> Sidecar:
        """Rules, then process."""
        self.init()
        return self.start()

    def ready(self) -> bool:
        """Whether the ready port answers."""
        return self.pod.listens(15021, 6) and self.page(15021, "/healthz/ready").strip() == "ready"

    def page(self, port: int, path: str) -> str:
        """What one of its pages says, asked from inside the pod."""
        return self.pod.run(["curl", "-s", "-m", "5", f"http://127.0.0.1:{port}{path}"]).stdout

    def running(self) -> Process:
        """The process; an error if it was never started."""
        if self.process is None:
            raise RuntimeError(f"the sidecar of {self.pod.name} was never started")
        return self.process

    def kill(self) -> None:
        """SIGKILL."""
        self.running().kill()

    def stop(self, seconds: float = 60) -> int:
        """SIGTERM, and wait for the drain."""
        return self.running().stop(seconds)

    def reload(self) -> None:
        """SIGHUP."""
        self.running().send(SIGHUP)

    def lines(self) -> list[Record]:
        """Everything in its log that is JSON, but for a line that is still being written."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1] if line.startswith("{")]

    def records(self) -> list[Record]:
        """One for each connection that ended."""
        return [line for line in self.lines() if "direction" in line]

    def wait_record(self, wanted: Callable[[Record], bool], seconds: float = 10, after: int = 0) -> Record:
        """The first matching record behind the first ``after`` ones."""
        found: list[Record] = []

        def look() -> list[Record]:
            found[:] = [record for record in self.records()[after:] if wanted(record)]
            return found

        return wait_for(look, seconds, f"a record of {self.pod.name}", self.running())[0]

    def pss(self) -> int:
        """Proportional set size in bytes."""
        return self.running().pss()

    def files(self) -> int:
        """Open files of the process."""
        return len(list(Path(f"/proc/{self.running().pid}/fd").iterdir()))

    def metrics(self) -> dict[str, float]:
        """Every sample of its /metrics page."""
        lines = [line for line in self.page(15020, "/metrics").splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
