"""The gateway's page for istioctl and jq: /config_dump as Envoy has it, of the table that is served now."""

from __future__ import annotations

import argparse
import logging
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tproxy.kernel.errors import KernelError

if TYPE_CHECKING:
    from tproxy.admin.http import Answer
    from tproxy.core.routes import Table
    from tproxy.gateway.envoy.pages import Page
    from tproxy.gateway.gate import Gate

log = logging.getLogger("tproxy")


class Dump:
    """Made when it is asked for, once for each table."""

    def __init__(
        self, table: Callable[[], Table], chains: Callable[[], Mapping[str, bytes]], pages: tuple[Page, ...]
    ) -> None:
        self._table, self._chains, self._pages = table, chains, pages
        self._of: Table | None = None
        self._number = 0
        self._page: Answer | None = None

    def page(self) -> Answer:
        """The document."""
        from tproxy.admin.http import Answer
        from tproxy.gateway.envoy.dump import config_dump

        table = self._table()
        if self._page is None or table is not self._of:
            self._of, self._number = table, self._number + 1
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            self._page = Answer.json(config_dump(table, self._chains(), now, str(self._number), self._pages))
        return self._page


def endpoints_page(gate: Gate) -> Answer:
    """/clusters: who is asked, and who is left out."""
    from tproxy.admin.http import Answer
    from tproxy.gateway.envoy.clusters import statuses
    from tproxy.gateway.envoy.dump import backends

    return Answer.json(statuses(backends(gate.table), gate.web.engine.guards.out))


def pages_of(args: argparse.Namespace) -> tuple[Page, ...]:
    """Ports of an Istio gateway that are ours, too."""
    from tproxy.gateway.envoy.pages import READY, STATS, Page

    asked = ((args.ready_port, READY), (args.stats_port, STATS))
    return tuple(Page(port, *found) for port, found in asked if port)


def admin_socket(port: int) -> socket.socket | None:
    """On loopback only. Whoever has the port already keeps it: the gateway serves without its page."""
    return _spare("127.0.0.1", port, "no admin page")


def stats_socket(port: int) -> socket.socket | None:
    """Where Istio's Prometheus looks for a proxy's own metrics; likewise."""
    from tproxy.kernel.sock import any_host

    return _spare(any_host(), port, "no metrics on Envoy's port")


def _spare(host: str, port: int, lost: str) -> socket.socket | None:
    from tproxy.kernel.sock import plain_listener

    try:
        return plain_listener(host, port)
    except KernelError as error:
        log.warning("%s: %s", lost, error)
        return None
