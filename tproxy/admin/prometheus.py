"""What we use of ``prometheus_client``, without the servers that it brings along.

Its package imports http.server, urllib.request and wsgiref for servers and push gateways of its own: 1.5 MiB in each
sidecar, for functions that nobody calls. While it is imported these modules are empty ones, unless they are there
already; whoever imports them later gets the real ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_SERVERS = ("http.server", "socketserver", "urllib.request", "wsgiref", "wsgiref.simple_server", "gzip")


class _Empty(ModuleType):
    """Whatever is taken from it is a class, to be inherited from and nothing else."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def _without_servers() -> Iterator[None]:
    empty = {name: _Empty(name) for name in _SERVERS if name not in sys.modules}
    sys.modules.update(empty)
    try:
        yield
    finally:
        for name in empty:
            del sys.modules[name]


with _without_servers():
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
    from prometheus_client.registry import Collector

__all__ = [
    "CONTENT_TYPE_LATEST",
    "Collector",
    "CollectorRegistry",
    "Counter",
    "Gauge",
    "GaugeMetricFamily",
    "Histogram",
    "generate_latest",
]
