"""Counters for Prometheus, fed by the same Record that becomes the log line."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tproxy.admin.http import Answer
from tproxy.core.identity import Snapshot
from tproxy.core.record import Record

SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 300, 3600)


class Metrics:
    """One registry a sidecar; label values are few and never come from the network."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("direction", "outcome", "reason", "tls")
        self._connections = Counter("tproxy_connections", "Connections that ended.", labels, registry=self.registry)
        way = ("direction", "way")
        self._bytes = Counter("tproxy_bytes", "Application bytes carried.", way, registry=self.registry)
        self._seconds = Histogram(
            "tproxy_connection_seconds", "How long they lived.", ("direction",), buckets=SECONDS, registry=self.registry
        )
        self._expiry = Gauge(
            "tproxy_svid_expiry_timestamp_seconds", "When our certificate ends.", registry=self.registry
        )
        self._reloads = Counter(
            "tproxy_reloads", "Configuration and certificate reloads.", ("result",), registry=self.registry
        )
        self._live = Gauge("tproxy_connections_open", "Connections being carried now.", registry=self.registry)
        self._child = lru_cache(maxsize=512)(self._connections.labels)
        self._moved = lru_cache(maxsize=8)(self._bytes.labels)
        self._lived = lru_cache(maxsize=4)(self._seconds.labels)

    def watch(self, open_connections: Callable[[], int]) -> None:
        """Where the number of open connections comes from."""
        self._live.set_function(open_connections)

    def finished(self, record: Record) -> None:
        """Count one connection."""
        reason = record.reason.value if record.reason else ""
        self._child(record.direction.value, record.outcome.value, reason, "yes" if record.tls else "no").inc()
        self._moved(record.direction.value, "sent").inc(record.sent)
        self._moved(record.direction.value, "received").inc(record.received)
        self._lived(record.direction.value).observe(record.seconds)

    def loaded(self, snapshot: Snapshot) -> None:
        """New credentials are in use."""
        self._expiry.set(snapshot.svid.not_after)

    def reloaded(self, ok: bool) -> None:
        """A reload was tried."""
        self._reloads.labels("ok" if ok else "refused").inc()

    def page(self) -> Answer:
        """The text format."""
        return Answer(200, generate_latest(self.registry), CONTENT_TYPE_LATEST)
