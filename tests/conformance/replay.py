"""One test after the other: apply, look at the statuses, take the steps, send the traffic."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from tests.conformance.catalog import Case
from tests.conformance.certificates import INFRA, Document
from tests.conformance.check import faults
from tests.conformance.live import TRAFFIC, Live
from tests.conformance.own import OWN
from tests.conformance.statuses import STATUSES
from tests.conformance.steps import STEPS
from tests.conformance.world import SUITE, World, manifest


class Outcome(StrEnum):
    """Of one test."""

    PASSED = "passed"
    MESH = "passed (mesh variant)"  # of the manifest, its parent and its backends replaced by the gateway's
    OWN = "passed (manifest of ours)"  # as its own is not given
    STATUSES = "statuses pass"  # where no traffic can be sent
    FAILED = "failed"
    NOT_GIVEN = "manifest not given"
    NOT_FOR_US = "not for us"  # it is for who does not support what we do


# tests of what is said when a feature is missing, and the feature
_WITHOUT = {
    "TLSRouteListenerTerminateNotSupported": "TLSRouteModeTerminate",
    "TLSRouteListenerMixedTerminationNotSupported": "TLSRouteModeMixed",
}
_MESH = "gateway-conformance-mesh"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a test, and why."""

    test: Case
    outcome: Outcome
    why: tuple[str, ...] = ()


def outcome(test: Case, live: Live | None = None) -> Result:
    """Replay one; without a gateway only its statuses."""
    path = f"tests/{test.manifest}.yaml"
    own = not (SUITE / path).is_file()
    if own and test.name not in OWN:
        return Result(test, Outcome.NOT_GIVEN)
    documents = OWN[test.name] if own else manifest(path)
    mesh = all(document["metadata"].get("namespace") == _MESH for document in documents)
    if mesh:
        documents = [_at_the_gateway(document) for document in documents]
    if _WITHOUT.get(test.name) in supported():
        return Result(test, Outcome.NOT_FOR_US, (f"{_WITHOUT[test.name]} is supported",))
    if not {test.name} & {*STATUSES, *STEPS, *TRAFFIC}:
        return Result(test, Outcome.FAILED, ("what it expects is not written down",))
    world = World.with_base()
    world.apply(*documents)
    loaded = world.compiled()
    found = [finding.text for finding in loaded.errors]
    found += faults(test.name, world, loaded.statuses)
    if not found and (step := STEPS.get(test.name)):
        found += step(world)
        found += faults(test.name, world, world.compiled().statuses)
    if not found and live is not None and test.name in TRAFFIC:
        found += live.replay(test.name, world)
    if found:
        return Result(test, Outcome.FAILED, tuple(found))
    if live is None and test.name in TRAFFIC:
        return Result(test, Outcome.STATUSES)
    return Result(test, Outcome.OWN if own else Outcome.MESH if mesh else Outcome.PASSED)


def _at_the_gateway(document: Document) -> Document:
    """The gateway's manifest has the same name and rules, and is not given."""
    made = copy.deepcopy(document)
    made["metadata"]["namespace"] = INFRA
    made["spec"]["parentRefs"] = [{"name": "same-namespace"}]
    for rule in made["spec"]["rules"]:
        for ref in rule.get("backendRefs", ()):
            ref.update(name=ref["name"].replace("echo-", "infra-backend-"), port=8080)
    return made


@cache
def supported() -> set[str]:
    """What our GatewayClass says that we support."""
    statuses = World.with_base().compiled().statuses
    status = next(status for title, status in statuses.items() if title.startswith("GatewayClass "))
    return {each["name"] for each in status.get("supportedFeatures", ())}
