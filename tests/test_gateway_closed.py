"""In a cluster an object that cannot be read is left out: what it would have closed or encrypted stays closed."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from tests.gateway import self_signed
from tproxy.core.http.forwarded import Client
from tproxy.core.http.head import Head
from tproxy.core.http.local import Answer
from tproxy.core.http.plan import plan
from tproxy.core.http.routes import HttpTable
from tproxy.core.routes import Backend, HttpListener
from tproxy.gateway.compile import Loaded, compile_table
from tproxy.gateway.envoy.dump import config_dump
from tproxy.gateway.gatewayapi.conditions import CONTROLLER
from tproxy.gateway.objects import from_document
from tproxy.gateway.site import Site

ISTIO, API = "networking.istio.io/v1", "gateway.networking.k8s.io/v1"


def thing(version: str, kind: str, name: str, spec: Any, namespace: str = "shop", **more: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": version, "kind": kind, "metadata": meta, "spec": spec, **more}


SERVICE = thing("v1", "Service", "web", {"ports": [{"name": "http", "port": 80}], "clusterIP": "10.0.0.1"})
SERVERS = [{"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}]
GATEWAY = thing(ISTIO, "Gateway", "gw", {"servers": SERVERS})
TO_WEB = [{"route": [{"destination": {"host": "web", "port": {"number": 80}}}]}]
VIRTUAL = thing(ISTIO, "VirtualService", "web", {"hosts": ["*"], "gateways": ["gw"], "http": TO_WEB})
CLASS = {**thing(API, "GatewayClass", "tproxy", {"controllerName": CONTROLLER}, "")}
LISTENERS = [{"name": "http", "port": 80, "protocol": "HTTP"}]
API_GATEWAY = thing(API, "Gateway", "gw", {"gatewayClassName": "tproxy", "listeners": LISTENERS})
ROUTE = thing(
    API, "HTTPRoute", "web", {"parentRefs": [{"name": "gw"}], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]}
)
SITE = Site(controllers=frozenset({CONTROLLER}))


def load(*documents: dict[str, Any], site: Site = SITE) -> Loaded:
    return compile_table([from_document(one, f"{one['kind']}.yaml") for one in documents], (), {}, site)


def backend(loaded: Loaded) -> Backend:
    listener = loaded.table.listeners["", 80]
    assert isinstance(listener, HttpListener) and isinstance(listener.table, HttpTable)
    (entry,) = next(entries for _, entries in listener.table.hosts.items() if entries)
    return entry.rule.backends[0]


def rule(name: str, **spec: Any) -> dict[str, Any]:
    return thing(ISTIO, "DestinationRule", name, {"host": "web", **spec})


UNREADABLE = {"trafficPolicy": {"tls": {"mode": "SIMPLE"}, "tunnel": {"protocol": "CONNECT"}}}


def test_a_destination_rule_of_tls_that_cannot_be_read_turns_nothing_to_plaintext() -> None:
    assert backend(load(SERVICE, GATEWAY, VIRTUAL)).fault == ""
    loaded = load(SERVICE, GATEWAY, VIRTUAL, rule("web", **UNREADABLE))
    assert loaded.errors and backend(loaded).fault == "DestinationRule shop/web asks for TLS and cannot be read"


def test_another_that_can_be_read_counts_in_its_place() -> None:
    good = rule("zz", trafficPolicy={"tls": {"mode": "SIMPLE", "sni": "web.test"}})
    made = backend(load(SERVICE, GATEWAY, VIRTUAL, rule("web", **UNREADABLE), good))
    assert made.fault == "" and made.tls is not None and made.tls.sni == "web.test"


def test_one_that_asks_for_no_tls_takes_nothing_with_it() -> None:
    loaded = load(SERVICE, GATEWAY, VIRTUAL, rule("web", workloadSelector={"matchLabels": {"app": "x"}}))
    assert loaded.errors and backend(loaded).fault == ""


def policy(*targets: dict[str, str]) -> dict[str, Any]:
    validation = {"hostname": "web.test", "wellKnownCACertificates": "System"}
    return thing(API, "BackendTLSPolicy", "web", {"targetRefs": list(targets), "validation": validation})


def test_a_backend_tls_policy_counts_for_its_services_whatever_else_it_is_for() -> None:
    web = {"group": "", "kind": "Service", "name": "web"}
    other = {"group": "multicluster.x-k8s.io", "kind": "ServiceImport", "name": "web"}
    for targets in ((web, other), (other, web)):
        loaded = load(CLASS, API_GATEWAY, SERVICE, ROUTE, policy(*targets))
        made = backend(loaded)
        assert made.tls is not None and made.tls.sni == "web.test"
        assert any("only Services of its own namespace can be meant" in finding.text for finding in loaded.findings)


@pytest.mark.parametrize("spec", ["text", {"controllerName": 7}, {"controllerName": ["x"]}, []])
def test_a_gateway_class_that_cannot_be_read_takes_only_its_own_gateways(spec: object) -> None:
    broken = {**CLASS, "metadata": {"name": "broken"}, "spec": spec}
    loaded = load(broken, CLASS, API_GATEWAY, SERVICE, ROUTE)
    assert backend(loaded).name == "shop/web:80"
    assert [finding.text for finding in loaded.errors if "GatewayClass.yaml" in finding.text]


def admitted(namespaces: dict[str, Any]) -> tuple[Loaded, bool]:
    """Whether a route of another namespace attaches where these are allowed."""
    listener = {**LISTENERS[0], "allowedRoutes": {"namespaces": namespaces}}
    gateway = thing(API, "Gateway", "gw", {"gatewayClassName": "tproxy", "listeners": [listener]}, "infra")
    parents = [{"name": "gw", "namespace": "infra"}]
    loaded = load(CLASS, gateway, SERVICE, {**ROUTE, "spec": {**ROUTE["spec"], "parentRefs": parents}})
    found = loaded.table.listeners.get(("", 80))
    return loaded, isinstance(found, HttpListener) and any(entries for _, entries in found.table.hosts.items())


@pytest.mark.parametrize(
    ("namespaces", "expected"),
    [
        ({"from": "All"}, True),
        ({"from": "Selector", "selector": {}}, True),  # metav1.LabelSelector: an empty one is everybody's
        ({"from": "Selector", "selector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}, True),
        ({"from": "Selector", "selector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}}, False),
        ({"from": "Selector"}, False),  # none is nobody's
        ({"from": "Selector", "selector": None}, False),
    ],
)
def test_a_missing_selector_selects_nobody(namespaces: dict[str, Any], expected: bool) -> None:
    assert admitted(namespaces)[1] is expected


@pytest.mark.parametrize(
    ("selector", "near"),
    [
        ({"matchLabel": {"a": "b"}}, "matchLabels"),
        ({"matchExpressions": [{"key": "a", "operator": "Exists", "value": ["b"]}]}, "values"),
    ],
)
def test_a_misspelt_selector_selects_nobody(selector: dict[str, Any], near: str) -> None:
    loaded, attached = admitted({"from": "Selector", "selector": selector})
    assert not attached and any(f"did you mean {near!r}?" in finding.text for finding in loaded.errors)


@pytest.mark.parametrize("selector", [None, {"matchLabel": {"a": "b"}}])
def test_nor_does_it_for_listener_sets(selector: object) -> None:
    allowed = {"namespaces": {"from": "Selector", **({"selector": selector} if selector else {})}}
    spec = {"gatewayClassName": "tproxy", "listeners": LISTENERS, "allowedListeners": allowed}
    more = {"parentRef": {"name": "gw", "namespace": "infra"}, "listeners": [{**LISTENERS[0], "port": 81}]}
    loaded = load(CLASS, thing(API, "Gateway", "gw", spec, "infra"), thing(API, "ListenerSet", "more", more))
    assert ("", 81) not in loaded.table.listeners


def asked_for(loaded: Loaded, host: str) -> str:
    listener = loaded.table.listeners["", 80]
    assert isinstance(listener, HttpListener)
    found = plan(listener.table, Head("GET", "http", host, "/", []), Client("192.0.2.1", "http", 80, ""), float, str)
    return f"{found.reply.status}" if isinstance(found, Answer) else found.backend.name


@pytest.mark.parametrize("first", ["open", "redirecting"])
@pytest.mark.parametrize("host", ["shop.test", "*.test"])
def test_who_redirects_to_https_does_so_whoever_else_serves_the_name(first: str, host: str) -> None:
    """pilot/pkg/networking/core, buildGatewayHTTPRouteConfig: a host of both servers gets RequireTls."""
    ages = {first: "2026-01-01T00:00:00Z"}
    servers = {"open": ("*", {}), "redirecting": (host, {"tls": {"httpsRedirect": True}})}
    gateways = [
        thing(ISTIO, "Gateway", name, {"servers": [{**SERVERS[0], "hosts": [host], **more}]})
        for name, (host, more) in servers.items()
    ]
    for one in gateways:
        one["metadata"]["creationTimestamp"] = ages.get(one["metadata"]["name"], "2026-02-01T00:00:00Z")
    spec = {"hosts": ["shop.test"], "gateways": ["open", "redirecting"], "http": TO_WEB}
    loaded = load(SERVICE, *gateways, thing(ISTIO, "VirtualService", "web", spec))
    assert asked_for(loaded, "shop.test") == "301"
    spec = {"hosts": ["other.example"], "gateways": ["open"], "http": TO_WEB}
    loaded = load(SERVICE, *gateways, thing(ISTIO, "VirtualService", "web", spec))
    assert asked_for(loaded, "other.example") == "outbound|80||web.shop.svc.cluster.local"


@pytest.mark.parametrize("bind", [["10.0.0.1"], 1.5, {}, True])
def test_an_address_that_is_no_text_is_an_error_and_no_defect(bind: object) -> None:
    loaded = load(thing(ISTIO, "Gateway", "gw", {"servers": [{**SERVERS[0], "bind": bind}]}))
    assert [finding.text for finding in loaded.errors if "spec.servers[0].bind" in finding.text]


def test_a_key_that_stands_beside_its_certificate_is_never_dumped() -> None:
    """``cat cert key > tls.crt``, as many servers want it."""
    chain, key = self_signed("web.test")
    data = {name: base64.b64encode(text).decode() for name, text in (("tls.crt", chain + key), ("tls.key", key))}
    tls = {"mode": "SIMPLE", "credentialName": "pair"}
    servers = [{"port": {"number": 443, "name": "tls", "protocol": "HTTPS"}, "hosts": ["web.test"], "tls": tls}]
    secret = thing("v1", "Secret", "pair", None, "istio-system", data=data)
    loaded = load(secret, thing(ISTIO, "Gateway", "gw", {"servers": servers}))
    (kept,) = loaded.material.values()
    assert kept.leaf is not None and kept.pair.chain == chain and kept.pair.key == key
    dump = repr(config_dump(loaded.table, {kept.name: kept.pair.chain}, "", "1"))
    assert base64.b64encode(chain).decode() in dump and base64.b64encode(chain + key).decode() not in dump


@pytest.mark.parametrize("field", ["serverCertificate", "privateKey", "caCertificates"])
def test_a_key_in_base64_in_the_place_of_a_file_is_not_repeated(field: str) -> None:
    _, key = self_signed("web.test")
    text = base64.b64encode(key).decode()
    files = {"serverCertificate": "/none", "privateKey": "/none", "caCertificates": "/none", field: text}
    tls = {"mode": "MUTUAL", **files}
    servers = [{"port": {"number": 443, "name": "tls", "protocol": "HTTPS"}, "hosts": ["*"], "tls": tls}]
    loaded = load(thing(ISTIO, "Gateway", "gw", {"servers": servers}), rule("web", trafficPolicy={"tls": tls}))
    said = "\n".join(finding.text for finding in loaded.findings)
    assert "a private key does not belong here" in said
    assert not any(text[at : at + 24] in said for at in range(0, len(text) - 24, 8))


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1"]
)
def test_in_a_cluster_a_service_entry_leads_to_nothing_on_the_gateways_own_host(address: str) -> None:
    """Its admin port, or a cloud's metadata."""
    spec = {"hosts": ["web.example"], "ports": [{"number": 80, "name": "http"}], "resolution": "STATIC"}
    entry = thing(ISTIO, "ServiceEntry", "web", {**spec, "endpoints": [{"address": address}]})
    to_entry = [{"route": [{"destination": {"host": "web.example"}}]}]
    virtual = thing(ISTIO, "VirtualService", "web", {"hosts": ["*"], "gateways": ["gw"], "http": to_entry})
    loaded = load(entry, GATEWAY, virtual, site=replace(SITE, trusting=False))
    assert "endpoints[0].address" in str(loaded.errors[0]) and backend(loaded).endpoints == ()
    assert backend(load(entry, GATEWAY, virtual)).endpoints != ()
