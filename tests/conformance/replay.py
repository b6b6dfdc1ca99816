"""One test after the other: apply, look at the statuses, take the steps, send the traffic."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from tests.conformance.catalog import TESTS, Case
from tests.conformance.check import faults
from tests.conformance.statuses import STATUSES
from tests.conformance.steps import STEPS
from tests.conformance.world import SUITE, World, manifest


class Outcome(StrEnum):
    """Of one test."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_GIVEN = "manifest not given"
    NOT_FOR_US = "not for us"  # it is for who does not support what we do
    MESH_ONLY = "only its mesh variant is given"


# tests of what is said when a feature is missing, and the feature
_WITHOUT = {
    "TLSRouteListenerTerminateNotSupported": "TLSRouteModeTerminate",
    "TLSRouteListenerMixedTerminationNotSupported": "TLSRouteModeMixed",
}


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a test, and why."""

    test: Case
    outcome: Outcome
    why: tuple[str, ...] = ()


def outcome(test: Case) -> Result:
    """Replay one."""
    path = f"tests/{test.manifest}.yaml"
    if not (SUITE / path).is_file():
        return Result(test, Outcome.NOT_GIVEN)
    documents = manifest(path)
    if all(document["metadata"].get("namespace") == "gateway-conformance-mesh" for document in documents):
        return Result(test, Outcome.MESH_ONLY)
    if _WITHOUT.get(test.name) in supported():
        return Result(test, Outcome.NOT_FOR_US, (f"{_WITHOUT[test.name]} is supported",))
    if test.name not in STATUSES and test.name not in STEPS:
        return Result(test, Outcome.FAILED, ("what it expects is not written down",))
    world = World.with_base()
    world.apply(*documents)
    loaded = world.compiled()
    found = [finding.text for finding in loaded.errors]
    found += faults(test.name, world, loaded.statuses)
    if not found and (step := STEPS.get(test.name)):
        found += step(world)
        found += faults(test.name, world, world.compiled().statuses)
    return Result(test, Outcome.FAILED if found else Outcome.PASSED, tuple(found))


@cache
def supported() -> set[str]:
    """What our GatewayClass says that we support."""
    statuses = World.with_base().compiled().statuses
    status = next(status for title, status in statuses.items() if title.startswith("GatewayClass "))
    return {each["name"] for each in status.get("supportedFeatures", ())}


def all_tests() -> list[Result]:
    """In the order of the catalogue."""
    return [outcome(test) for test in TESTS]
