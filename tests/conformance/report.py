"""The table by profile and feature."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.conformance.replay import Outcome, Result

_SHORT = (
    Outcome.PASSED,
    Outcome.MESH,
    Outcome.OWN,
    Outcome.STATUSES,
    Outcome.FAILED,
    Outcome.NOT_GIVEN,
    Outcome.NOT_FOR_US,
)


def markdown(results: Iterable[Result]) -> str:
    """For ``build/conformance.md``."""
    found = list(results)
    return "\n".join([*_head(found), *_features(found), *_failures(found), ""])


def summary(results: Iterable[Result]) -> list[str]:
    """A line a profile, core and extended apart."""
    rows = ["| profile | " + " | ".join(_SHORT) + " |", "|---" * (len(_SHORT) + 1) + "|"]
    groups: dict[str, list[Result]] = {}
    for result in results:
        kind = "extended" if result.test.feature else "core"
        groups.setdefault(f"GATEWAY-{result.test.profile} {kind}", []).append(result)
    return rows + [f"| {name} | {_counts(group)} |" for name, group in groups.items()]


def _counts(group: list[Result]) -> str:
    return " | ".join(str(sum(result.outcome is kind for result in group)) for kind in _SHORT)


def _head(results: list[Result]) -> Iterator[str]:
    yield "# Gateway API v1.6.1: the conformance suite, replayed"
    yield ""
    yield "By `python -m tests.conformance`: the suite's own manifests, its expectations written anew; no cluster."
    yield ""
    yield from summary(results)
    yield ""


def _features(results: list[Result]) -> Iterator[str]:
    yield "| profile | feature | test | result |"
    yield "|---|---|---|---|"
    for result in results:
        test = result.test
        yield f"| {test.profile} | {test.feature or 'core'} | {test.name} | {result.outcome.value} |"
    yield ""


def _failures(results: list[Result]) -> Iterator[str]:
    for result in results:
        if result.outcome in (Outcome.FAILED, Outcome.NOT_FOR_US):
            yield f"## {result.test.name}: {result.outcome.value}"
            yield ""
            yield from (f"- {why}" for why in result.why)
            yield ""
