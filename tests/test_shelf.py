"""The sets of policies that control makes: what is in them, and when two are the same."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.istio import auth
from tests.pods import JSON
from tproxy.control.shelf import Shelf
from tproxy.core.workloads import name_of
from tproxy.wire.policies_pb2 import PolicySet

KIND = "AuthorizationPolicy"
SPACES = ("istio-system", "shop", "data")
SPECS = ("{}", "rules: [{}]", "action: DENY\nrules: [{}]", "rules: [{to: [{operation: {hosts: [a]}}]}]")
NAMES = st.builds("{}/{}".format, st.sampled_from(SPACES), st.sampled_from("ab"))
CHANGES = st.lists(st.tuples(NAMES, st.none() | st.sampled_from(SPECS)), max_size=12)


def shelf(objects: dict[str, str]) -> Shelf:
    made = Shelf("istio-system", "cluster.local")
    for name, spec in objects.items():
        made.put(KIND, name, auth(spec, name))
    return made


def told(made: Shelf, namespace: str) -> dict[str, Any]:
    version, messages = made.told(namespace)
    parts = [PolicySet.FromString(one) for one in messages]
    assert {(one.version, one.namespace, one.root) for one in parts} == {(version, namespace, "istio-system")}
    assert [one.more for one in parts] == [True] * (len(parts) - 1) + [False]
    return {name_of(one): one["spec"] for part in parts for one in map(json.loads, part.objects)}


@given(CHANGES, st.sampled_from(SPACES))
def test_a_set_depends_on_what_there_is_alone_and_not_on_how_it_came_about(
    changes: list[tuple[str, str | None]], namespace: str
) -> None:
    made, there = Shelf("istio-system", "cluster.local"), dict[str, str]()
    for name, spec in changes:
        made.told(namespace)
        made.put(KIND, name, auth(spec, name) if spec else None)
        if spec:
            there[name] = spec
        else:
            there.pop(name, None)
    assert made.told(namespace) == shelf(dict(sorted(there.items(), reverse=True))).told(namespace)
    expected = {name for name in there if name.partition("/")[0] in (namespace, "istio-system")}
    assert set(told(made, namespace)) == expected
    assert len(made) == len(there)
    assert {name for _, name in made.invalid} == {name for name, spec in there.items() if spec == SPECS[3]}


@given(st.dictionaries(NAMES, st.sampled_from(SPECS), max_size=4), NAMES, st.sampled_from(SPECS))
def test_another_object_in_the_set_is_another_version_and_one_elsewhere_is_not(
    objects: dict[str, str], name: str, spec: str
) -> None:
    made = shelf(objects)
    before = {namespace: made.told(namespace)[0] for namespace in SPACES}
    made.put(KIND, name, auth(spec, name))
    changed = {namespace for namespace in SPACES if made.told(namespace)[0] != before[namespace]}
    space = name.partition("/")[0]
    reached = set(SPACES) if space == "istio-system" else {space}
    assert changed == (set() if objects.get(name) == spec else reached)
    assert len(set(before.values())) == len(SPACES)


@given(JSON)
def test_any_document_under_a_name_is_told_and_counted_and_nothing_breaks(document: Any) -> None:
    made = Shelf("istio-system", "cluster.local")
    whole = document if isinstance(document, dict) else {"spec": document}
    made.put(KIND, "shop/odd", whole)
    assert len(told(made, "shop")) == 1 and len(made) == 1
