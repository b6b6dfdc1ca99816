"""What ``tproxy gateway run --kubernetes`` does besides: follow the cluster, serve what can be served, say so there."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tproxy.cli import gateway_source as source
from tproxy.cli.usage import option
from tproxy.core.fields import ConfigError
from tproxy.kernel.errors import KernelError

if TYPE_CHECKING:
    from tproxy.admin.metrics import Metrics
    from tproxy.core.routes import Bind
    from tproxy.gateway.cluster import Cluster
    from tproxy.gateway.compile import Loaded
    from tproxy.gateway.gate import Gate

log = logging.getLogger("tproxy")
LOOK = 30.0  # seconds
_OF_A_CLUSTER = (
    "watch_namespace",
    "gateway_class",
    "publish_service",
    "address",
    "api_server",
    "token_file",
    "ca_file",
)


def misplaced(args: argparse.Namespace) -> None:
    """ConfigError for what means nothing without a cluster."""
    for name in _OF_A_CLUSTER:
        if getattr(args, name) and not args.kubernetes:
            said = f"--{name.replace('_', '-')}"
            raise ConfigError("command line", said, "is for a cluster: say --kubernetes, too", getattr(args, name))


def cluster_of(args: argparse.Namespace) -> Cluster:
    """Not asked yet."""
    if args.config or args.folder:
        raise ConfigError("command line", "--kubernetes", "is instead of a directory, not beside it")
    from tproxy.gateway.cluster import Cluster
    from tproxy.kube.where import SECRETS, Kubernetes, parse_api_server

    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT_HTTPS", "443")
    default = f"https://{f'[{host}]' if ':' in host else host}:{port}" if host else "https://kubernetes.default.svc"
    server = option("--api-server", parse_api_server, args.api_server or default)
    token, authority = args.token_file or f"{SECRETS}/token", args.ca_file or f"{SECRETS}/ca.crt"
    return Cluster(Kubernetes(*server, token, authority), _words(args.watch_namespace))


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


class Following:
    """The cluster, and what was last made of it. Of several workers each follows it, and one ``writes`` statuses."""

    def __init__(self, args: argparse.Namespace, writes: bool = True) -> None:
        self._args, self._cluster, self._writes = args, cluster_of(args), writes
        self._loaded: Loaded | None = None
        self._missing: Mapping[Bind, KernelError] = {}
        self._fresh = asyncio.Event()

    def not_ready(self) -> str:
        """Why nothing is served yet, or nothing."""
        return self._cluster.not_ready() or ("" if self._loaded else "the first table is being made")

    async def follow(self, gate: Gate, metrics: Metrics, again: asyncio.Event) -> None:
        """For ever. An object with an error is left out, a port that cannot be had, too; their statuses say so."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._cluster.run())
            group.create_task(self._take(gate, metrics, again))
            if self._writes:
                group.create_task(self._tell())

    async def _take(self, gate: Gate, metrics: Metrics, again: asyncio.Event) -> None:
        while True:
            waits = [asyncio.create_task(self._cluster.change()), asyncio.create_task(again.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            again.clear()
            began = time.monotonic()
            await self._taken(gate, metrics)
            self._cluster.took(time.monotonic() - began)

    async def _tell(self) -> None:
        """Statuses, beside the taking up: a slow API server holds up no change."""
        while True:
            try:
                async with asyncio.timeout(LOOK):  # others may have written over them
                    await self._fresh.wait()
            except TimeoutError:
                pass
            self._fresh.clear()
            if self._loaded and (written := await self._cluster.publish(self._loaded.statuses)):
                log.info("statuses of %d objects written", written)

    async def _taken(self, gate: Gate, metrics: Metrics) -> None:
        loaded = await asyncio.to_thread(self._compiled, frozenset())
        missing = gate.missing(loaded.table)
        if missing:
            loaded = await asyncio.to_thread(self._compiled, frozenset(missing))
        self._say(missing, loaded)
        try:
            gate.take(loaded.table, loaded.material)
        except KernelError as error:
            metrics.refused()
            log.error("not taken up, what was served before goes on: %s", error)
            return
        metrics.taken()
        self._loaded = loaded
        self._fresh.set()

    def _say(self, missing: Mapping[Bind, KernelError], loaded: Loaded) -> None:
        """What is new: endpoints come and go all day, and what is wrong stays wrong meanwhile."""
        known, ports_before = (set(self._loaded.findings), _ports(self._loaded)) if self._loaded else (set(), "")
        for bind in missing.keys() - self._missing.keys():
            log.error("%s", missing[bind])
        self._missing = missing
        for finding in loaded.findings:
            if finding not in known:
                log.log(logging.ERROR if finding.level == "error" else logging.WARNING, "%s", finding.text)
        ports = _ports(loaded)
        log.log(logging.DEBUG if ports == ports_before else logging.INFO, "reloaded: ports %s", ports)

    def _compiled(self, taken: frozenset[Bind]) -> Loaded:
        from tproxy.gateway.compile import compile_table
        from tproxy.gateway.gatewayapi.conditions import CONTROLLER
        from tproxy.gateway.site import published
        from tproxy.kernel.sock import can_bind

        objects, errors = self._cluster.read()
        site = replace(
            source.site_of(self._args),
            controllers=frozenset({CONTROLLER}),
            trusting=False,
            classes=frozenset(_words(self._args.gateway_class)),
            published=_words(self._args.address) or published(objects, self._args.publish_service),
            usable=can_bind,
            taken=taken,
            bundles=self._cluster.bundles,
        )
        return compile_table(objects, errors, source.labels_of(self._args), site)


def _ports(loaded: Loaded) -> str:
    ports = sorted({port for _, port in (*loaded.table.listeners, *loaded.table.datagrams)})
    return ", ".join(map(str, ports)) or "none"
