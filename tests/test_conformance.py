"""Gateway API's conformance suite, replayed: a test for each of its tests whose manifest is given."""

from __future__ import annotations

import pytest

from tests.conformance.catalog import TESTS, Case
from tests.conformance.replay import Outcome, outcome
from tests.conformance.world import AWAY, SUITE


@pytest.mark.parametrize("test", TESTS, ids=lambda test: f"{test.profile}-{test.name}")
def test_conformance(test: Case) -> None:
    if not SUITE.is_dir():
        pytest.skip(AWAY)
    result = outcome(test)
    if result.outcome is not Outcome.PASSED and result.outcome is not Outcome.FAILED:
        pytest.skip(f"{result.outcome.value} {'; '.join(result.why)}")
    assert not result.why


def test_every_manifest_that_is_given_belongs_to_a_test() -> None:
    if not SUITE.is_dir():
        pytest.skip(AWAY)
    given = {path.stem for path in (SUITE / "tests").glob("*.yaml")}
    assert given <= {test.manifest for test in TESTS}
