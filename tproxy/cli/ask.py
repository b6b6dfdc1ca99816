"""Questions to the running sidecar or gateway of this pod, on its admin port."""

from __future__ import annotations

import json
from typing import Any

from tproxy.core.fields import ConfigError

_LIMIT = 64 * 1024 * 1024  # bytes of an answer


def page(port: int, path: str, field: str, who: str = "sidecar") -> dict[str, Any]:
    """What a page of JSON says. ConfigError about ``field``, which says the port, if nobody answers."""
    from http.client import HTTPConnection, HTTPException  # and ssl: not for who serves

    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer: dict[str, Any] = json.loads(connection.getresponse().read(_LIMIT))
    except ValueError as error:
        raise ConfigError("command line", field, f"something answers there that is no {who}", port) from error
    except (OSError, HTTPException) as error:
        why = f"no {who} answers there: {getattr(error, 'strerror', None) or error}"
        raise ConfigError("command line", field, why, port) from error
    finally:
        connection.close()
    return answer
