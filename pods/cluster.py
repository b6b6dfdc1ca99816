"""What the story asks of a cluster, be it podman on this machine or kind."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Probed:
    """One probe as its container declares it, and what came back."""

    name: str  # web/nginx livenessProbe, was tcpSocket
    passed: bool
    seen: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A Job's pod: its application's exit code, whether its sidecar was alive then, and how the sidecar ended."""

    code: int
    beside: bool
    sidecar: int


class Cluster(Protocol):
    """Workloads are named as in manifests/examples."""

    def injected(self) -> Mapping[str, bool]:
        """Which workloads have a sidecar."""

    def started(self) -> Mapping[str, float]:
        """Seconds from a sidecar's start until it was ready, for every workload that has one."""

    def execute(self, workload: str, container: str, *argv: str) -> tuple[int, str]:
        """Exit code and output."""

    def logs(self, workload: str, container: str) -> str:
        """Everything it wrote to stdout."""

    def address(self, workload: str) -> str:
        """Its pod's."""

    def probes(self, workload: str) -> list[Probed]:
        """Every probe of its containers, asked as the kubelet does."""

    def plain_from_node(self, workload: str, port: int) -> str:
        """Why an HTTP request without TLS from the node fails; nothing if it is answered."""

    def wire(self, pcap: Path) -> AbstractContextManager[None]:
        """Watch what pods say to each other."""

    def kill_sidecar(self, workload: str) -> None:
        """SIGKILL; it stays dead until ``restart_sidecar``."""

    def restart_sidecar(self, workload: str) -> None:
        """As the kubelet would; returns when it is ready."""

    def job(self, workload: str) -> Ended:
        """Run it to its end."""

    def service(self, workload: str) -> str:
        """Its Service's address."""

    def scale(self, workload: str) -> None:
        """Two replicas behind its Service from now on, both ready."""

    def upgrade(self, workload: str) -> None:
        """Its sidecars get another image: pod by pod, a new one ready before an old one goes."""

    def images(self, workload: str) -> list[str]:
        """Of its sidecars, one for each pod."""

    def stop_control(self) -> None:
        """The control plane goes away."""

    def start_control(self) -> None:
        """And comes back."""

    def remove(self) -> str:
        """Take everything away; what is still there."""
