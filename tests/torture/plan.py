"""What one connection does, from its number alone: both ends, in two processes, come to the same plan."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from enum import StrEnum

PRIME = 7
PATTERN = hashlib.shake_128(b"torture").digest((1 << 20) + PRIME)  # its length shares no factor with any chunk of 2^n
_TWICE = memoryview(PATTERN * 3)
MESSAGES = 1000  # of one side, or thereabouts, so that a connection lasts seconds
HEADER = 8  # bytes: the connection's number, sent first by the client


class End(StrEnum):
    """How a connection ends: each side after its last byte, or one of them with RST in the middle."""

    CLEAN = "clean"
    CLIENT_RESETS = "client resets"
    SERVER_RESETS = "server resets"


@dataclass(frozen=True, slots=True)
class Side:
    """What one side sends, and how it reads."""

    start: int  # where in the pattern its stream begins
    total: int  # bytes
    largest: int  # bytes of a message
    stall: float  # chance of a pause before a message
    sleepy: float  # chance of a pause before a read
    reset_after: int | None  # bytes sent before RST


@dataclass(frozen=True, slots=True)
class Plan:
    """One connection."""

    number: int
    client: Side
    server: Side
    end: End
    server_first: bool


def plan(number: int) -> Plan:
    """Pure: the same number, the same plan."""
    rng = random.Random(number)
    end = rng.choices(list(End), (8, 1, 1))[0]
    return Plan(
        number,
        _side(rng, end is End.CLIENT_RESETS),
        _side(rng, end is End.SERVER_RESETS),
        end,
        server_first=number % 4 == 0,
    )


def _side(rng: random.Random, resets: bool) -> Side:
    total = rng.choice((0, 1, *(rng.randrange(1 << bits) for bits in (8, 14, 18, 21))))
    largest = 1 << rng.randrange(2, 21)
    total = min(total, largest * MESSAGES)
    return Side(
        start=rng.randrange(len(PATTERN)),
        total=total,
        largest=largest,
        stall=rng.choice((0.0, 0.0, 0.02, 0.2)),
        sleepy=rng.choice((0.0, 0.0, 0.02, 0.2)),
        reset_after=rng.randrange(total + 1) if resets else None,
    )


def piece(start: int, at: int, size: int) -> memoryview:
    """``size`` bytes of a stream, from its byte ``at``; at most 1 MiB."""
    begin = (start + at) % len(PATTERN)
    return _TWICE[begin : begin + size]


def difference(start: int, at: int, seen: bytes) -> str:
    """Nothing if the bytes are the stream's at this place, else what is wrong in words."""
    for done in range(0, len(seen), 1 << 20):
        part = seen[done : done + (1 << 20)]
        wanted = piece(start, at + done, len(part))
        if wanted != part:
            first = next(index for index in range(len(part)) if part[index] != wanted[index])
            return _moved(start, at + done + first, part[first : first + 32])
    return ""


def _moved(start: int, place: int, seen: bytes) -> str:
    found = PATTERN.find(seen) if len(seen) >= 8 else -1
    if found < 0:
        return f"at byte {place}: foreign bytes {seen[:8].hex()}"
    shift = (found - start - place) % len(PATTERN)
    lost = shift <= len(PATTERN) // 2
    return f"at byte {place}: {shift if lost else len(PATTERN) - shift} bytes {'lost' if lost else 'doubled'}"
