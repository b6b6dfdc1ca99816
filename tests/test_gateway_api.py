"""Gateway API's YAML to a table and statuses, as the specification says; its own manifests where they are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import secret, self_signed
from tproxy.core.http.routes import HttpTable, Request
from tproxy.core.reason import Deny
from tproxy.core.routes import (
    Backend,
    HttpListener,
    Listener,
    Passthrough,
    TcpListener,
    Terminate,
    TlsListener,
    by_sni,
    choose,
)
from tproxy.gateway.compile import Loaded, compile_table
from tproxy.gateway.findings import Findings
from tproxy.gateway.gatewayapi import dialect as gatewayapi
from tproxy.gateway.objects import Object, parse
from tproxy.gateway.registry import Registry
from tproxy.gateway.secrets import Vault, Where
from tproxy.gateway.site import ANYWHERE, Site

NS = "gateway-conformance-infra"
SUITE = Path(os.environ.get("TPROXY_GATEWAY_API") or Path(__file__).parents[2] / "shared" / "gateway-api")
AWAY = "the Gateway API's manifests are not here (TPROXY_GATEWAY_API)"


def thing(kind: str, name: str, version: str = "v1", namespace: str = "web", **spec: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": f"gateway.networking.k8s.io/{version}", "kind": kind, "metadata": meta, "spec": spec}


def gateway(*listeners: dict[str, Any], name: str = "gw", version: str = "v1") -> dict[str, Any]:
    return thing("Gateway", name, version, gatewayClassName="any", listeners=list(listeners))


def listener(name: str, protocol: str, port: int = 443, **more: Any) -> dict[str, Any]:
    tls = {"HTTPS": {"certificateRefs": [{"name": "cert"}]}, "TLS": {"mode": "Passthrough"}}.get(protocol)
    return {"name": name, "protocol": protocol, "port": port, **({"tls": tls} if tls else {}), **more}


def route(
    name: str,
    *names: str,
    kind: str = "TLSRoute",
    to: str = "one",
    version: str = "v1",
    parent: dict[str, Any] | None = None,
    **ref: Any,
) -> dict[str, Any]:
    parents = [{"name": "gw", **(parent or {})}]
    rules = [{"backendRefs": [{"name": to, "port": 443, **ref}]}]
    hosts = {"hostnames": list(names)} if names else {}
    return thing(kind, name, version, parentRefs=parents, rules=rules, **hosts)


def service(name: str, namespace: str = "web") -> list[dict[str, Any]]:
    ports = {"ports": [{"name": "tls", "port": 443}], "clusterIP": "10.0.0.1"}
    return [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": ports}]


SECRET = secret("cert", "web", *self_signed("e.example.com"))
BACKENDS = [*service("one"), *service("two"), *service("far", "other"), SECRET]


def load(*things: dict[str, Any], site: Site = ANYWHERE) -> Loaded:
    text = "\n---\n".join(json.dumps(each, indent=1) for each in (*things, *BACKENDS))
    found = list(parse(text, "conf.yaml"))
    objects = [each for each in found if isinstance(each, Object)]
    return compile_table(objects, [each for each in found if not isinstance(each, Object)], {}, site)


def answer(found: Listener, name: str) -> str:
    """What a name leads to."""
    assert isinstance(found, TlsListener)
    match by_sni(found, name):
        case Passthrough(_, made):
            backend = choose(made, 0.5)
            return backend.name if isinstance(backend, Backend) else backend.reason.value
        case Deny(reason):
            return reason.value
        case Terminate():
            return "terminate"


def reason(loaded: Loaded, title: str, kind: str, listener_name: str = "") -> tuple[str, str]:
    """Status and reason of a condition: of a route's first parent, of a listener, or of the object."""
    status = loaded.statuses[title]
    if "parents" in status:
        status = status["parents"][0]
    if listener_name:
        status = next(each for each in status["listeners"] if each["name"] == listener_name)
    return next((each["status"], each["reason"]) for each in status["conditions"] if each["type"] == kind)


TLS = listener("tls", "TLS")


@pytest.mark.parametrize("version", ["v1", "v1alpha2", "v1alpha3"])
def test_a_tls_route_is_read_in_every_version(version: str) -> None:
    """003-11."""
    loaded = load(gateway(TLS), route("r", "a.example.com", version=version))
    assert answer(loaded.table.listeners["", 443], "a.example.com") == "web/one:443"
    assert reason(loaded, "TLSRoute web/r", "Accepted") == ("True", "Accepted")
    assert loaded.statuses["Gateway web/gw"]["listeners"][0]["attachedRoutes"] == 1


