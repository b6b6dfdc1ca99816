"""How verbs say things; light enough for every verb to import."""

from __future__ import annotations

from datetime import UTC, datetime


def when(seconds: float) -> str:
    """Unix seconds as a date."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
