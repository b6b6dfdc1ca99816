"""Objects as Gateway API's own schemas allow them, thrown together: always read, their statuses always well formed."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.conformance.check import conditions_of, schemas, stamped
from tests.conformance.world import AWAY, SUITE
from tproxy.core.route_explain import lines
from tproxy.gateway.compile import Loaded, compile_table
from tproxy.gateway.gatewayapi.conditions import CONTROLLER
from tproxy.gateway.gatewayapi.status_merge import merged
from tproxy.gateway.objects import Object, parse
from tproxy.gateway.site import Site

pytestmark = pytest.mark.skipif(not SUITE.is_dir(), reason=AWAY)
GROUP = "gateway.networking.k8s.io"
ROUTES = ["HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute"]
KINDS = ["Gateway", "ListenerSet", *ROUTES, "ReferenceGrant", "BackendTLSPolicy"]
HOSTS = ["a.example.com", "*.example.com", "*.com", "b.test"]
# what stands in fields of these names, so that objects meet
WORDS: dict[str, list[Any]] = {
    "name": ["one", "two", "gw"],
    "namespace": ["web", "other"],
    "group": ["", GROUP, "example.com"],
    "kind": ["Gateway", "ListenerSet", "Service", "Secret", "ConfigMap", *ROUTES],
    "sectionName": ["one", "two"],
    "port": [53, 80, 443],
    "protocol": ["HTTP", "HTTPS", "TLS", "TCP", "UDP", "example.com/X"],
    "hostname": HOSTS,
    "gatewayClassName": ["ours", "theirs"],
    "controllerName": [CONTROLLER],
    "value": ["/", "/a", "x", "192.0.2.1", ".*"],
}


@cache
def specs() -> dict[str, Any]:
    """The schema of each kind's spec."""
    loader, found = getattr(yaml, "CSafeLoader", yaml.SafeLoader), {}
    for path in sorted((SUITE / "crds").glob("*.yaml")):
        for crd in yaml.load_all(path.read_text(encoding="utf-8"), Loader=loader):
            if crd and crd["kind"] == "CustomResourceDefinition":
                schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
                found[crd["spec"]["names"]["kind"]] = schema.get("spec", {})
    return found