def test_a_name_is_the_intersection_of_the_listener_s_and_the_route_s() -> None:
    loaded = load(gateway(listener("tls", "TLS", hostname="a.example.com")), route("r", "*.example.com"))
    found = loaded.table.listeners["", 443]
    assert [answer(found, name) for name in ("a.example.com", "b.example.com")] == ["web/one:443", "no_route"]


def test_passed_and_ended_names_share_a_port_and_the_more_specific_listener_owns_its_names() -> None:
    """Section 6 of the reference, row 7."""
    loaded = load(
        gateway(
            listener("wide", "TLS", hostname="*.example.com"),
            listener("narrow", "TLS", hostname="*.n.example.com"),
            listener("ended", "HTTPS", hostname="e.example.com"),
        ),
        route("wide", "a.example.com", "x.n.example.com", "e.example.com", parent={"sectionName": "wide"}),
        route("narrow", "y.n.example.com", to="two", parent={"sectionName": "narrow"}),
    )
    found = loaded.table.listeners["", 443]
    names = ("a.example.com", "x.n.example.com", "y.n.example.com", "e.example.com")
    assert [answer(found, name) for name in names] == ["web/one:443", "no_route", "web/two:443", "terminate"]


def test_a_name_without_its_certificate_is_refused_and_not_left_to_a_wider_listener() -> None:
    broken = listener("ended", "HTTPS", hostname="e.example.com", tls={"certificateRefs": [{"name": "gone"}]})
    loaded = load(gateway(TLS, broken), route("r", "*.example.com", parent={"sectionName": "tls"}))
    assert answer(loaded.table.listeners["", 443], "e.example.com") == "no_route"
    assert reason(loaded, "Gateway web/gw", "ResolvedRefs", "ended") == ("False", "InvalidCertificateRef")
    assert reason(loaded, "Gateway web/gw", "Programmed", "ended") == ("False", "Invalid")


def test_of_two_tcp_routes_both_are_accepted_and_the_oldest_gets_all() -> None:
    routes = [route(name, kind="TCPRoute", to=to) for name, to in (("young", "two"), ("old", "one"))]
    for made, created in zip(routes, ("2026-01-01T00:00:00Z", "2025-01-01T00:00:00Z"), strict=True):
        made["metadata"]["creationTimestamp"] = created
    loaded = load(gateway(listener("tcp", "TCP", 5000)), *routes)
    found = loaded.table.listeners["", 5000]
    assert isinstance(found, TcpListener) and found.route is not None
    assert found.route.name == "TCPRoute web/old rules[0]"
    assert all(reason(loaded, f"TCPRoute web/{name}", "Accepted")[0] == "True" for name in ("old", "young"))


@pytest.mark.parametrize(
    ("made", "condition", "why"),
    [
        (route("r", "b.test", parent={"sectionName": "none"}), "Accepted", "NoMatchingParent"),
        (route("r", "b.test", parent={"port": 1}), "Accepted", "NoMatchingParent"),
        (route("r", "b.test", kind="HTTPRoute"), "Accepted", "NotAllowedByListeners"),
        (route("r", "b.test"), "Accepted", "NoMatchingListenerHostname"),
        (route("r", "a.example.com", to="none"), "ResolvedRefs", "BackendNotFound"),
        (route("r", "a.example.com", kind="TLSRoute", to="one", group="x"), "ResolvedRefs", "InvalidKind"),
        (route("r", "a.example.com", to="far", namespace="other"), "ResolvedRefs", "RefNotPermitted"),
    ],
)
def test_what_is_wrong_with_a_route_is_its_status_and_a_warning_and_gets_nobody_there(
    made: dict[str, Any], condition: str, why: str
) -> None:
    loaded = load(gateway(listener("tls", "TLS", hostname="*.example.com")), made)
    assert reason(loaded, f"{made['kind']} web/r", condition) == ("False", why)
    assert any(why in finding.text and "conf.yaml:" in finding.text for finding in loaded.findings)
    assert answer(loaded.table.listeners["", 443], "a.example.com") in ("no_route", "no_backend")


def test_a_grant_permits_what_it_names_and_nothing_else() -> None:
    made = route("r", "a.example.com", to="far", namespace="other")
    source = {"group": "gateway.networking.k8s.io", "kind": "TLSRoute", "namespace": "web"}
    for name, permitted in (("far", True), ("near", False)):
        grant = thing("ReferenceGrant", "g", "v1beta1", "other", to=[{"group": "", "kind": "Service", "name": name}])
        grant["spec"]["from"] = [source]
        loaded = load(gateway(TLS), made, grant)
        assert (reason(loaded, "TLSRoute web/r", "ResolvedRefs")[0] == "True") is permitted


