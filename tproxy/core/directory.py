"""Who stands at which address, and how two states of that knowledge differ. Whoever sends it makes Parts of Deltas;
whoever receives them has a Mirror.

>>> from tproxy.core.address import parse_address
>>> web = Entry(Kind.POD, "shop/web-0", ("ns/shop/sa/web",))
>>> difference({}, {parse_address("10.0.0.7"): web}).set[parse_address("10.0.0.7")].name
'shop/web-0'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TypeAlias

from tproxy.core.address import Address
from tproxy.core.identity import is_segment


class Kind(StrEnum):
    """What an address belongs to."""

    POD = "pod"
    SERVICE = "service"  # a virtual one, which kube-proxy translates behind our capture


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of an address."""

    kind: Kind
    name: str  # namespace/name
    ids: tuple[str, ...] = ()  # SPIFFE paths in our trust domain, one of which answers; none: it speaks no mTLS
    mixed: bool = False  # a service some of whose endpoints do not speak TLS

    @property
    def rule(self) -> str:
        """As it stands in records."""
        kind = "service " if self.kind is Kind.SERVICE else ""
        return f"directory: {kind}{self.name}{' (mixed: not every endpoint is in the mesh)' if self.mixed else ''}"


class Absent(Enum):
    """Why there is no Entry: the directory does not list the address, or has not told us anything yet."""

    UNLISTED = "unlisted"
    UNKNOWN = "unknown"


Found: TypeAlias = Entry | Absent
Entries: TypeAlias = Mapping[Address, Entry]


@dataclass(frozen=True, slots=True)
class Delta:
    """From one state to another."""

    set: Entries = field(default_factory=dict)
    removed: frozenset[Address] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.set or self.removed)


def difference(old: Entries, new: Entries) -> Delta:
    """What must be said to who knows ``old``."""
    changed = {address: entry for address, entry in new.items() if old.get(address) != entry}
    return Delta(changed, frozenset(address for address in old if address not in new))


@dataclass(frozen=True, slots=True)
class Version:
    """A state of one server: numbers of one epoch follow each other; epochs have nothing in common."""

    epoch: str
    number: int

    def __str__(self) -> str:
        return f"{self.epoch}/{self.number}"


@dataclass(frozen=True, slots=True)
class Part:
    """A message: a snapshot or the step from the version before, whole or (``more``) a piece of it."""

    version: Version
    snapshot: bool
    delta: Delta
    more: bool = False


class Mirror:
    """A state that follows a server's, part by part; what came in pieces counts when the last one is there."""

    def __init__(self) -> None:
        self.entries: dict[Address, Entry] = {}
        self.version: Version | None = None
        self._pending: list[Part] = []

    def interrupted(self) -> None:
        """The stream ended: pieces without an end are worth nothing."""
        self._pending.clear()

    def take(self, part: Part) -> frozenset[Address] | None:
        """Addresses whose entry is another one now; None if the end is still to come.

        ValueError: what arrives does not follow what is known, which is then best asked for as a whole.
        """
        first = self._pending[0] if self._pending else part
        if part.version != first.version or (part is not first and part.snapshot):
            raise ValueError(f"in the middle of version {first.version} comes a part of {part.version}")
        if not first.snapshot and not self._follows(first.version):
            raise ValueError(f"version {first.version} does not follow {self.version}")
        self._pending.append(part)
        if part.more:
            return None
        deltas = [one.delta for one in self._pending]
        self._pending, self.version = [], part.version
        return self._swap(deltas) if first.snapshot else self._step(deltas)

    def _follows(self, version: Version) -> bool:
        return self.version is not None and version == Version(self.version.epoch, self.version.number + 1)

    def _swap(self, deltas: Iterable[Delta]) -> frozenset[Address]:
        old, self.entries = self.entries, {}
        self._step(deltas)
        delta = difference(old, self.entries)
        return frozenset(delta.set) | delta.removed

    def _step(self, deltas: Iterable[Delta]) -> frozenset[Address]:
        """In place: readers look up one address and never wait in between, so they see one version or the other."""
        touched = set[Address]()
        for delta in deltas:
            for address in delta.removed:
                self.entries.pop(address, None)
            self.entries.update(delta.set)
            touched |= delta.removed | delta.set.keys()
        return frozenset(touched)


def is_path(text: str) -> bool:
    """Whether this may be the path of a workload's SPIFFE id; a pattern is none."""
    return len(text) <= 1024 and all(map(is_segment, text.split("/")))
