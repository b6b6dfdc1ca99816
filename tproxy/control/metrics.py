"""The authority's counters for Prometheus, fed by the same values that become log lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tproxy.control.record import Issued, Line, Reviewed, Turned

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 10)

_DIRECTORY = {
    "entries": "Addresses known.",
    "streams": "Sidecars that follow.",
    "version": "Steps since we started.",
    "failures": "Failed questions to the API server in a row.",
}
_POLICIES = {
    "objects": "Policy objects known.",
    "invalid": "Policy objects that no sidecar can use.",
    "streams": "Sidecars that follow.",
    "failures": "Failed questions to the API server in a row.",
}


class Metrics:
    """One registry; label values are few and never come from the network."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._issued = Counter("tproxy_ca_issued", "Certificates issued.", ("how",), registry=self.registry)
        self._refused = Counter("tproxy_ca_refused", "Calls refused.", ("reason",), registry=self.registry)
        self._seconds = Histogram("tproxy_ca_seconds", "How long a call took.", buckets=SECONDS, registry=self.registry)
        expiry = "When the certificate that signs, or the one that we serve with, ends."
        self._expiry = Gauge("tproxy_ca_expiry_timestamp_seconds", expiry, ("certificate",), registry=self.registry)
        self._generation = Gauge("tproxy_ca_generation", "Number of the root that signs.", registry=self.registry)
        self._reviews = Counter(
            "tproxy_webhook_reviews", "Answers of the webhook.", ("outcome",), registry=self.registry
        )
        spent = "From a review's head to its answer."
        self._reviewing = Histogram("tproxy_webhook_seconds", spent, buckets=SECONDS, registry=self.registry)
        known = "Whether the cluster has our caBundle and our roots, and we its version."
        self._current = Gauge("tproxy_cluster_current", known, ("what",), registry=self.registry)
        self._live = Gauge("tproxy_ca_calls_open", "Calls being answered now.", registry=self.registry)

    def watch(self, open_calls: Callable[[], int]) -> None:
        """Where the number of open calls comes from."""
        self._live.set_function(open_calls)

    def watch_directory(self, gauges: Mapping[str, Callable[[], float]]) -> None:
        """What the directory counts: name -> how to ask."""
        self._gauges("directory", _DIRECTORY, gauges)

    def watch_policies(self, gauges: Mapping[str, Callable[[], float]]) -> None:
        """What is counted of policies: name -> how to ask."""
        self._gauges("policies", _POLICIES, gauges)

    def _gauges(self, what: str, texts: Mapping[str, str], gauges: Mapping[str, Callable[[], float]]) -> None:
        for name, ask in gauges.items():
            Gauge(f"tproxy_{what}_{name}", texts[name], registry=self.registry).set_function(ask)

    def count(self, line: Line) -> None:
        """Count one answer."""
        match line:
            case Issued(entry=entry):
                self._issued.labels(entry.how.partition(",")[0]).inc()
            case Turned(refused=refused):
                self._refused.labels(refused.reason.value).inc()

            case Reviewed(reply=reply, seconds=seconds):
                self._reviews.labels(reply.did).inc()
                self._reviewing.observe(seconds)

    def current(self, what: str, is_current: bool) -> None:
        """The cluster knows it now, or could not be told."""
        self._current.labels(what).set(is_current)

    def took(self, seconds: float) -> None:
        """A call ended."""
        self._seconds.observe(seconds)

    def signs(self, generation: int, until: float) -> None:
        """Another signer is in use."""
        self._generation.set(generation)
        self._expiry.labels("signing").set(until)

    def serves(self, until: float) -> None:
        """Another serving certificate is in use."""
        self._expiry.labels("serving").set(until)
