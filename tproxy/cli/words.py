"""How verbs say things, and what they ask of a running sidecar; light enough for every verb to import."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from tproxy.core.fields import ConfigError


def when(seconds: float) -> str:
    """Unix seconds as a date."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def ago(moment: float, now: float) -> str:
    """Unix seconds, as seen from now; 0 is never."""
    return f"{span(now - moment)} ago" if moment else "never"


def span(seconds: float) -> str:
    """In the two largest units."""
    from tproxy.control.explain import in_words

    return in_words(timedelta(seconds=max(0, seconds)))


def asked(port: int, page: str) -> dict[str, Any]:
    """What this pod's sidecar says on its loopback port. ConfigError if nobody does."""
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", page)
        answer: dict[str, Any] = json.loads(connection.getresponse().read(1 << 22))
    except (OSError, HTTPException, ValueError) as error:
        why = f"no sidecar answers there: {getattr(error, 'strerror', None) or error}"
        raise ConfigError("command line", "--port", why, port) from error
    finally:
        connection.close()
    return answer
