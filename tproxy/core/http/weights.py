"""One of a rule's backends, each with its share. PURE."""

from __future__ import annotations

from collections.abc import Callable

from tproxy.core.routes import Backend


def by_weight(backends: tuple[Backend, ...], draw: Callable[[], float]) -> Backend | None:
    """None where nobody has a share; ``draw`` gives random numbers in [0, 1)."""
    total = 0
    for backend in backends:
        total += backend.weight
    if not total:
        return None
    at = draw() * total
    for backend in backends:
        at -= backend.weight
        if at < 0:
            return backend
    return None
