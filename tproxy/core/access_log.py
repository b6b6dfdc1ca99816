"""One line a request, in the text and the JSON that Istio's gateways write, so that what reads those reads these.

PURE. Source: istio, pilot/pkg/model/telemetry_logging.go (EnvoyTextLogFormat, EnvoyJSONLogFormatIstio).
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

# Envoy's response flags, and the detail that goes with each (response_code_details)
_DETAILS = {
    "NR": "route_not_found",
    "NC": "cluster_not_found",
    "UH": "no_healthy_upstream",
    "UF": "upstream_reset_before_response_started{remote_connection_failure}",
    "UC": "upstream_reset_before_response_started{connection_termination}",
    "UR": "upstream_reset_before_response_started{remote_reset}",
    "UPE": "upstream_reset_before_response_started{protocol_error}",
    "UO": "upstream_reset_before_response_started{overflow}",
    "UT": "response_timeout",
    "DC": "downstream_remote_disconnect",
    "DPE": "http1.codec_error",
    "FI": "fault_filter_abort",
}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Whether requests are logged; ``compare`` and ``code`` limit it to some statuses."""

    on: bool
    compare: str = ""
    code: int = 0

    def wants(self, status: int) -> bool:
        """Whether a request that ended so is logged."""
        return self.on and (not self.compare or _COMPARE[self.compare](status, self.code))


EVERY = Wanted(True)


@dataclass(frozen=True, slots=True)
class Access:
    """What is known of a request; empty, 0 and -1 mean that it is not."""

    start: float  # unix
    method: str = ""
    path: str = ""
    protocol: str = ""
    status: int = 0
    flags: str = ""
    details: str = ""  # other than what goes with the flags
    termination: str = ""
    failure: str = ""
    received: int = 0
    sent: int = 0
    duration: int = 0  # milliseconds
    service_time: int = -1
    headers: dict[str, str] = field(default_factory=dict)  # the request's, as the backend gets them
    authority: str = ""
    upstream_host: str = ""
    cluster: str = ""
    upstream_local: str = ""
    local: str = ""
    remote: str = ""
    sni: str = ""
    route: str = ""

    def _pairs(self) -> Iterable[tuple[str, str | int, bool]]:
        """Name in JSON, value, and whether the text has it in quotes; the first four are one thing there."""
        stamp = datetime.fromtimestamp(self.start, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        header = self.headers.get
        yield "start_time", stamp, False
        yield "method", self.method, False
        yield "path", header("x-envoy-original-path") or self.path, False
        yield "protocol", self.protocol, False
        yield "response_code", self.status, False
        yield "response_flags", self.flags, False
        yield "response_code_details", self.details or self._detail(), False
        yield "connection_termination_details", self.termination, False
        yield "upstream_transport_failure_reason", self.failure.replace('"', "'"), True
        yield "bytes_received", self.received, False
        yield "bytes_sent", self.sent, False
        yield "duration", self.duration, False
        yield "upstream_service_time", str(self.service_time) if self.service_time >= 0 else "", False
        yield "x_forwarded_for", header("x-forwarded-for", ""), True
        yield "user_agent", header("user-agent", ""), True
        yield "request_id", header("x-request-id", ""), True
        yield "authority", self.authority, True
        yield "upstream_host", self.upstream_host, True
        yield "upstream_cluster", self.cluster, False
        yield "upstream_local_address", self.upstream_local, False
        yield "downstream_local_address", self.local, False
        yield "downstream_remote_address", self.remote, False
        yield "requested_server_name", self.sni, False
        yield "route_name", self.route, False

    def _detail(self) -> str:
        return _DETAILS.get(self.flags, "via_upstream" if self.upstream_host else "direct_response")

    def text(self) -> str:
        """Istio's default line, without its end."""
        (_, stamp, _), *first = list(pairs := list(self._pairs()))[:4]
        words = [f"[{stamp}]", f'"{" ".join(str(value) or "-" for _, value, _ in first)}"']
        for _, value, quoted in pairs[4:]:
            text = str(value) if value != "" else "-"
            words.append(f'"{text}"' if quoted else text)
        return " ".join(words)

    def json(self) -> str:
        """The same as an object; what is not known is null, as Envoy has it."""
        return json.dumps({name: None if value == "" else value for name, value, _ in self._pairs()})