def values(schema: Any, name: str = "") -> st.SearchStrategy[Any]:
    """Anything that a schema allows, with words of our own where it asks for text."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if name in WORDS and schema.get("type") in ("string", "integer"):
        return st.sampled_from(WORDS[name])
    match schema.get("type"):
        case "object" if "properties" in schema:
            must = set(schema.get("required", ()))
            fields = {key: values(each, key) for key, each in schema["properties"].items()}
            optional = {key: each for key, each in fields.items() if key not in must}
            return st.fixed_dictionaries({key: fields[key] for key in must if key in fields}, optional=optional)
        case "object":
            return st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["x", "y"]), max_size=2)
        case "array":
            least = min(schema.get("minItems", 0), 2)
            return st.lists(values(schema["items"], name.removesuffix("s")), min_size=least, max_size=2)
        case "integer":
            low, high = schema.get("minimum", 0), schema.get("maximum", 2**31 - 1)
            return st.integers(low, high)
        case "boolean":
            return st.booleans()
        case _:
            return st.sampled_from([*HOSTS, "x", "500ms", "0s", "GET", "https://a.example.com", "*", "spiffe://a/b"])


def objects(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    meta = st.fixed_dictionaries(
        {
            "name": st.sampled_from(WORDS["name"]),
            "namespace": st.sampled_from(WORDS["namespace"]),
            "generation": st.integers(1, 5),
            "creationTimestamp": st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]),
        }
    )
    parent: dict[str, Any] = {"name": "gw", "namespace": "web"}
    known = {"parentRefs": [parent]} if kind in ROUTES else {"parentRef": parent} if kind == "ListenerSet" else {}

    def made(about: Any, spec: Any, meets: bool) -> dict[str, Any]:
        """Most of them are for the Gateway that is there: left to chance, hardly any would be."""
        spec = {**spec, **known} if meets else spec
        return {"apiVersion": f"{GROUP}/v1", "kind": kind, "metadata": about, "spec": spec}

    return st.builds(made, meta, values(specs()[kind]), st.sampled_from([True, True, False]))


def around() -> list[dict[str, Any]]:
    """What they may refer to."""
    made: list[dict[str, Any]] = [
        {
            "apiVersion": f"{GROUP}/v1",
            "kind": "GatewayClass",
            "metadata": {"name": "ours"},
            "spec": {"controllerName": CONTROLLER},
        }
    ]
    for namespace in WORDS["namespace"]:
        for name in WORDS["name"]:
            meta = {"name": name, "namespace": namespace}
            ports = [{"name": "one", "port": 80}, {"name": "two", "port": 443}, {"name": "x", "port": 53}]
            spec = {"clusterIP": "10.0.0.1", "ports": ports}
            made.append({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})
            made.append({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {}})
            made.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"ca.crt": "x"}})
    return made


SITE = Site(controllers=frozenset({CONTROLLER}), published=("192.0.2.7",), usable=lambda text: text.startswith("192."))


def compiled(things: list[dict[str, Any]]) -> tuple[Loaded, dict[str, Object]]:
    text = "\n---\n".join(json.dumps(each) for each in (*around(), *things))
    found = list(parse(text, "x.yaml"))
    read = [each for each in found if isinstance(each, Object)]
    loaded = compile_table(read, [each for each in found if not isinstance(each, Object)], {}, SITE)
    return loaded, {str(each): each for each in read}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_whatever_the_schemas_allow_is_read_and_every_status_is_what_they_allow(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5))
    things = [data.draw(objects(kind)) for kind in ["Gateway", *kinds]]
    for thing in things:
        if thing["kind"] == "Gateway":
            thing["spec"]["gatewayClassName"] = "ours"
    things[0]["metadata"].update(name="gw", namespace="web")
    loaded, read = compiled(things)
    for listener in loaded.table.listeners.values():
        assert list(lines(listener)) is not None
    for title, status in loaded.statuses.items():
        kind = title.partition(" ")[0]
        event(kind)
        written = merged(status, {}, "2026-01-01T00:00:00Z")
        assert written is not None and merged(status, written, "2026-01-02T00:00:00Z") is None
        jsonschema.validate(stamped(status), schemas()[kind])
        jsonschema.validate(written, schemas()[kind])
        for condition in conditions_of(status):
            assert condition["observedGeneration"] == read[title].generation
        for part in status.get("parents") or status.get("listeners") or [status]:
            types = [each["type"] for each in part.get("conditions", ())]
            assert len(types) == len(set(types))


@pytest.mark.parametrize("kind", [*ROUTES, "Gateway", "ListenerSet"])
def test_the_fuzz_makes_objects_of_this_kind_that_get_a_status(kind: str) -> None:
    seen = set[str]()

    @settings(deadline=None, max_examples=40, database=None, derandomize=True)
    @given(st.data())
    def look(data: st.DataObject) -> None:
        thing = data.draw(objects(kind))
        gate = {
            "apiVersion": f"{GROUP}/v1",
            "kind": "Gateway",
            "metadata": {"name": "gw", "namespace": "web"},
            "spec": {
                "gatewayClassName": "ours",
                "allowedListeners": {"namespaces": {"from": "All"}},
                "listeners": [
                    {"name": "one", "port": 80, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}
                ],
            },
        }
        loaded, _ = compiled([gate, thing] if kind != "Gateway" else [thing])
        for title, status in loaded.statuses.items():
            if title.startswith(f"{kind} "):
                seen.update(each["status"] for each in conditions_of(status) if each["type"] == "Accepted")

    look()
    assert seen
