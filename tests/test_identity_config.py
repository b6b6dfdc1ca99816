"""The section ``identity``: what cannot be sent is refused before anybody is asked."""

from __future__ import annotations

import pytest

from tproxy.core.fields import ConfigError, Fields
from tproxy.core.identity_config import parse_identity
from tproxy.core.settings import IstioCa


def istio(**fields: object) -> IstioCa:
    found = parse_identity(Fields({"istioCa": {"address": "ca:15012", **fields}}, "test.yaml", "identity"))
    assert isinstance(found, IstioCa)
    return found


def test_a_cluster_id_is_kubernetes_unless_it_is_given() -> None:
    assert istio().cluster == "Kubernetes" and istio(clusterId="west-1").cluster == "west-1"


@pytest.mark.parametrize("name", ["", " ", "kälte", "two\nlines", 7])
def test_a_cluster_id_is_what_a_header_can_carry(name: object) -> None:
    with pytest.raises(ConfigError, match=r"identity\.istioCa\.clusterId: .*expected printable ASCII"):
        istio(clusterId=name)
