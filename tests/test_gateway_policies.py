"""AuthorizationPolicy at a gateway: what its conditions mean there, and which ports it guards. Decisions alone."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import gateway as gw
from tests.web import api_gateway, http_route, rule, service, to
from tproxy.core.address import Endpoint
from tproxy.core.certificates.subject import PeerCertificate
from tproxy.core.fields import ConfigError
from tproxy.core.http.forwarded import Client
from tproxy.core.http.head import Head
from tproxy.core.http.local import Answer
from tproxy.core.http.plan import plan
from tproxy.core.policy.policy import Policy
from tproxy.core.policy.visit import called
from tproxy.core.reason import Deny
from tproxy.core.record import Direction
from tproxy.core.routes import HttpListener
from tproxy.gateway.compile import Loaded, compile_table
from tproxy.gateway.objects import from_document
from tproxy.proxy.trace import Trace

PORT = 8080
OURS = {"istio": "ingressgateway"}
CALLER = "spiffe://cluster.local/ns/shop/sa/web"


def policy(name: str = "p", namespace: str = "istio-system", **spec: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": namespace, **({"annotations": spec.pop("notes")} if "notes" in spec else {})}
    return {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": meta, "spec": spec}


def one(action: str, **rule: Any) -> dict[str, Any]:
    """A policy with one rule: source, operation and when."""
    made: dict[str, Any] = {}
    if "source" in rule:
        made["from"] = [{"source": rule["source"]}]
    if "operation" in rule:
        made["to"] = [{"operation": rule["operation"]}]
    if "when" in rule:
        made["when"] = rule["when"]
    return policy(action=action, rules=[made])


BASE = [
    gw.gateway_yaml(gw.server(PORT, "HTTP", "*"), gw.server(9000, "TCP", "*")),
    gw.virtual("v", ["*"], http=[rule(to("web.shop.svc.cluster.local"))], tcp=[gw.tcp(9000, "echo.local")]),
    gw.entry("echo.local", 7),
    *service("web", {"http": 80}, 81),
]


def load(*objects: dict[str, Any], labels: dict[str, str] | None = None) -> Loaded:
    documents = [from_document(one, f"{one['kind']}.yaml") for one in (*BASE, *objects)]
    return compile_table(documents, (), OURS if labels is None else labels)


def status(loaded: Loaded, target: str = "/", bind: tuple[str, int] = ("", PORT), **more: Any) -> int:
    """Of a request; 0 for one that is passed on."""
    listener = loaded.table.listeners[bind]
    assert isinstance(listener, HttpListener)
    link = Trace(Direction.GATEWAY, Endpoint.parse(more.get("source", "10.1.2.3:4")), Endpoint.parse("10.9.9.9:8080"))
    if "carrier" in more:
        link.carrier = Endpoint.parse(more["carrier"])
    peer = PeerCertificate("", "", tuple(more["peer"].split()), (), "", "") if "peer" in more else None
    client = Client(str(link.source.ip), "http", bind[1], more.get("sni", ""), peer=peer, link=link)
    head = Head(more.get("method", "GET"), "http", more.get("host", "a.test"), target, more.get("headers", []))
    found = plan(listener.table, head, client, float, str, policy=loaded.table.policies.get(bind))
    return found.reply.status if isinstance(found, Answer) else 0


def bytes_of(loaded: Loaded, port: int = 9000, **more: Any) -> Deny | None:
    made: Policy | None = loaded.table.policies.get(("", port))
    link = Trace(Direction.GATEWAY, Endpoint.parse(more.get("source", "10.1.2.3:4")), Endpoint("10.9.9.9", port))  # type: ignore[arg-type]
    answer = made.check(called(link, (), more.get("sni", ""), None)) if made else None
    return answer if isinstance(answer, Deny) else None


@pytest.mark.parametrize("action", ["ALLOW", "DENY"])
def test_nobody_is_let_in_who_shows_two_spiffe_ids(action: str) -> None:
    """Whichever counted, a DENY of the other one would be passed by; X509-SVID, 2, has it rejected."""
    loaded = load(
        one(action, source={"principals": ["cluster.local/ns/shop/sa/" + ("*" if action == "ALLOW" else "bad")]})
    )
    assert status(loaded, peer=CALLER) == 0
    assert status(loaded, peer=f"https://not.spiffe/ {CALLER}") == 0
    for second in ("bad", "good"):
        assert status(loaded, peer=f"{CALLER} spiffe://cluster.local/ns/shop/sa/{second}") == 403
    assert status(load(), peer=f"{CALLER} {CALLER}2") == 0, "where nobody is asked who he is"


HOLDS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # what a rule asks, a request for which that holds, one for which it does not
    ({"operation": {"methods": ["GET", "HEAD"]}}, {}, {"method": "POST"}),
    ({"operation": {"notMethods": ["POST"]}}, {}, {"method": "POST"}),
    ({"operation": {"paths": ["/a/*"]}}, {"target": "/a/b?c=/d"}, {"target": "/b?/a/"}),
    ({"operation": {"paths": ["*.html"]}}, {"target": "/x/y.html"}, {"target": "/x/y.HTML"}),
    ({"operation": {"notPaths": ["/admin*"]}}, {"target": "/x"}, {"target": "/admin/x"}),
    ({"operation": {"hosts": ["A.test"]}}, {"host": "a.TEST:8080"}, {"host": "b.test"}),
    ({"operation": {"hosts": ["*.test"]}}, {"host": "a.test"}, {"host": "test"}),
    ({"operation": {"ports": ["8080"]}}, {}, {"expect": "never"}),
    ({"source": {"ipBlocks": ["10.1.0.0/16"]}}, {}, {"source": "10.2.0.1:5"}),
    ({"source": {"notIpBlocks": ["10.1.0.0/16"]}}, {"source": "[2001:db8::1]:5"}, {}),
    ({"source": {"remoteIpBlocks": ["203.0.113.0/24"]}}, {"source": "203.0.113.9:5", "carrier": "10.1.2.3:4"}, {}),
    ({"source": {"ipBlocks": ["10.1.2.3"]}}, {"source": "192.0.2.9:5", "carrier": "10.1.2.3:4"}, {"source": "[::1]:5"}),
    ({"source": {"principals": ["cluster.local/ns/shop/sa/web"]}}, {"peer": CALLER}, {}),
    ({"source": {"principals": ["*"]}}, {"peer": CALLER}, {"peer": "https://no.spiffe/id"}),
    ({"source": {"namespaces": ["shop"]}}, {"peer": CALLER}, {"peer": "spiffe://cluster.local/ns/other/sa/web"}),
    ({"when": [{"key": "request.headers[X-Token]", "values": ["abc*"]}]}, {"headers": [("x-token", "abcd")]}, {}),
    ({"when": [{"key": "request.headers[x]", "notValues": ["bad"]}]}, {}, {"headers": [("x", "bad")]}),
    ({"when": [{"key": "connection.sni", "values": ["a.test"]}]}, {"sni": "a.test"}, {}),
    ({"when": [{"key": "remote.ip", "values": ["10.0.0.0/8"]}]}, {}, {"source": "192.0.2.1:1"}),
]  # fmt: skip


@pytest.mark.parametrize(("asks", "holds", "fails"), HOLDS, ids=lambda each: json.dumps(each)[:60])
def test_a_condition_lets_in_and_keeps_out_the_same_requests(
    asks: dict[str, Any], holds: dict[str, Any], fails: dict[str, Any]
) -> None:
    allow, deny = load(one("ALLOW", **asks)), load(one("DENY", **asks))
    assert not allow.findings and not deny.findings
    assert (status(allow, **holds), status(deny, **holds)) == (0, 403)
    if "expect" not in fails:
        assert (status(allow, **fails), status(deny, **fails)) == (403, 0)


def test_whom_a_load_balancer_names_is_remote_and_who_sends_the_packets_is_the_source() -> None:
    """Istio's ingress documentation: PROXY protocol goes with remoteIpBlocks."""
    found = load(one("DENY", source={"ipBlocks": ["203.0.113.0/24"]}))
    assert status(found, source="203.0.113.9:5", carrier="10.1.2.3:4") == 0
    assert status(found, source="203.0.113.9:5") == 403


