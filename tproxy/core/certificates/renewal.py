"""When credentials are renewed, when the first failure is tried again, and when it is time to shout. Seconds, unix.

>>> renew_at(now=1000.0, not_after=1100, chance=0.0)
1050.0
>>> [round(pause(failures, 1.0), 1) for failures in (1, 2, 3, 9)]
[0.5, 1.0, 2.0, 60.0]
>>> pause(9, 1.0, UNREACHED)
10.0
"""

from __future__ import annotations

JITTER = 0.1  # of the lifetime: sidecars that started together do not come back together
BACKDATED = 60  # seconds
FIRST, LONGEST = 0.5, 60.0  # seconds between tries
UNREACHED = 10.0  # while nobody answers: such a try costs one SYN, and who waits for us waits no longer when they do


def renew_at(now: float, not_after: int, chance: float) -> float:
    """Half of the life that is left to a certificate just received, plus jitter; ``chance`` is in [0, 1)."""
    return now + (not_after - now) * (0.5 + JITTER * chance)


def pause(failures: int, chance: float, longest: float = LONGEST) -> float:
    """How long to wait after so many failures in a row: doubling, and between half and the whole of it by chance."""
    return min(longest, FIRST * 2.0 ** min(failures - 1, 16)) * (0.5 + 0.5 * chance)


def is_short(now: float, not_before: int, not_after: int) -> bool:
    """Whether less than a third of the life is left: renewal should have happened long ago.

    Certificates begin a minute or so before they are issued, which counts in very short lives only.
    """
    return not_after - now < (not_after - not_before - BACKDATED) / 3
