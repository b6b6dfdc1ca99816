"""HAProxy as a sidecar in a pod: captured by the same rules, mTLS on the original port, for the benchmark.

Two things differ from Envoy's pair and ours, because HAProxy 2.6 cannot do them. It cannot mark its own connections, so
the rules exempt its uid (``excludeOutboundUIDs``). And it checks the peer's chain, but no SPIFFE id: less work.
"""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import yaml

from tproxy.world.pods import Pod, Process, wait_for
from tproxy.world.sidecars import TPROXY

UID = 1337
CONFIG = """\
global
  nbthread {threads}
  maxconn {connections}
  tune.ssl.cachesize 0
  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
  ssl-default-server-options ssl-min-ver TLSv1.3 no-tls-tickets
defaults
  mode tcp
  maxconn {connections}
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen egress
  bind :::15001 v4v6 transparent
  server original 0.0.0.0:0 ssl crt {pem} ca-file {ca} verify required no-ssl-reuse
listen ingress
  bind :::15006 v4v6 transparent ssl crt {pem} ca-file {ca} verify required
  server original 0.0.0.0:0
"""


def available() -> bool:
    """Whether there is a HAProxy to run."""
    return shutil.which("haproxy") is not None


def exempted(pod: Pod, uid: int) -> None:
    """Install the capture rules with one uid exempt: for proxies that cannot mark their own connections."""
    path = pod.world.directory / f"{pod.name}-rules.yaml"
    path.write_text(yaml.safe_dump({"capture": {"excludeOutboundUIDs": [uid]}}))
    pod.run([*TPROXY, "init", "--config", str(path)], check=True)


def as_uid(uid: int) -> list[str]:
    """The prefix that runs a program as a uid which may open transparent sockets, and nothing else."""
    who = ["--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--inh-caps", "+net_raw"]
    return ["setpriv", *who, "--ambient-caps", "+net_raw", "--pdeathsig", "KILL", "--"]


class HAProxy:
    """Rules of ours, proxy of theirs."""

    def __init__(self, pod: Pod, svid: Path, threads: int = 2) -> None:
        self.pod, self.process = pod, None
        folder = pod.world.directory / f"haproxy-{pod.name}"
        folder.mkdir()
        pem = folder / "both.pem"
        pem.touch(0o600)
        pem.write_bytes((svid / "cert.pem").read_bytes() + (svid / "key.pem").read_bytes())
        shutil.chown(pem, UID)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        connections = min(10_000, (hard - 500) // 2)  # two files each
        self.path = folder / "haproxy.cfg"
        self.path.write_text(CONFIG.format(threads=threads, connections=connections, pem=pem, ca=svid / "ca.pem"))

    process: Process | None

    def up(self) -> HAProxy:
        """Install the rules, start HAProxy as the uid that they exempt, wait until it listens."""
        exempted(self.pod, UID)
        argv = [*as_uid(UID), "haproxy", "-db", "-f", str(self.path)]
        self.process = process = self.pod.start(argv, log=self.path.with_suffix(".log"))
        wait_for(lambda: self.pod.listens(15001, 6) and self.pod.listens(15006, 6), 20, "haproxy listens", process)
        return self

    def pss(self) -> int:
        """Proportional set size in bytes."""
        if self.process is None:
            raise RuntimeError("haproxy was never started")
        return self.process.pss()
