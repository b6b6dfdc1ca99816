"""How verbs say moments and spans; light enough for every verb to import."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def when(seconds: float) -> str:
    """Unix seconds as a date."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def ago(moment: float, now: float) -> str:
    """Unix seconds, as seen from now; 0 is never."""
    return f"{span(now - moment)} ago" if moment else "never"


def counted(count: int, what: str) -> str:
    """``1 port``, ``2 ports``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def span(seconds: float) -> str:
    """In the two largest units."""
    from tproxy.control.explain import in_words

    return in_words(timedelta(seconds=max(0, seconds)))