SPELLINGS = ["/admin", "//admin", "/%61dmin/x", "/x/../admin", "/x/..%2fadmin", "/%2fadmin", "/.//admin"]


@pytest.mark.parametrize("target", [*SPELLINGS, "/a%5c..%5cadmin"])
def test_what_denies_a_path_denies_its_other_spellings_and_what_allows_it_does_not(target: str) -> None:
    assert status(load(one("DENY", operation={"paths": ["/admin*"]})), target) == 403
    kept = status(load(one("ALLOW", operation={"notPaths": ["/admin*"]})), target)
    assert kept == 403


@pytest.mark.parametrize("target", ["//public", "/x/..%2fpublic"])
def test_what_allows_a_path_allows_no_other_spelling(target: str) -> None:
    assert status(load(one("ALLOW", operation={"paths": ["/public*"]})), target) == 403
    assert status(load(one("DENY", operation={"notPaths": ["/public*"]})), target) == 403


@given(st.lists(st.sampled_from(["/", "admin", ".", "..", "%2f", "%2F", "%2e", "x", "%61dmin", ";", "\\"]), max_size=8))
def test_no_spelling_of_a_denied_path_reaches_a_backend_that_reads_it_so(parts: list[str]) -> None:
    """A backend may decode once more and merge slashes: what it would take for /admin is denied here."""
    from tproxy.core.http.filters import Flavour
    from tproxy.core.http.path import BadPathError, normal, unescaped

    target = "/" + "".join(parts)
    try:
        seen = normal(unescaped(normal(target, Flavour.ISTIO)) or target, Flavour.GATEWAY_API)
    except BadPathError:
        return
    if seen.startswith("/admin"):
        assert status(DENIES_ADMIN, target) == 403


