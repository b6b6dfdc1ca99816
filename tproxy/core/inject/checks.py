"""What the injector declared and the sidecar serves: path -> the check that stands behind it.

>>> parse('{"/app-health/web/livez": {"tcpSocket": {"port": 80}}}', "TPROXY_APP_PROBERS")["/app-health/web/livez"]
TcpCheck(port=80, timeout=1, key='')
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tproxy.core.config import parse_port
from tproxy.core.fields import ConfigError, Fields

_KINDS = ("httpGet", "tcpSocket", "grpc")


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """GET; 200 to 399 is well (kubernetes.io, "Configure Probes")."""

    port: int
    path: str
    tls: bool
    headers: tuple[tuple[str, str], ...]
    timeout: float
    key: str = ""  # what a caller must show


@dataclass(frozen=True, slots=True)
class TcpCheck:
    """A connection that is accepted is well."""

    port: int
    timeout: float
    key: str = ""


@dataclass(frozen=True, slots=True)
class GrpcCheck:
    """grpc.health.v1; SERVING is well."""

    port: int
    service: str
    timeout: float
    key: str = ""


Check: TypeAlias = HttpCheck | TcpCheck | GrpcCheck


def parse(text: str, where: str) -> Mapping[str, Check]:
    """ConfigError names the path and the field."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(where, "", "is not JSON") from error
    return read(data, where)


def read(data: object, where: str) -> Mapping[str, Check]:
    """The same, of what stands in the text."""
    top = Fields(data, where)
    return {str(path): _check(top.inner(path)) for path in top.data}


def _check(fields: Fields) -> Check:
    timeout, key = fields.number("timeoutSeconds", 1, 0.01, 86400), fields.text("key")
    given = [kind for kind in _KINDS if fields.raw(kind) is not None]
    if len(given) != 1:
        raise fields.error("/".join(given) or "httpGet", f"expected exactly one of {', '.join(_KINDS)}")
    action = fields.inner(given[0])
    port = action.parsed("port", parse_port, None)
    fields.finish()
    match given[0]:
        case "tcpSocket":
            return TcpCheck(port, timeout, key)
        case "grpc":
            return GrpcCheck(port, action.text("service"), timeout, key)
    headers = tuple((header.text("name"), header.text("value")) for header in action.each("httpHeaders"))
    tls = action.choice("scheme", "HTTP", ("HTTP", "HTTPS")) == "HTTPS"
    path = action.text("path", "/")
    return HttpCheck(port, path if path.startswith("/") else f"/{path}", tls, headers, timeout, key)
