"""From the configuration to a source; what one source needs is not paid for by another."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tproxy.core.settings import Federated, Identity, IstioCa, Trust, WorkloadApi
from tproxy.identity.open import open_source


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        (IstioCa("istiod.istio-system.svc:15012", "token", "roots"), "Istio CA istiod.istio-system.svc:15012"),
        (WorkloadApi("unix:///run/agent.sock"), "Workload API unix:///run/agent.sock"),
    ],
)
def test_each_kind_of_identity_has_its_source(identity: Identity, name: str) -> None:
    assert open_source(identity, "test.local", Trust(federated=(Federated("other.local"),))).name == name


def test_the_door_to_the_sources_imports_none_of_them() -> None:
    program = "import sys, tproxy.identity.open; sys.exit('grpc' in sys.modules or 'google.protobuf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