DENIES_ADMIN = load(one("DENY", operation={"paths": ["/admin*"]}))


def test_a_deny_goes_before_an_allow_and_an_allow_shuts_out_what_it_does_not_name() -> None:
    found = load(
        policy("in", action="ALLOW", rules=[{"to": [{"operation": {"paths": ["/a*"]}}]}]),
        policy("out", action="DENY", rules=[{"to": [{"operation": {"methods": ["POST"]}}]}]),
    )
    assert [status(found, "/a"), status(found, "/b"), status(found, "/a", method="POST")] == [0, 403, 403]


def test_an_empty_policy_lets_nobody_in() -> None:
    """Istio's ``spec: {}``."""
    assert status(load(policy())) == 403
    assert bytes_of(load(policy())) is not None


def test_what_asks_of_requests_lets_no_bytes_in_and_spares_none() -> None:
    """Istio: such an ALLOW never matches a TCP connection, such a DENY matches whatever else it asks."""
    assert bytes_of(load(one("ALLOW", operation={"paths": ["/a"]}))) is not None
    assert bytes_of(load(one("DENY", operation={"paths": ["/a"]}))) is not None
    assert bytes_of(load(one("DENY", operation={"paths": ["/a"], "ports": ["1"]}))) is None
    assert bytes_of(load(one("ALLOW", source={"ipBlocks": ["10.0.0.0/8"]}))) is None


def test_a_refused_request_is_answered_as_by_envoy_and_says_to_us_which_rule_it_was() -> None:
    found = load(one("DENY", operation={"methods": ["GET"]}))
    listener = found.table.listeners["", PORT]
    assert isinstance(listener, HttpListener)
    link = Trace(Direction.GATEWAY, Endpoint.parse("10.1.2.3:4"), Endpoint.parse("10.9.9.9:8080"))
    client = Client("10.1.2.3", link=link)
    made = found.table.policies["", PORT]
    answer = plan(listener.table, Head("GET", "http", "a", "/", []), client, float, str, policy=made)
    assert isinstance(answer, Answer)
    assert (answer.reply.status, answer.body, answer.flags) == (403, b"RBAC: access denied", "")
    assert answer.details == "rbac_access_denied_matched_policy[istio-system/p[0]]"
    assert answer.why == "a caller without identity at 10.1.2.3 is denied on port 8080: istio-system/p[0]"
    grpc = Head("POST", "http", "a", "/x.Y/Z", [("content-type", "application/grpc")])
    closed = load(policy()).table.policies["", PORT]
    told = plan(listener.table, grpc, client, float, str, policy=closed)
    assert isinstance(told, Answer) and ("grpc-status", "7") in told.reply.headers


BAD: list[tuple[dict[str, Any], str]] = [
    ({"rules": [{"from": [{"source": {"requestPrincipals": ["*"]}}]}]}, "requestPrincipals"),
    ({"rules": [{"when": [{"key": "request.auth.claims[iss]", "values": ["x"]}]}]}, "request.auth.claims"),
    ({"rules": [{"when": [{"key": "request.headers[]", "values": ["x"]}]}]}, "request.headers"),
    ({"rules": [{"when": [{"key": "request.path", "values": ["/x"]}]}]}, "request.path"),
    ({"rules": [{"to": [{"operation": {"paths": ["/x/{*}"]}}]}]}, "templates"),
    ({"rules": [{"to": [{"operation": {"paths": ["/x?y=1"]}}]}]}, "query"),
    ({"rules": [{"to": [{"operation": {"path": ["/x"]}}]}]}, "did you mean"),
    ({"action": "CUSTOM", "provider": {"name": "x"}, "rules": [{}]}, "external authorizer"),
    ({"selector": {"matchLabel": {"a": "b"}}}, "matchLabel"),
    ({"action": "DENY"}, "never match"),
]


@pytest.mark.parametrize(("spec", "said"), BAD, ids=[said for _, said in BAD])
def test_a_policy_that_cannot_be_read_shuts_the_ports_that_it_is_for(spec: dict[str, Any], said: str) -> None:
    found = load(policy(**spec))
    assert any(said in error.text and "AuthorizationPolicy" in error.text for error in found.errors), found.findings
    assert status(found) == 403
    assert bytes_of(found) is not None


