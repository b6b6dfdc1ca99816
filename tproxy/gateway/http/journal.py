"""What is told of requests: counters for Prometheus, and a line each where an access log is wanted."""

from __future__ import annotations

import asyncio
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from tproxy.core.access_log import EVERY, Access, Wanted
from tproxy.core.reason import Deny, Reason
from tproxy.gateway.http.engine import Done
from tproxy.gateway.http.h1_head import Refusal
from tproxy.proxy.trace import Trace

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH: Final = 0.05  # seconds that lines wait for others


def _stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@dataclass(slots=True, eq=False)
class Journal:
    """``form`` is text, json, or nothing: then there is no access log. Labels come from the configuration alone."""

    form: str = ""
    wanted: Wanted = EVERY
    write: Callable[[str], None] = _stdout
    requests: Counter[tuple[int, str, str, int]] = field(default_factory=Counter)  # port, rule, backend, status
    _buckets: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    _sum: float = 0.0
    _lines: list[str] = field(default_factory=list)

    def done(self, done: Done) -> None:
        """A request is over."""
        backend = done.backend
        self.requests[done.caller.port, done.rule, "" if backend is None else backend.name, done.status] += 1
        seconds = done.ended - done.began
        self._buckets[bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds
        if self.form and self.wanted.wants(done.status):
            self._add(_access(done, seconds))

    def refused(self, refusal: Refusal, trace: Trace) -> None:
        """Bytes on a connection that were no request."""
        self.requests[trace.target.port, "", "", refusal.status] += 1
        if self.form:
            self._add(_bare(trace, status=refusal.status, flags="DPE", failure=refusal.why))

    def no_connection(self, deny: Deny, trace: Trace) -> None:
        """A client's TLS led to nothing: the name that it asked for is worth a line."""
        if not self.form:
            return
        found = deny.reason is Reason.NO_ROUTE
        details = "filter_chain_not_found" if found else "downstream_transport_failure"
        self._add(_bare(trace, flags="NR" if found else "", details=details, failure="" if found else deny.why))

    def _add(self, access: Access) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_later(BATCH, self.flush)
        self._lines.append(access.json() if self.form == "json" else access.text())

    def flush(self) -> None:
        """Write what waits."""
        if self._lines:
            self._lines.append("")
            self.write("\n".join(self._lines))
            self._lines.clear()

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        labels = ("port", "route", "backend", "code")
        total = CounterMetricFamily("tproxy_http_requests", "Requests that were answered.", labels=labels)
        for (port, rule, backend, status), count in self.requests.items():
            total.add_metric((str(port), rule, backend, str(status)), count)
        yield total
        so_far, buckets = 0, list[tuple[str, float]]()
        for bound, count in zip((*map(str, SECONDS), "+Inf"), self._buckets, strict=True):
            so_far += count
            buckets.append((bound, so_far))
        yield HistogramMetricFamily("tproxy_http_request_seconds", "How long they took.", buckets, self._sum)


def _bare(trace: Trace, status: int = 0, flags: str = "", details: str = "", failure: str = "") -> Access:
    return Access(
        trace.began,
        status=status,
        flags=flags,
        details=details,
        failure=failure,
        local=str(trace.target),
        remote=str(trace.source),
        sni=trace.sni,
    )


def _access(done: Done, seconds: float) -> Access:
    head, sent, trace = done.head, done.sent or done.head, done.trace
    return Access(
        time.time() - seconds,
        head.method,
        head.target,
        head.version,
        done.status,
        done.flags,
        details=done.details,
        failure=done.why if done.flags in ("UF", "UC", "UR", "UPE", "UO") else "",
        received=done.received_bytes,
        sent=done.sent_bytes,
        duration=int(seconds * 1000),
        service_time=done.service_time,
        headers=dict(sent.headers),
        authority=head.authority,
        upstream_host=str(done.endpoint) if done.endpoint is not None else "",
        cluster=done.backend.name if done.backend is not None else "",
        upstream_local=done.upstream_local,
        local=str(trace.target),
        remote=str(trace.source),
        sni=trace.sni,
        route=done.rule.replace(" ", "/"),
    )
