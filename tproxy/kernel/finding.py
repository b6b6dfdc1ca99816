"""What a probe of the machine found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe found, and what to do. ``missing`` is a capability or kernel feature: no file mends that."""

    name: str
    level: Level
    found: str
    advice: str = ""
    missing: bool = False
