"""Where a gateway runs: whose classes are its own, at which addresses it is reached, which it can bind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


def _any(_: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Site:
    """Facts about the place that no YAML states; a reader of files alone needs none of them."""

    controllers: frozenset[str] | None = None  # whose GatewayClasses are ours; None: all that are there
    published: tuple[str, ...] = ()  # where clients reach a Gateway that names no address; also behind a load balancer
    usable: Callable[[str], bool] = _any  # whether an address that a Gateway names can be had
    binds: Mapping[str, str] = field(default_factory=dict)  # Gateways (namespace/name) with a port of their own


ANYWHERE = Site()
