"""Counters for Prometheus, fed by the same Record that becomes the log line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from tproxy.admin.http import Answer
from tproxy.admin.prometheus import (
    CONTENT_TYPE_LATEST,
    Collector,
    CollectorRegistry,
    Counter,
    Gauge,
    GaugeMetricFamily,
    Histogram,
    generate_latest,
)
from tproxy.core.certificates.pem import certificates, der
from tproxy.core.certificates.x509 import LeafFacts, leaf_facts
from tproxy.core.identity import Snapshot
from tproxy.core.record import Direction, Record

SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 300, 3600)
PEERS = 100  # names of peers that speak plaintext


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
        self._trust = Gauge(
            "tproxy_trust_bundle_expiry_timestamp_seconds",
            "When the first root of a trust domain ends.",
            ("trust_domain",),
            registry=self.registry,
        )
        self._failing = Gauge(
            "tproxy_credential_failures", "Failed renewals in a row of our credentials.", registry=self.registry
        )
        routed = ("router", "rule", "outcome")
        self._routed = Counter(
            "tproxy_routed_connections", "Connections that a rule of egress sent.", routed, registry=self.registry
        )
        self._plaintext = Counter(
            "tproxy_plaintext_connections",
            "Connections that were admitted without TLS, by what the directory calls the peer.",
            ("direction", "peer"),
            registry=self.registry,
        )
        self._peers = set[str]()
        self._live = Gauge("tproxy_connections_open", "Connections being carried now.", registry=self.registry)
        self._child = lru_cache(maxsize=512)(self._connections.labels)
        self._moved = lru_cache(maxsize=8)(self._bytes.labels)
        self._lived = lru_cache(maxsize=4)(self._seconds.labels)

    def watch(self, open_connections: Callable[[], int], failures: Callable[[], int]) -> None:
        """Where the number of open connections, and of failed renewals in a row, come from."""
        self._live.set_function(open_connections)
        self._failing.set_function(failures)

    def watch_directory(
        self, entries: Callable[[], int], updated: Callable[[], float], lost: Callable[[], int]
    ) -> None:
        """Where the size of the directory, the time of its last update, and failures in a row come from."""
        for name, text, ask in (
            ("entries", "Addresses that the directory knows.", entries),
            ("updated_timestamp_seconds", "When it last said something.", updated),
            ("failures", "Failed connections to it in a row; 0 while it is followed.", lost),
        ):
            Gauge(f"tproxy_directory_{name}", text, registry=self.registry).set_function(ask)

    def watch_routers(self, ask: Callable[[], Mapping[tuple[str, int], bool]]) -> None:
        """Where it comes from which routers of egress are up; names and ports are the configuration's."""
        self.registry.register(_Routers(ask))

    def watch_policies(
        self,
        objects: Callable[[], int],
        updated: Callable[[], float],
        lost: Callable[[], int],
        refused: Callable[[], bool],
    ) -> None:
        """Of the policies that control tells: how many, since when, failures in a row, whether the newest are void."""
        for name, text, ask in (
            ("objects", "Policy objects in force, ours or for others.", objects),
            ("updated_timestamp_seconds", "When control last said something of policies.", updated),
            ("failures", "Failed connections in a row; 0 while policies are followed.", lost),
            ("refused", "1 while the newest set cannot be used and an older one, or none, is in force.", refused),
        ):
            Gauge(f"tproxy_policies_{name}", text, registry=self.registry).set_function(ask)

    def finished(self, record: Record) -> None:
        """Count one connection."""
        reason = record.reason.value if record.reason else ""
        self._child(record.direction.value, record.outcome.value, reason, "yes" if record.tls else "no").inc()
        self._moved(record.direction.value, "sent").inc(record.sent)
        self._moved(record.direction.value, "received").inc(record.received)
        self._lived(record.direction.value).observe(record.seconds)
        if record.router:
            self._routed.labels(record.router, record.rule, record.outcome.value).inc()

    def bare(self, direction: Direction, peer: str) -> None:
        """A connection without TLS was admitted; pods come and go, so only the first names have series of their own."""
        if peer not in self._peers and len(self._peers) >= PEERS:
            peer = "others"
        self._peers.add(peer)
        self._plaintext.labels(direction.value, peer).inc()

    def loaded(self, snapshot: Snapshot) -> None:
        """New credentials are in use."""
        self._expiry.set(snapshot.svid.not_after)
        self._trust.clear()
        for domain, bundle in snapshot.bundles.items():
            facts = [leaf_facts(der(block)) for block in certificates(bundle)]
            ends = [found.not_after for found in facts if isinstance(found, LeafFacts)]
            self._trust.labels(domain).set(min(ends, default=0))
        self.taken()

    def taken(self) -> None:
        """New configuration is in use."""
        self._reloads.labels("ok").inc()

    def refused(self) -> None:
        """New configuration or credentials could not be used."""
        self._reloads.labels("refused").inc()

    def page(self) -> Answer:
        """The text format."""
        return Answer(200, generate_latest(self.registry), CONTENT_TYPE_LATEST)


class _Routers(Collector):
    """Asked when the page is: the configuration may name others by then."""

    def __init__(self, ask: Callable[[], Mapping[tuple[str, int], bool]]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One sample a host and port."""
        family = GaugeMetricFamily("tproxy_router_up", "Whether a router of egress answers.", labels=("host", "port"))
        for (host, port), up in sorted(self._ask().items()):
            family.add_metric((host, str(port)), float(up))
        yield family
