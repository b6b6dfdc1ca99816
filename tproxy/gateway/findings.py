"""What is said about a configuration besides the table: errors (the object is not used) and warnings (it is)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tproxy.core.fields import ConfigError, Fields, nearest
from tproxy.gateway.objects import Object


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence with file, line and field."""

    level: str  # error or warning
    text: str


@dataclass(slots=True)
class Hints:
    """Which name was meant, perhaps: for so many that are missing, since hundreds of names take milliseconds each."""

    left: int = 20

    def near(self, word: str, names: Iterable[str], cutoff: float) -> str:
        """As ``nearest`` says it, while there are any left."""
        self.left -= 1
        return nearest(word, names, cutoff) if self.left >= 0 else ""


@dataclass(slots=True)
class Findings:
    """Collected while a configuration is compiled."""

    found: list[Finding] = field(default_factory=list)
    hints: Hints = field(default_factory=Hints)
    _seen: set[Finding] = field(default_factory=set)

    def error(self, error: ConfigError) -> None:
        """An object that cannot be used."""
        self._add(Finding("error", str(error)))

    def warn(self, thing: Object, path: str, why: str) -> None:
        """Something that is used, but hardly as its author thinks."""
        self._add(Finding("warning", str(thing.error(path, why))))

    def _add(self, finding: Finding) -> None:
        if finding not in self._seen:
            self._seen.add(finding)
            self.found.append(finding)

    @property
    def errors(self) -> list[Finding]:
        """Those that keep a configuration from being loaded."""
        return [finding for finding in self.found if finding.level == "error"]


def then(why: str, what: str) -> str:
    """A reason, which may end in a question, and what comes of it."""
    return f"{why}{' ' if why.endswith('?') else '; '}{what}"


def refuse(fields: Fields, names: Iterable[str]) -> None:
    """ConfigError for a field that exists elsewhere and not here: to ignore it would change what the rule means."""
    for name in names:
        if fields.raw(name) not in (None, [], {}):
            raise fields.error(name, "is not supported by this gateway")


def spelt(fields: Fields, *names: str) -> None:
    """ConfigError for a field that is nearly one of these; others may be of a later version of the definition."""
    for key in fields.data:
        if key not in names and nearest(str(key), names, 0.75):
            raise fields.error(key, "unknown field", valid=names)


def ignore(thing: Object, fields: Fields, names: Iterable[str], findings: Findings) -> None:
    """A warning for fields without which a rule still means the same connections."""
    for name in names:
        if fields.raw(name) not in (None, [], {}):
            findings.warn(thing, fields.name(name), "is not supported by this gateway; it is ignored")


def by_kind(
    things: Iterable[Object],
    group: str,
    read: Sequence[str],
    versions: Sequence[str],
    findings: Findings,
    yet: str = "",
) -> dict[str, list[Object]]:
    """One group's objects, the oldest first, by each kind that is read; others are warned of, odd versions errors."""
    kinds: dict[str, list[Object]] = {kind: [] for kind in read}
    for thing in things:
        if thing.group != group:
            continue
        if thing.kind not in kinds:
            why = f"is not read by this gateway{yet}; {', '.join(read)} are"
            findings.warn(thing, "kind", f"{why}{nearest(thing.kind, read, 0.7)}")
        elif thing.version not in versions:
            findings.error(thing.error("apiVersion", f"expected one of {', '.join(versions)}", thing.version))
        else:
            kinds[thing.kind].append(thing)
    return {kind: sorted(found, key=lambda thing: thing.age) for kind, found in kinds.items()}
