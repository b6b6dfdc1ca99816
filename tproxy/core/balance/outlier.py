"""Endpoints that fail are left out for a while: Istio's ``outlierDetection``, as Envoy does it.

PURE, with the time as an argument. What fails here (no connection, a reset, no answer in time) counts as 503 or 504;
with ``split`` it has a count of its own. An endpoint is left out the longer the oftener it was, and comes back at the
end of an interval. Source: envoyproxy.io, Outlier detection; source/common/upstream/outlier_detection_impl.cc.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from tproxy.core.address import Endpoint

_LONGEST = 300.0  # seconds, or the base where that is more: Envoy's max_ejection_time
_GATEWAY = (502, 503, 504)
# google.rpc.Code to HTTP, those that are failures of who answers (Envoy's grpcToHttpStatus)
_GRPC = {"2": 500, "4": 504, "12": 501, "13": 500, "14": 503, "15": 500}


@dataclass(frozen=True, slots=True)
class Outlier:
    """Failures in a row until an endpoint is left out (0: never), seconds, and percents of a backend's endpoints."""

    errors: int = 5  # 5xx
    gateway: int = 0  # 502, 503, 504
    local: int = 0  # of connecting and waiting, where these are counted apart
    split: bool = False
    interval: float = 10.0
    base: float = 30.0
    most: int = 10  # that may be out at once
    least: int = 0  # that must be in: with fewer all are asked, those that are out, too

    def __str__(self) -> str:
        named = ((self.errors, "5xx"), (self.gateway, "gateway errors"), (self.local, "failures to connect or in time"))
        return " or ".join(f"{count} {what} in a row" for count, what in named if count) or "nothing"


@dataclass(frozen=True, slots=True)
class Ejected:
    """An endpoint is left out from now on."""

    endpoint: Endpoint
    why: str  # consecutive_5xx and so on, as in Envoy's counters
    row: int
    seconds: float


@dataclass(slots=True)
class _Host:
    errors: int = 0
    gateway: int = 0
    local: int = 0
    times: int = 0  # left out, less the intervals that it was well since
    until: float = 0.0

    def fresh(self) -> None:
        """Nothing is held against it any more, but how often it was out."""
        self.errors = self.gateway = self.local = 0


@dataclass(slots=True)
class Health:
    """Of one backend's endpoints. ``among`` are those that it has now."""

    settings: Outlier
    out: set[Endpoint] = field(default_factory=set)
    refused: int = 0  # ejections that were one too many
    _hosts: dict[Endpoint, _Host] = field(default_factory=dict)

    def left(self, among: Sequence[Endpoint]) -> Sequence[Endpoint]:
        """Whom to ask; nobody where all are out; the same sequence where nobody is."""
        if not self.out:
            return among
        left = [endpoint for endpoint in among if endpoint not in self.out]
        return among if len(left) == len(among) or len(left) * 100 < self.settings.least * len(among) else left

    def answered(self, endpoint: Endpoint, status: int, among: Collection[Endpoint], now: float) -> Ejected | None:
        """It gave an answer."""
        host = self._hosts.get(endpoint)
        if host is None:
            if status < 500:
                return None
            host = self._hosts[endpoint] = _Host()
        host.local = 0
        return self._counted(host, endpoint, status, among, now)

    def failed(self, endpoint: Endpoint, late: bool, among: Collection[Endpoint], now: float) -> Ejected | None:
        """It gave none: there was no connection, or that broke, or it took too long."""
        host = self._hosts.setdefault(endpoint, _Host())
        if not self.settings.split:
            return self._counted(host, endpoint, 504 if late else 503, among, now)
        host.local += 1
        if host.local != self.settings.local:
            return None
        return self._eject(host, endpoint, "consecutive_local_origin_failure", host.local, among, now)

    def _counted(
        self, host: _Host, endpoint: Endpoint, status: int, among: Collection[Endpoint], now: float
    ) -> Ejected | None:
        host.gateway = host.gateway + 1 if status in _GATEWAY else 0
        host.errors = host.errors + 1 if status >= 500 else 0
        if status in _GATEWAY and host.gateway == self.settings.gateway:
            return self._eject(host, endpoint, "consecutive_gateway_failure", host.gateway, among, now)
        if status >= 500 and host.errors == self.settings.errors:
            return self._eject(host, endpoint, "consecutive_5xx", host.errors, among, now)
        return None

    def _eject(
        self, host: _Host, endpoint: Endpoint, why: str, row: int, among: Collection[Endpoint], now: float
    ) -> Ejected | None:
        host.fresh()
        if endpoint in self.out or endpoint not in among:
            return None
        out = sum(other in self.out for other in among) + 1
        if out * 100 > self.settings.most * len(among):
            self.refused += 1
            return None
        base, longest = self.settings.base, max(_LONGEST, self.settings.base)
        if host.times * base < longest + base:
            host.times += 1
        seconds = min(base * host.times, longest)
        host.until = now + seconds
        self.out.add(endpoint)
        return Ejected(endpoint, why, row, seconds)

    def sweep(self, now: float) -> list[Endpoint]:
        """Once an interval: who comes back. Who stayed well is held less against."""
        back = [endpoint for endpoint in self.out if self._hosts[endpoint].until <= now]
        for endpoint, host in list(self._hosts.items()):
            if endpoint in back:
                host.fresh()
            elif endpoint not in self.out:
                host.times = max(0, host.times - 1)
                if not (host.times or host.errors or host.gateway or host.local):
                    del self._hosts[endpoint]
        self.out.difference_update(back)
        return back

    def keep(self, among: Collection[Endpoint]) -> None:
        """All others are gone."""
        self.out.intersection_update(among)
        self._hosts = {endpoint: host for endpoint, host in self._hosts.items() if endpoint in among}

    @property
    def watched(self) -> bool:
        """Whether a sweep could change anything."""
        return bool(self.out) or any(host.times for host in self._hosts.values())


def status_of(status: int, headers: Sequence[tuple[str, str]], end: bool) -> int:
    """An answer's status; that of gRPC where its head is all of it."""
    if not end or status != 200:
        return status
    return next((_GRPC.get(value, 200) for name, value in headers if name == "grpc-status"), status)


def none_can(settings: Outlier, endpoints: int) -> int:
    """The percentage of which one endpoint is the least, where the settings let none of so many be left out; or 0."""
    if not endpoints or settings.most * endpoints >= 100:
        return 0
    return -(-100 // endpoints)