WORDS = st.sampled_from(
    re.findall(
        r"\S+",
        """rules from to when source operation selector matchLabels targetRefs targetRef group kind name action provider
        key values notValues paths notPaths hosts methods ports ipBlocks remoteIpBlocks principals namespaces DENY ALLOW
        AUDIT Gateway /a* * a.test 80 10.0.0.0/8 request.headers[x] connection.sni cluster.local/ns/a/sa/b""",
    )
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(spec=JSON | st.fixed_dictionaries({"rules": st.lists(JSON, max_size=2)}), notes=JSON, created=JSON)
def test_whatever_stands_in_a_policy_it_is_read_or_shuts(spec: Any, notes: Any, created: Any) -> None:
    hostile = policy()
    hostile["spec"] = spec
    hostile["metadata"] |= {"annotations": notes, "creationTimestamp": created}
    try:
        found = load(hostile)
    except ConfigError:
        return  # no object at all, which whoever reads it says
    if found.errors:
        assert status(found) == 403 and bytes_of(found) is not None


def test_a_policy_for_other_pods_is_none_of_our_business_even_if_it_cannot_be_read() -> None:
    elsewhere = policy("x", "shop", action="DENY", rules=[{"from": [{"source": {"requestPrincipals": ["*"]}}]}])
    other = policy("y", selector={"matchLabels": {"app": "other"}}, action="ALLOW")
    for found in (load(elsewhere), load(other)):
        assert not found.table.policies and not found.findings


def test_one_that_selects_us_from_a_namespace_that_is_not_ours_is_warned_of() -> None:
    """It guarded Istio's gateway there, and its author may think that it still does."""
    found = load(policy("x", "istio-ingress", selector={"matchLabels": OURS}, action="ALLOW"))
    assert not found.table.policies
    assert [each.level for each in found.findings] == ["warning"]
    assert "it guards nothing here" in found.findings[0].text


def test_where_our_labels_are_not_known_every_selector_means_us() -> None:
    other = policy("y", selector={"matchLabels": {"app": "other"}}, action="ALLOW")
    assert status(load(other, labels={})) == 403


@pytest.mark.parametrize("note", ["dry-run", "audit"])
def test_what_decides_nothing_is_warned_of(note: str) -> None:
    notes = {"notes": {"istio.io/dry-run": "true"}} if note == "dry-run" else {"action": "AUDIT"}
    found = load(policy(**notes, rules=[{"to": [{"operation": {"methods": ["POST"]}}]}]))
    assert [each.level for each in found.findings] == ["warning"]
    assert status(found) == 0


def api(*objects: dict[str, Any]) -> Loaded:
    """Two Gateways of the Gateway API, shop/gw on port 80 and shop/other on 81."""
    made = [*api_gateway({"name": "web", "port": 80, "protocol": "HTTP"})]
    made += api_gateway({"name": "web", "port": 81, "protocol": "HTTP"}, name="other")[1:]
    made += [http_route("r", [], {"backendRefs": [{"name": "web", "port": 80}]})]
    return load(*made, *objects)


AIM = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gw"}


@pytest.mark.parametrize(
    ("spec", "namespace", "guarded"),
    [
        ({"targetRefs": [AIM]}, "shop", {80}),
        ({"targetRef": AIM}, "shop", {80}),
        ({"targetRefs": [AIM]}, "istio-system", set()),
        ({"targetRefs": [{**AIM, "kind": "GatewayClass", "name": "tproxy"}]}, "istio-system", {80, 81}),
        ({"targetRefs": [{**AIM, "kind": "GatewayClass", "name": "tproxy"}]}, "shop", set()),
        ({"targetRefs": [{"group": "", "kind": "Service", "name": "web"}]}, "shop", set()),
        ({"selector": {"matchLabels": {"gateway.networking.k8s.io/gateway-name": "other"}}}, "shop", {81}),
        ({"selector": {"matchLabels": {"istio.io/gateway-name": "gw"}}}, "shop", {80}),
        ({}, "shop", {80, 81}),
        ({}, "other", set()),
        ({}, "istio-system", {80, 81, PORT, 9000}),
        ({"selector": {"matchLabels": OURS}}, "istio-system", {80, 81, PORT, 9000}),
    ],
)
def test_a_policy_guards_the_gateways_that_istio_would_apply_it_to(
    spec: dict[str, Any], namespace: str, guarded: set[int]
) -> None:
    found = api(policy("p", namespace, **spec))
    assert {port for _, port in found.table.policies} == guarded
    assert not found.errors