@pytest.mark.parametrize(
    ("listeners", "name", "condition", "why"),
    [
        ([listener("a", "SCTP")], "a", "Accepted", "UnsupportedProtocol"),
        ([listener("a", "TCP"), listener("b", "TLS")], "b", "Conflicted", "ProtocolConflict"),
        ([listener("a", "TLS"), listener("b", "TLS")], "a", "Conflicted", "HostnameConflict"),
        ([listener("a", "TLS", allowedRoutes={"kinds": [{"kind": "X"}]})], "a", "ResolvedRefs", "InvalidRouteKinds"),
        ([listener("a", "TLS", tls={"mode": "Terminate"})], "a", "ResolvedRefs", "InvalidCertificateRef"),
        (
            [listener("a", "HTTPS", tls={"certificateRefs": [{"name": "c", "namespace": "other"}]})],
            "a",
            "ResolvedRefs",
            "RefNotPermitted",
        ),
    ],
)
def test_what_is_wrong_with_a_listener_is_its_status(
    listeners: list[dict[str, Any]], name: str, condition: str, why: str
) -> None:
    loaded = load(gateway(*listeners))
    assert reason(loaded, "Gateway web/gw", condition, name)[1] == why
    assert reason(loaded, "Gateway web/gw", "Programmed", name) == ("False", "Invalid")


@pytest.mark.parametrize(
    ("allowed", "namespace", "attached"),
    [
        ({}, "web", True),
        ({}, "other", False),
        ({"from": "All"}, "other", True),
        ({"from": "Selector", "selector": {"matchLabels": {"team": "a"}}}, "other", True),
        (
            {
                "from": "Selector",
                "selector": {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["a"]}]},
            },
            "other",
            False,
        ),
    ],
)
def test_a_listener_takes_routes_of_the_namespaces_it_allows(
    allowed: dict[str, Any], namespace: str, attached: bool
) -> None:
    made = thing(
        "TLSRoute",
        "r",
        namespace=namespace,
        parentRefs=[{"name": "gw", "namespace": "web"}],
        hostnames=["a.b"],
        rules=[{"backendRefs": []}],
    )
    other = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other", "labels": {"team": "a"}}}
    loaded = load(gateway(listener("tls", "TLS", allowedRoutes={"namespaces": allowed})), made, other)
    assert (reason(loaded, f"TLSRoute {namespace}/r", "Accepted")[0] == "True") is attached


def test_http_routes_meet_requests_within_their_listener_by_host_then_precedence() -> None:
    def http(name: str, host: str, path: str) -> dict[str, Any]:
        made = route(name, host, kind="HTTPRoute", version="v1beta1")
        made["spec"]["rules"][0]["matches"] = [{"path": {"value": path}}]
        return made

    loaded = load(
        gateway(listener("http", "HTTP", 80)),
        http("exact", "a.example.com", "/x"),
        http("wild", "*.example.com", "/"),
        http("long", "a.example.com", "/x/y"),
    )
    found = loaded.table.listeners["", 80]
    assert isinstance(found, HttpListener)
    assert [rule(found.table, path) for path in ("/x/y/z", "/x", "/y")] == ["long", "exact", "wild"]
    assert found.table.find(Request("other.test")) is None


def rule(table: HttpTable, path: str) -> str:
    found = table.find(Request("a.example.com", path))
    assert found is not None
    return found.entry.rule.name.split()[1].removeprefix("web/")


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (route("r"), "spec.hostnames: TLSRoute web/r: is missing"),
        (route("r", "10.0.0.1"), "no address"),
        (gateway({"name": "x", "protocol": "TCP"}), "spec.listeners[0].port: is missing"),
        (gateway(listener("x", "TLS"), listener("x", "TCP", 1)), "stands here twice"),
        (gateway(listener("x", "TLS", hostnam="a.b")), "unknown field; did you mean 'hostname'?"),
        (thing("Gateway", "x", "v2"), "apiVersion: 'v2': expected one of v1"),
    ],
)
def test_what_the_schema_refuses_is_an_error_with_file_and_line(made: dict[str, Any], why: str) -> None:
    loaded = load(gateway(TLS, name="gw2"), made)
    assert any(why in finding.text and "conf.yaml:" in finding.text for finding in loaded.errors), loaded.findings


# The conformance suite's own manifests: what its tests of TLS and TCP expect, by their names


def suite(*names: str) -> tuple[dict[str, TlsListener | TcpListener], Loaded]:
    """The listeners of every Gateway by name, each Gateway at an address of its own."""
    if not SUITE.is_dir():
        pytest.skip(AWAY)
    files = [SUITE / "base" / "manifests.yaml", *(SUITE / "tests" / f"{name}.yaml" for name in names)]
    objects = [each for path in files for each in parse(path.read_text(), path.name) if isinstance(each, Object)]
    objects += list(_endpoints(objects))
    findings = Findings()
    own = {f"{each.namespace}/{each.name}": each.name for each in objects if each.kind == "Gateway"}
    vault = Vault(objects, Where())
    found, _, statuses = gatewayapi.tables(objects, Registry(objects, findings), findings, vault, Site(binds=own))
    served = {bind[0]: each for bind, each in found.listeners.items() if isinstance(each, TlsListener | TcpListener)}
    return served, Loaded(found, tuple(findings.found), statuses)


