"""What the three ports of a sidecar answer: admin (for this pod only), metrics, ready."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tproxy.admin import dump
from tproxy.admin.http import Answer, Pages
from tproxy.admin.metrics import Metrics
from tproxy.core.config import Config
from tproxy.core.plaintext import Plaintext
from tproxy.kernel.sock import any_host, plain_listener
from tproxy.proxy.generations import Generations
from tproxy.proxy.sidecar import Sidecar

if TYPE_CHECKING:
    from tproxy.identity.directory import Directory  # gRPC costs memory
    from tproxy.identity.policies import Policies


@dataclass(frozen=True, slots=True)
class Parts:
    """What runs."""

    sidecar: Sidecar
    generations: Generations
    metrics: Metrics
    plaintext: Plaintext
    directory: Directory | None
    policies: Policies | None

    def pages(self, config: Config) -> list[tuple[socket.socket, Pages]]:
        """Listening sockets, and what stands behind each."""
        ports = config.ports
        health: dict[str, Callable[[], Answer]] = {"/healthz/ready": self._ready}
        scrape = {"/metrics": self.metrics.page, **health}
        shown = {"/config_dump": self._whole, "/identity": self._identity}
        others = {"/directory": self._others, "/policies": self._objects, "/plaintext": self._bare}
        return [
            (plain_listener("127.0.0.1", ports.admin), {**shown, **others, **scrape}),
            (plain_listener(any_host(), ports.metrics), scrape),
            (plain_listener(any_host(), ports.ready), health),
        ]

    def _ready(self) -> Answer:
        why = self.sidecar.not_ready()
        error = self.generations.status.error if why else ""
        told = (one.not_ready() for one in (self.policies, self.directory) if one is not None)
        why = why or next(filter(None, told), "")
        return Answer.text(": ".join(filter(None, (why, error))), 503) if why else Answer.text("ready")

    def _whole(self) -> Answer:
        state, directory, policies = self.sidecar.state, self.directory, self.policies
        told = {"directory": directory and asdict(directory.status), "policies": policies and asdict(policies.status)}
        return Answer.json({**dump.config_dump(state.config, state.contexts.snapshot), **told} if state else {})

    def _others(self) -> Answer:
        directory = self.directory
        return Answer.json(dump.directory_dump(asdict(directory.status), directory.entries) if directory else {})

    def _objects(self) -> Answer:
        policies = self.policies
        return Answer.json(dump.policies_dump(asdict(policies.status), policies.held) if policies else {})

    def _bare(self) -> Answer:
        state, sidecar = self.sidecar.state, self.sidecar
        return Answer.json(dump.plaintext_dump(self.plaintext, sidecar.open_plaintext(), state.config) if state else {})

    def _identity(self) -> Answer:
        state, policies = self.sidecar.state, self.policies
        found = dump.identity_dump(asdict(self.generations.status), state.contexts.snapshot if state else None)
        return Answer.json({**found, "policies": asdict(policies.status)} if policies else found)
