"""``tproxy control`` in a pod of its own, and what a sidecar needs to get its certificates there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from tproxy.world.pods import Pod, wait_for
from tproxy.world.process import Process
from tproxy.world.sidecars import OWNER, TPROXY, tproxy

PORT = 15012
DIRECTORY_PORT = 15013


class Control:
    """The authority of a trust domain as a server; workloads come with join tokens."""

    def __init__(self, pod: Pod, trust_domain: str, **config: Any) -> None:
        self.pod, self.trust_domain, self.process = pod, trust_domain, None
        self.folder = pod.world.directory / f"control-{trust_domain}"
        self.log = pod.world.directory / f"{pod.name}-control.log"
        self.path = pod.world.directory / f"{pod.name}-control.yaml"
        tproxy("ca", "init", "--dir", str(self.folder), "--trust-domain", trust_domain)
        base = {"dir": str(self.folder), "names": [pod.v4, pod.v6, "localhost"]}
        self.path.write_text(yaml.safe_dump({**base, **config}))

    process: Process | None

    def start(self) -> Control:
        """Run it, and wait until it listens."""
        argv = [*TPROXY, "control", "--config", str(self.path), "--log-format", "json"]
        process = self.process = self.pod.start(argv, log=self.log)
        wait_for(lambda: self.pod.listens(PORT, 6) or self.pod.listens(PORT), 20, "the CA listens", process)
        return self

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()

    @property
    def directory(self) -> dict[str, Any]:
        """The section ``directory`` of a sidecar."""
        return {"address": f"{self.pod.v4}:{DIRECTORY_PORT}"}

    def identity(self, account: str, namespace: str = "demo", ttl: str = "24h") -> dict[str, Any]:
        """The section ``identity`` of a sidecar with a join token of its own."""
        who = f"spiffe://{self.trust_domain}/ns/{namespace}/sa/{account}"
        token = self._file(f"token-{namespace}-{account}", tproxy(*self._token(who)).strip())
        roots = self._file(f"roots-{self.trust_domain}.pem", (self.folder / "bundle.pem").read_text())
        address = f"{self.pod.v4}:{PORT}"
        return {"istioCa": {"address": address, "token": str(token), "roots": str(roots), "ttl": ttl}}

    def issued(self) -> list[dict[str, Any]]:
        """One line for each certificate."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        lines = [json.loads(line) for line in text.split("\n")[:-1] if line.startswith("{")]
        return [line for line in lines if "serial" in line]

    def _token(self, who: str) -> list[str]:
        return ["ca", "token", "--dir", str(self.folder), "--id", who, "--ttl", "1h"]

    def _file(self, name: str, text: str) -> Path:
        path = self.pod.world.directory / name
        path.write_text(text)
        path.chmod(0o600)
        os.chown(path, *map(int, OWNER.split(":")))
        return path
