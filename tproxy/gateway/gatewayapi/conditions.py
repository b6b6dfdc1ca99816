"""Statuses as the Gateway API wants them: conditions with a reason, for an object, a listener, a route's parent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CONTROLLER = "tproxy.dev/gateway-controller"
_ABNORMAL = ("Conflicted", "PartiallyInvalid", "InsecureFrontendValidationMode")
_LONGEST = 32_768  # characters of a message (metav1.Condition)


@dataclass(slots=True)
class Conditions:
    """By type, in the order in which they were first set. ``lastTransitionTime`` is set by who writes them back."""

    generation: int
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def set(self, kind: str, ok: bool, reason: str, message: str = "") -> None:
        """Say it; a later word replaces an earlier one."""
        self.found[kind] = {
            "type": kind,
            "status": "True" if ok else "False",
            "reason": reason,
            "message": message[:_LONGEST],
            "observedGeneration": self.generation,
        }

    def default(self, kind: str, ok: bool, reason: str) -> None:
        """Say it unless something has been said."""
        if kind not in self.found:
            self.set(kind, ok, reason)

    def holds(self, kind: str) -> bool:
        """Whether it is True."""
        return self.found.get(kind, {}).get("status") == "True"

    def bad(self) -> list[str]:
        """Sentences about what should be otherwise."""
        return [
            f"{each['type']} is {each['status']}: {each['reason']}{': ' if each['message'] else ''}{each['message']}"
            for each in self.found.values()
            if each["type"] != "OverlappingTLSConfig"  # so common that nobody needs to be told
            and (each["status"] == "True") is (each["type"] in _ABNORMAL)
        ]

    def plain(self) -> list[dict[str, Any]]:
        """As it stands in a status."""
        return list(self.found.values())