def _endpoints(objects: list[Object]) -> Iterator[Object]:
    for each in objects:
        if each.kind == "Service":
            ports = [{"name": port.get("name", ""), "port": 1} for port in each.body["spec"]["ports"]]
            slice_ = {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": each.name,
                    "namespace": each.namespace,
                    "labels": {"kubernetes.io/service-name": each.name},
                },
                "ports": ports,
                "endpoints": [{"addresses": ["192.0.2.1"]}],
            }
            yield from (made for made in parse(json.dumps(slice_), "x") if isinstance(made, Object))


def test_tls_route_hostname_intersection() -> None:
    served, _ = suite("tlsroute-hostname-intersection")
    one, two, three, four = (served[name] for name in sorted(served, key=lambda name: name[-1]) if "-x-" in name)
    for found, name, expected in (
        (one, "abc.example.com", "tls-backend"),
        (two, "abc.example.com", "tls-backend"),
        (two, "other.example.com", "tls-backend-2"),
        (three, "abc.example.com", "tls-backend"),
        (three, "other.example.com", "tls-backend-2"),
        (four, "abc.example.com", "tls-backend"),
        (four, "other.example.com", "tls-backend-2"),
    ):
        assert answer(found, name) == f"{NS}/{expected}:443"
    assert {answer(found, "non.matching.org") for found in (one, two, three, four)} == {"no_route"}


@pytest.mark.parametrize(
    "manifest",
    sorted(path.stem for path in (SUITE / "tests").glob("*.yaml"))
    or [pytest.param("", marks=pytest.mark.skip(reason=AWAY))],
)
def test_no_manifest_of_the_suite_is_an_error(manifest: str) -> None:
    _, loaded = suite(manifest)
    assert loaded.statuses and [finding.text for finding in loaded.errors] == []


def test_of_two_gateways_that_want_one_port_and_name_the_younger_says_so_in_its_status() -> None:
    young, old = (gateway(listener("http", "HTTP", 80), name=name) for name in ("young", "old"))
    for made, year in ((young, 2026), (old, 2025)):
        made["metadata"]["creationTimestamp"] = f"{year}-01-01T00:00:00Z"
    loaded = load(young, old)
    assert reason(loaded, "Gateway web/old", "Programmed") == ("True", "Programmed")
    assert reason(loaded, "Gateway web/young", "Programmed") == ("False", "Invalid")
    assert reason(loaded, "Gateway web/young", "Accepted", "http") == ("False", "PortUnavailable")
    assert list(loaded.table.listeners) == [("", 80)]


@pytest.mark.parametrize(
    ("spec", "condition", "why"),
    [
        ({"addresses": [{"value": "192.0.2.1"}]}, "Programmed", "AddressNotUsable"),
        ({"addresses": [{"type": "Hostname", "value": "a.b"}]}, "Accepted", "UnsupportedAddress"),
        (
            {"infrastructure": {"parametersRef": {"group": "x", "kind": "y", "name": "z"}}},
            "Accepted",
            "InvalidParameters",
        ),
    ],
)
def test_a_gateway_that_cannot_be_as_it_wants_binds_nothing_at_all(
    spec: dict[str, Any], condition: str, why: str
) -> None:
    made = gateway(listener("tls", "TLS"), listener("http", "HTTP", 80))
    made["spec"].update(spec)
    loaded = load(made, site=Site(usable=lambda _: False))
    assert reason(loaded, "Gateway web/gw", condition) == ("False", why)
    assert reason(loaded, "Gateway web/gw", "Programmed")[0] == "False"
    assert not loaded.table.listeners


def test_a_route_of_a_listener_set_that_is_not_allowed_says_so() -> None:
    parent = {"parentRef": {"name": "gw"}, "listeners": [{"name": "more", "protocol": "TLS", "port": 8443}]}
    parent["listeners"][0]["tls"] = {"mode": "Passthrough"}
    made = route("r", "a.example.com", parent={"kind": "ListenerSet", "name": "set"})
    loaded = load(gateway(TLS), thing("ListenerSet", "set", **parent), made)
    assert reason(loaded, "ListenerSet web/set", "Accepted") == ("False", "NotAllowed")
    assert reason(loaded, "TLSRoute web/r", "Accepted") == ("False", "NoMatchingParent")
