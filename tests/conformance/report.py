"""The table by profile and feature."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.conformance.replay import Outcome, Result

_COLUMNS = {
    Outcome.PASSED: "passed",
    Outcome.MESH: "passed, its mesh variant",
    Outcome.OWN: "passed, a manifest of ours",
    Outcome.STATUSES: "statuses pass",
    Outcome.FAILED: "failed",
    Outcome.NOT_GIVEN: "not given",
    Outcome.NOT_FOR_US: "not for us",
}


def markdown(results: Iterable[Result]) -> str:
    """For ``build/conformance.md``."""
    found = list(results)
    return "\n".join([*_head(found), *_features(found), *_failures(found), ""])


def summary(results: Iterable[Result]) -> list[str]:
    """A line a profile, core and extended apart; a column for what there is."""
    found = list(results)
    there = {result.outcome for result in found} | {Outcome.PASSED, Outcome.FAILED}
    columns = [kind for kind in _COLUMNS if kind in there]
    rows = ["| profile | " + " | ".join(_COLUMNS[kind] for kind in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    groups: dict[str, list[Result]] = {}
    for result in found:
        kind = "extended" if result.test.feature else "core"
        groups.setdefault(f"GATEWAY-{result.test.profile} {kind}", []).append(result)
    for name, group in groups.items():
        counts = (str(sum(result.outcome is kind for result in group)) for kind in columns)
        rows.append(f"| {name} | {' | '.join(counts)} |")
    return rows


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
