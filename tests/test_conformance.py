"""Gateway API's conformance suite, replayed: a test for each of its tests whose manifest is given.

All of it is one run of ``python -m tests.conformance``, with one gateway, before the first of these tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.catalog import TESTS, Case
from tests.conformance.replay import Outcome
from tests.conformance.world import AWAY, SUITE
from tproxy.gateway.gatewayapi.features import SUPPORTED

GOOD = (Outcome.PASSED, Outcome.MESH, Outcome.OWN, Outcome.STATUSES)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    if not SUITE.is_dir():
        pytest.skip(AWAY)
    path = tmp_path_factory.mktemp("conformance") / "results.json"
    argv = [sys.executable, "-m", "tests.conformance", "--results", str(path)]
    subprocess.run(argv, cwd=Path(__file__).parents[1], capture_output=True, timeout=280, check=False)
    found: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", TESTS, ids=lambda case: f"{case.profile}-{case.name}")
def test_conformance(case: Case, results: dict[str, list[str]]) -> None:
    outcome, *why = results[f"{case.profile}-{case.name}"]
    if outcome in (Outcome.NOT_GIVEN, Outcome.NOT_FOR_US):
        pytest.skip(f"{outcome}: {'; '.join(why) or case.manifest}")
    assert outcome in GOOD, why


def test_every_manifest_that_is_given_belongs_to_a_test() -> None:
    if not SUITE.is_dir():
        pytest.skip(AWAY)
    given = {path.stem for path in (SUITE / "tests").glob("*.yaml")}
    assert given <= {case.manifest for case in TESTS}


@pytest.mark.timeout(300)
def test_what_the_class_says_is_supported_passes_and_has_been_looked_at(results: dict[str, list[str]]) -> None:
    """Features whose tests are those of the profile itself (HTTPRoute, Gateway, ...) have no tests of their own."""
    outcomes: dict[str, set[str]] = {}
    for case in TESTS:
        outcomes.setdefault(case.feature, set()).add(results[f"{case.profile}-{case.name}"][0])
    profiles = {"Gateway", "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "ReferenceGrant"}
    parts = {  # features whose tests the catalogue has under another one
        "BackendTLSPolicySANValidation": "BackendTLSPolicy",
        "GatewayFrontendClientCertificateValidationInsecureFallback": "GatewayFrontendClientCertificateValidation",
        "HTTPRouteRequestMultipleMirrors": "HTTPRouteRequestMirror",
        "HTTPRouteRetryConnectionError": "HTTPRouteRetry",
    }
    for feature in set(SUPPORTED) - profiles:
        found = outcomes[parts.get(feature, feature)]
        assert found & set(GOOD) and Outcome.FAILED not in found, feature
