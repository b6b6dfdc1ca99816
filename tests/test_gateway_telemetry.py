"""Istio's Telemetry objects: whether requests are logged."""

from __future__ import annotations

import pytest

from tests.test_gateway_istio import load, said
from tproxy.core.access_log import Wanted

DOCUMENTS = """
apiVersion: telemetry.istio.io/v1alpha1
kind: Telemetry
metadata: {name: ingress-gateway, namespace: istio-system}
spec:
  selector: {matchLabels: {app: istio-ingressgateway}}
  accessLogging: [{providers: [{name: envoy}], disabled: false}]
"""
MESH = """
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: mesh-default, namespace: istio-system}
spec:
  accessLogging: [{providers: [{name: envoy}]}]
"""
INGRESS = {"app": "istio-ingressgateway"}


@pytest.mark.parametrize(
    ("texts", "labels", "made"),
    [
        ([], INGRESS, None),
        ([DOCUMENTS], INGRESS, Wanted(True)),
        ([DOCUMENTS], {"app": "other"}, None),
        ([DOCUMENTS], {}, Wanted(True)),
        ([DOCUMENTS.replace("false", "true"), MESH], INGRESS, Wanted(False)),
        ([DOCUMENTS.replace("false", "true"), MESH], {"app": "other"}, Wanted(True)),
        ([MESH.replace("istio-system", "shop")], INGRESS, None),
        ([MESH.replace("providers: [{name: envoy}]", "match: {mode: SERVER}")], INGRESS, None),
        (
            [MESH.replace("}]}]", '}], filter: {expression: "response.code >= 400"}}]')],
            INGRESS,
            Wanted(True, ">=", 400),
        ),
    ],
)
def test_access_logs_are_on_as_the_nearest_telemetry_says(
    texts: list[str], labels: dict[str, str], made: Wanted | None
) -> None:
    """001-11: the document's object, and those around it."""
    loaded = load(*texts or [""], labels=labels)
    assert not loaded.findings, said(loaded)
    assert loaded.table.access_log == made


def test_a_filter_of_statuses_is_applied() -> None:
    wanted = Wanted(True, ">=", 400)
    assert [wanted.wants(status) for status in (200, 399, 400, 503)] == [False, False, True, True]
    assert Wanted(True).wants(200) and not Wanted(False).wants(500)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("name: envoy", "name: otel", "'otel' is a provider that this gateway does not have"),
        ("}]}]", "}], filter: {expression: x}}]", "is not supported (response.code >= 400 is); all is logged"),
        ("accessLogging:", "acessLogging:", "unknown field; did you mean 'accessLogging'?"),
        ("v1\n", "v2\n", "expected one of v1, v1alpha1"),
        ("spec:\n", "spec:\n  tracing: [{}]\n", "tracing: Telemetry istio-system/mesh-default: is not supported"),
    ],
)
def test_what_is_not_read_is_said(old: str, new: str, why: str) -> None:
    assert why in said(load(MESH.replace(old, new, 1)))
