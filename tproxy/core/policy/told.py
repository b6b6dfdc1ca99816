"""A set of policies as ``tproxy control`` tells it: Kubernetes objects in JSON, not yet looked at."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from tproxy.core.fields import ConfigError
from tproxy.core.policy.manifest import Manifest, manifests


@dataclass(frozen=True, slots=True)
class Told:
    """All objects of a namespace and of the root namespace."""

    version: str
    namespace: str  # of our SVID
    root: str
    objects: tuple[bytes, ...] = field(repr=False)

    def manifests(self) -> tuple[Manifest, ...]:
        """Their heads. ConfigError for one that cannot be read, whoever it is for."""
        return tuple(manifest for one in self.objects for manifest in manifests(_decoded(one), "control"))


def _decoded(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ConfigError("control", "", "an object of its set is not JSON") from None
