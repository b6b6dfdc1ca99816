"""Istio's AuthorizationPolicy below HTTP: what matches, what comes first, and that nothing is ever ignored."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.istio import asked, auth, settled
from tproxy.core.address import parse_address
from tproxy.core.config import Config
from tproxy.core.fields import ConfigError
from tproxy.core.identity import SpiffeId
from tproxy.core.policy.conditions import Call, Text
from tproxy.core.policy.policy import Allow, Policy
from tproxy.core.reason import Deny, Reason

WEB, DB = "ns/shop/sa/web", "ns/data/sa/db"


def allowed(config: Config, *args: Any, **kwargs: Any) -> bool:
    return isinstance(asked(config, *args, **kwargs), Allow)


def source(text: str) -> str:
    return f"rules: [{{from: [{{source: {text}}}]}}]"


def operation(text: str) -> str:
    return f"rules: [{{to: [{{operation: {text}}}]}}]"


def when(text: str) -> str:
    return f"rules: [{{when: [{text}]}}]"


# what one text means


@pytest.mark.parametrize(
    ("pattern", "value", "matches"),
    [
        ("abc", "abc", True),
        ("abc", "abcd", False),
        ("abc", "xabc", False),
        ("abc", "ABC", False),
        ("abc", "", False),
        ("abc*", "abc", True),
        ("abc*", "abcd", True),
        ("abc*", "xabc", False),
        ("abc*", "ab", False),
        ("*abc", "abc", True),
        ("*abc", "xabc", True),
        ("*abc", "abcx", False),
        ("*", "a", True),
        ("*", "", False),
        ("a.c", "abc", False),
        ("a.c*", "abcd", False),
        ("*a.c", "xabc", False),
    ],
)
def test_a_text_is_exact_a_beginning_an_end_or_any_but_nothing(pattern: str, value: str, matches: bool) -> None:
    assert Text.parse(pattern).matches(value) is matches
    assert str(Text.parse(pattern)) == pattern


@pytest.mark.parametrize("pattern", ["", "a*c", "*abc*", "**", "ab**", "a\nb"])
def test_a_text_that_istio_would_take_by_letter_or_not_at_all_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"\*"):
        Text.parse(pattern)


# what a rule matches: seen through an ALLOW, which lets in exactly those, and a DENY, which refuses exactly those

MATCHES: list[tuple[str, str, int, str, bool]] = [
    # principals
    (source("{principals: [cluster.local/ns/shop/sa/web]}"), WEB, 80, "10.0.0.7", True),
    (source("{principals: [cluster.local/ns/shop/sa/web]}"), DB, 80, "10.0.0.7", False),
    (source("{principals: [cluster.local/ns/shop/sa/web]}"), "", 80, "10.0.0.7", False),
    (source("{principals: [cluster.local/ns/shop/sa/we]}"), WEB, 80, "10.0.0.7", False),
    (source("{principals: [cluster.local/ns/data/sa/db, cluster.local/ns/shop/sa/web]}"), WEB, 80, "10.0.0.7", True),
    (source("{principals: ['cluster.local/ns/shop/*']}"), WEB, 80, "10.0.0.7", True),
    (source("{principals: ['cluster.local/ns/shop/*']}"), "ns/shop2/sa/web", 80, "10.0.0.7", False),
    (source("{principals: ['cluster.local/ns/shop*']}"), "ns/shop2/sa/web", 80, "10.0.0.7", True),
    (source("{principals: ['*/sa/web']}"), WEB, 80, "10.0.0.7", True),
    (source("{principals: ['*/ns/shop/sa/web']}"), WEB, 80, "10.0.0.7", True),
    (source("{principals: ['*/sa/web']}"), DB, 80, "10.0.0.7", False),
    (source("{principals: ['*']}"), DB, 80, "10.0.0.7", True),
    (source("{principals: ['*']}"), "", 80, "10.0.0.7", False),
    (source("{principals: [cluster.local/vm/db]}"), "vm/db", 80, "10.0.0.7", True),
    (source("{notPrincipals: [cluster.local/ns/shop/sa/web]}"), WEB, 80, "10.0.0.7", False),
    (source("{notPrincipals: [cluster.local/ns/shop/sa/web]}"), DB, 80, "10.0.0.7", True),
    (source("{notPrincipals: [cluster.local/ns/shop/sa/web]}"), "", 80, "10.0.0.7", True),
    (source("{notPrincipals: ['*']}"), WEB, 80, "10.0.0.7", False),
    (source("{notPrincipals: ['*']}"), "", 80, "10.0.0.7", True),
    (
        source("{principals: ['cluster.local/ns/shop/*'], notPrincipals: ['*/sa/web']}"),
        "ns/shop/sa/x",
        80,
        "::1",
        True,
    ),
    (source("{principals: ['cluster.local/ns/shop/*'], notPrincipals: ['*/sa/web']}"), WEB, 80, "::1", False),
    # namespaces
    (source("{namespaces: [shop]}"), WEB, 80, "10.0.0.7", True),
    (source("{namespaces: [shop]}"), DB, 80, "10.0.0.7", False),
    (source("{namespaces: [shop]}"), "", 80, "10.0.0.7", False),
    (source("{namespaces: ['sh*']}"), WEB, 80, "10.0.0.7", True),
    (source("{namespaces: ['*op']}"), WEB, 80, "10.0.0.7", True),
    (source("{namespaces: ['*']}"), WEB, 80, "10.0.0.7", True),
    (source("{namespaces: ['*']}"), "", 80, "10.0.0.7", False),
    (source("{namespaces: ['*']}"), "vm/db", 80, "10.0.0.7", False),
    (source("{notNamespaces: [shop]}"), WEB, 80, "10.0.0.7", False),
    (source("{notNamespaces: [shop]}"), DB, 80, "10.0.0.7", True),
    (source("{notNamespaces: [shop]}"), "", 80, "10.0.0.7", True),
    (source("{namespaces: [sa]}"), WEB, 80, "10.0.0.7", False),
    # service accounts
    (source("{serviceAccounts: [web]}"), WEB, 80, "10.0.0.7", True),
    (source("{serviceAccounts: [web]}"), "ns/data/sa/web", 80, "10.0.0.7", False),
    (source("{serviceAccounts: [data/db]}"), DB, 80, "10.0.0.7", True),
    (source("{serviceAccounts: [data/db]}"), "ns/data/sa/db2", 80, "10.0.0.7", False),
    (source("{serviceAccounts: [data/db]}"), "", 80, "10.0.0.7", False),
    (source("{notServiceAccounts: [data/db]}"), DB, 80, "10.0.0.7", False),
    (source("{notServiceAccounts: [data/db]}"), WEB, 80, "10.0.0.7", True),
    (source("{notServiceAccounts: [data/db]}"), "", 80, "10.0.0.7", True),
    # addresses
    (source("{ipBlocks: [10.0.0.0/24]}"), "", 80, "10.0.0.7", True),
    (source("{ipBlocks: [10.0.0.0/24]}"), "", 80, "10.0.1.7", False),
    (source("{ipBlocks: [10.0.0.7]}"), "", 80, "10.0.0.7", True),
    (source("{ipBlocks: ['fd00::/8']}"), "", 80, "[fd00::7]", True),
    (source("{ipBlocks: ['fd00::/8']}"), "", 80, "10.0.0.7", False),
    (source("{ipBlocks: ['::ffff:10.0.0.0/120']}"), "", 80, "10.0.0.7", True),
    (source("{ipBlocks: [0.0.0.0/0]}"), "", 80, "[fd00::7]", False),
    (source("{notIpBlocks: [10.0.0.0/24]}"), "", 80, "10.0.0.7", False),
    (source("{notIpBlocks: [10.0.0.0/24]}"), "", 80, "10.0.1.7", True),
    (source("{ipBlocks: [10.0.0.0/24], notIpBlocks: [10.0.0.7]}"), "", 80, "10.0.0.7", False),
    (source("{ipBlocks: [10.0.0.0/24], notIpBlocks: [10.0.0.7]}"), "", 80, "10.0.0.8", True),
    # fields of one source are ANDed, sources ORed
    (source("{namespaces: [shop], ipBlocks: [10.0.0.0/24]}"), WEB, 80, "10.0.0.7", True),
    (source("{namespaces: [shop], ipBlocks: [10.0.0.0/24]}"), WEB, 80, "10.0.1.7", False),
    (source("{namespaces: [shop], ipBlocks: [10.0.0.0/24]}"), DB, 80, "10.0.0.7", False),
    (
        "rules: [{from: [{source: {namespaces: [shop]}}, {source: {ipBlocks: [10.9.0.0/16]}}]}]",
        DB,
        80,
        "10.9.0.1",
        True,
    ),
    (
        "rules: [{from: [{source: {namespaces: [shop]}}, {source: {ipBlocks: [10.9.0.0/16]}}]}]",
        DB,
        80,
        "10.8.0.1",
        False,
    ),
    # ports
    (operation("{ports: ['80']}"), "", 80, "10.0.0.7", True),
    (operation("{ports: ['80', '443']}"), "", 443, "10.0.0.7", True),
    (operation("{ports: ['80']}"), "", 81, "10.0.0.7", False),
    (operation("{ports: [80]}"), "", 80, "10.0.0.7", True),
    (operation("{notPorts: ['80']}"), "", 80, "10.0.0.7", False),
    (operation("{notPorts: ['80']}"), "", 81, "10.0.0.7", True),
    ("rules: [{to: [{operation: {ports: ['80']}}, {operation: {ports: ['81']}}]}]", "", 81, "10.0.0.7", True),
    # from, to and when are ANDed, rules ORed
    (
        "rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['80']}}]}]",
        WEB,
        80,
        "10.0.0.7",
        True,
    ),
    (
        "rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['80']}}]}]",
        WEB,
        81,
        "10.0.0.7",
        False,
    ),
    ("rules: [{to: [{operation: {ports: ['1']}}]}, {from: [{source: {namespaces: [data]}}]}]", DB, 80, "::1", True),
    # when
    (when("{key: source.ip, values: [10.0.0.0/24]}"), "", 80, "10.0.0.7", True),
    (when("{key: source.ip, notValues: [10.0.0.0/24]}"), "", 80, "10.0.0.7", False),
    (when("{key: source.namespace, values: [shop]}"), WEB, 80, "10.0.0.7", True),
    (when("{key: source.namespace, notValues: [shop]}"), WEB, 80, "10.0.0.7", False),
    (when("{key: source.principal, values: ['*/sa/web']}"), WEB, 80, "10.0.0.7", True),
    (when("{key: source.principal, notValues: ['*/sa/web']}"), DB, 80, "10.0.0.7", True),
    (when("{key: destination.ip, values: [10.0.0.9]}"), "", 80, "10.0.0.7", True),
    (when("{key: destination.ip, values: [10.0.0.7]}"), "", 80, "10.0.0.7", False),
    (when("{key: destination.ip, notValues: [10.0.0.9]}"), "", 80, "10.0.0.7", False),
    (when("{key: destination.port, values: ['80', '81']}"), "", 81, "10.0.0.7", True),
    (when("{key: destination.port, notValues: ['80']}"), "", 80, "10.0.0.7", False),
    (
        when("{key: source.ip, values: [10.0.0.0/24]}, {key: destination.port, values: ['80']}"),
        "",
        81,
        "10.0.0.7",
        False,
    ),
    (when("{key: source.ip, values: [10.0.0.0/24], notValues: [10.0.0.7]}"), "", 80, "10.0.0.7", False),
    # whole rules
    ("rules: [{}]", "", 80, "10.0.0.7", True),
    ("rules: [{}]", WEB, 80, "10.0.0.7", True),
    ("rules: [{from: null, to: null, when: null}]", DB, 80, "10.0.0.7", True),
]


@pytest.mark.parametrize(("spec", "who", "port", "at", "matches"), MATCHES)
def test_an_allow_lets_in_exactly_whom_it_matches_and_a_deny_refuses_exactly_them(
    spec: str, who: str, port: int, at: str, matches: bool
) -> None:
    call = {"who": who, "port": port, "source": at if at.startswith("[") else at.replace("::1", "[::1]")}
    assert allowed(settled(auth(f"action: ALLOW\n{spec}")), **call) is matches
    assert allowed(settled(auth(f"action: DENY\n{spec}")), **call) is not matches
    audited = settled(auth(f"action: AUDIT\n{spec}"))
    assert allowed(audited, **call)


# which objects have a say


@pytest.mark.parametrize(
    ("name", "spec", "labels", "applies"),
    [
        ("shop/deny", "{}", {}, True),
        ("data/deny", "{}", {}, False),
        ("istio-system/deny", "{}", {}, True),
        ("shop/deny", "selector: {matchLabels: {app: web}}", {"app": "web", "v": "1"}, True),
        ("shop/deny", "selector: {matchLabels: {app: web}}", {"app": "db"}, False),
        ("shop/deny", "selector: {matchLabels: {app: web}}", {}, False),
        ("shop/deny", "selector: {matchLabels: {app: web, v: '2'}}", {"app": "web", "v": "1"}, False),
        ("shop/deny", "selector: {matchLabels: {}}", {}, True),
        ("shop/deny", "selector: {}", {}, True),
        ("istio-system/deny", "selector: {matchLabels: {app: web}}", {"app": "web"}, True),
        ("istio-system/deny", "selector: {matchLabels: {app: web}}", {"app": "db"}, False),
        ("data/deny", "selector: {matchLabels: {app: web}}", {"app": "web"}, False),
    ],
)
def test_an_object_is_for_its_namespace_or_from_the_root_namespace_for_all_and_its_selector_narrows(
    name: str, spec: str, labels: dict[str, str], applies: bool
) -> None:
    """An ALLOW without rules, so it denies whom it applies to."""
    assert allowed(settled(auth(spec, name), labels=labels), WEB) is not applies


def test_another_root_namespace_can_be_named() -> None:
    deny = auth("{}", "mesh/deny")
    assert allowed(settled(deny), WEB)
    assert not allowed(settled(deny, workload={"namespace": "shop", "rootNamespace": "mesh"}), WEB)


# who comes first

ALLOW_WEB = auth(f"action: ALLOW\n{source('{principals: [cluster.local/ns/shop/sa/web]}')}", "shop/allow-web")
ALLOW_DB = auth(source("{namespaces: [data]}"), "shop/allow-db")
DENY_WEB = auth(f"action: DENY\n{source('{serviceAccounts: [web]}')}", "shop/deny-web")
NOTHING = auth("{}", "shop/nothing")
ALL = auth("rules: [{}]", "shop/all")


@pytest.mark.parametrize(
    ("objects", "who", "rule"),
    [
        ([], WEB, "default: no rule selects port 80"),
        ([ALLOW_WEB], WEB, "shop/allow-web[0]"),
        ([ALLOW_WEB], DB, "!shop/allow-web"),
        ([ALLOW_WEB, ALLOW_DB], DB, "shop/allow-db[0]"),
        ([ALLOW_WEB, DENY_WEB], WEB, "!shop/deny-web[0]"),
        ([DENY_WEB, ALL], WEB, "!shop/deny-web[0]"),
        ([DENY_WEB], DB, "default: no rule selects port 80"),
        ([DENY_WEB, ALL], DB, "shop/all[0]"),
        ([NOTHING], WEB, "!shop/nothing"),
        ([NOTHING, ALLOW_WEB], WEB, "shop/allow-web[0]"),
        ([NOTHING, ALLOW_WEB], DB, "!shop/allow-web, shop/nothing"),
        ([ALL], "", "shop/all[0]"),
        ([ALLOW_WEB], "", "!shop/allow-web"),
    ],
)
def test_deny_comes_before_allow_and_once_there_is_an_allow_only_what_one_matches_is_let_in(
    objects: list[dict[str, Any]], who: str, rule: str
) -> None:
    answer = asked(settled(*objects), who)
    if rule.startswith("!"):
        assert isinstance(answer, Deny) and (answer.reason, answer.rule) == (Reason.POLICY, rule[1:])
        assert "10.0.0.7" in answer.why
    else:
        assert answer == Allow(rule)


def test_the_rule_s_number_is_in_its_name() -> None:
    spec = "rules: [{to: [{operation: {ports: ['1']}}]}, {to: [{operation: {ports: ['80']}}]}]"
    assert asked(settled(auth(spec)), WEB) == Allow("shop/it[1]")


# our own rules beside them


def test_our_rules_and_istio_s_objects_must_both_agree() -> None:
    inbound = {"rules": [{"name": "ours", "ports": [80], "namespaces": ["shop", "data"]}]}
    both = settled(ALLOW_WEB, inbound=inbound)
    assert asked(both, WEB) == Allow("ours, shop/allow-web[0]")
    assert not allowed(both, DB)
    assert not allowed(settled(ALL, inbound=inbound), "ns/other/sa/x")


# trust domains


def test_an_alias_of_our_trust_domain_is_our_own_in_a_principal_and_cluster_local_always_is() -> None:
    trust = {"trustDomain": "new.example", "trust": {"aliases": ["old.example"]}}
    for domain in ("new.example", "old.example", "cluster.local", "*example"):
        config = settled(auth(source(f"{{principals: ['{domain}/ns/shop/sa/web']}}")), **trust)
        for shown in ("new.example", "old.example"):
            assert allowed(config, f"spiffe://{shown}/ns/shop/sa/web"), (domain, shown)
    part = settled(auth(f"action: DENY\n{source(chr(123) + 'principals: [old.example/*]' + chr(125))}"), **trust)
    assert not allowed(part, "spiffe://old.example/ns/shop/sa/web")  # as the certificate says, and no further
    assert allowed(part, "spiffe://new.example/ns/shop/sa/web")
    spec = source("{principals: ['new.example/ns/shop/*']}")  # not in the form that is expanded
    old = "spiffe://old.example/ns/shop/sa/web"
    assert not allowed(settled(auth(spec), **trust), old)  # as in Istio
    assert not allowed(settled(auth(f"action: DENY\n{spec}"), **trust), old)  # Istio would let it pass


FEDERATED = {"trust": {"federated": [{"trustDomain": "partner.example"}]}}


@pytest.mark.parametrize(
    ("action", "spec", "lets_in"),
    [
        ("ALLOW", source("{principals: [partner.example/ns/shop/sa/web]}"), True),
        ("ALLOW", source("{principals: ['*/ns/shop/sa/web']}"), True),
        ("ALLOW", source("{namespaces: [shop]}"), False),
        ("ALLOW", source("{namespaces: ['*']}"), False),
        ("ALLOW", source("{serviceAccounts: [web]}"), False),
        ("ALLOW", source("{notNamespaces: [shop]}"), False),
        ("ALLOW", source("{notNamespaces: [data]}"), True),
        ("ALLOW", "rules: [{}]", True),
        ("DENY", source("{namespaces: [shop]}"), False),
        ("DENY", source("{serviceAccounts: [web]}"), False),
        ("DENY", source("{notNamespaces: [shop]}"), False),
        ("DENY", source("{principals: [cluster.local/ns/shop/sa/web]}"), True),
    ],
)
def test_a_namespace_or_account_of_a_federated_domain_counts_against_a_caller_never_for_it(
    action: str, spec: str, lets_in: bool
) -> None:
    everyone = [auth("rules: [{}]", "shop/all")] if action == "DENY" else []
    config = settled(auth(f"action: {action}\n{spec}"), *everyone, **FEDERATED)
    assert allowed(config, "spiffe://partner.example/ns/shop/sa/web") is lets_in


@pytest.mark.parametrize("path", ["k8s/one/ns/shop/sa/web", "ns/shop/pod/x/sa/web", "ns/shop/sa/web/x/y"])
@pytest.mark.parametrize("condition", ["namespaces: [shop]", "serviceAccounts: [web]"])
def test_an_id_of_another_form_is_found_to_refuse_it_never_to_let_it_in(path: str, condition: str) -> None:
    spec = source(f"{{{condition}}}")
    assert not allowed(settled(auth(f"action: ALLOW\n{spec}")), path)
    assert not allowed(settled(auth(f"action: DENY\n{spec}")), path)
    assert allowed(settled(auth(f"action: DENY\n{spec}")), path.replace("shop", "data"))
    assert allowed(settled(auth("action: DENY\n" + source("{namespaces: [one, pod, x, sa, web]}"))), path)


def test_an_end_of_a_trust_domain_s_name_means_all_that_end_so() -> None:
    trust = {"trustDomain": "new.example", "trust": {"federated": [{"trustDomain": "partner.example"}]}}
    config = settled(auth(source("{principals: ['*.example/ns/shop/sa/web']}")), **trust)
    assert allowed(config, "spiffe://new.example/ns/shop/sa/web")
    assert allowed(config, "spiffe://partner.example/ns/shop/sa/web")


def test_a_federated_peer_is_not_let_in_by_the_absence_of_an_allow() -> None:
    assert not allowed(settled(DENY_WEB, **FEDERATED), "spiffe://partner.example/ns/data/sa/db")


def test_cluster_local_is_ambiguous_where_another_trust_domain_has_that_name() -> None:
    trust = {"trustDomain": "ours.example", "trust": {"federated": [{"trustDomain": "cluster.local"}]}}
    with pytest.raises(ConfigError, match="means our own trust domain to Istio"):
        settled(ALLOW_WEB, **trust)


# dry run and audit


def noted(config: Config, who: str) -> tuple[str, str]:
    call = Call(80, SpiffeId.parse(f"spiffe://cluster.local/{who}"), parse_address("::1"), parse_address("::2"))
    return config.policy.dry_run(call), config.policy.audit(call)


def test_a_dry_run_decides_nothing_and_says_what_it_would_have_decided() -> None:
    deny = auth(f"action: DENY\n{source('{namespaces: [data]}')}", "shop/no-data", dry_run="true")
    config = settled(deny, ALL)
    assert asked(config, DB) == Allow("shop/all[0]")
    assert noted(config, DB) == ("deny: shop/no-data[0]", "")
    assert noted(config, WEB) == ("allow: shop/all[0]", "")
    allow = settled(auth(source("{namespaces: [data]}"), "shop/only-data", dry_run="true"))
    assert asked(allow, WEB) == Allow("default: no rule selects port 80")
    assert noted(allow, WEB) == ("deny: shop/only-data", "")
    assert noted(settled(ALL), WEB) == ("", "")


def test_dry_run_false_is_in_force() -> None:
    assert not allowed(settled(auth("{}", dry_run="false")), WEB)


def test_an_audit_names_its_rules_and_is_announced() -> None:
    config = settled(auth(f"action: AUDIT\n{source('{namespaces: [data]}')}", "shop/look"))
    assert noted(config, DB)[1] == "shop/look[0]"
    assert noted(config, WEB)[1] == ""
    assert config.settled is not None
    assert config.settled.remarks == (
        "AuthorizationPolicy shop/look only writes the field audit of records; it denies nobody",
    )


# what is refused

GATEWAY = "{kind: Gateway, group: gateway.networking.k8s.io, name: g}"
REFUSED: list[tuple[str, str]] = [
    (operation("{methods: [GET]}"), "spec.rules[0].to[0].operation.methods: ['GET']: is a condition of HTTP"),
    (operation("{notMethods: [GET]}"), "operation.notMethods"),
    (operation("{paths: [/admin], ports: ['80']}"), "operation.paths: ['/admin']"),
    (operation("{notPaths: [/admin]}"), "operation.notPaths"),
    (operation("{hosts: [a.example]}"), "operation.hosts"),
    (operation("{notHosts: [a.example]}"), "operation.notHosts"),
    (operation("{hosts: []}"), "operation.hosts"),
    (source("{requestPrincipals: ['*']}"), "source.requestPrincipals"),
    (source("{notRequestPrincipals: ['*']}"), "source.notRequestPrincipals"),
    (source("{remoteIpBlocks: [10.0.0.0/8]}"), "source.remoteIpBlocks"),
    (source("{notRemoteIpBlocks: [10.0.0.0/8]}"), "source.notRemoteIpBlocks"),
    (source("{trustDomains: [a]}"), "source.trustDomains: unknown field"),
    (source("{principal: [a]}"), "did you mean 'principals'?"),
    (when("{key: 'request.auth.claims[iss]', values: [a]}"), "spec.rules[0].when[0].key: 'request.auth.claims[iss]'"),
    (when("{key: 'request.headers[a]', values: [a]}"), "request.headers[a]"),
    (when("{key: request.auth.principal, values: [a]}"), "request.auth.principal"),
    (when("{key: remote.ip, values: [10.0.0.1]}"), "remote.ip"),
    (when("{key: connection.sni, values: [a]}"), "connection.sni"),
    (when("{key: source.prinicpal, values: [a]}"), "did you mean 'source.principal'?"),
    (when("{key: 'experimental.envoy.filters.a[b]', values: [a]}"), "experimental.envoy.filters"),
    (when("{key: source.ip}"), "spec.rules[0].when[0]: is empty"),
    (when("{values: [a]}"), "when[0].key"),
    ("targetRefs: [{kind: Gateway, group: other.example, name: g}]", "spec.targetRefs"),
    ("targetRefs: []", "spec.targetRefs"),
    ("targetRefs: Gateway", "spec.targetRefs"),
    (f"targetRefs: [{GATEWAY}, {{kind: Service, name: g}}]", "spec.targetRefs"),
    (f"targetRefs: [{GATEWAY}]\nselector: {{}}", "spec.targetRefs"),
    (f"targetRefs: [{GATEWAY}]\ntargetRef: {GATEWAY}", "spec.targetRef"),
    ("targetRef: {kind: Service, name: g}", "spec.targetRef"),
    ("action: CUSTOM\nprovider: {name: opa}\nrules: [{}]", "spec.action: 'CUSTOM': asks an external authorizer"),
    ("provider: {name: opa}", "asks an external authorizer"),
    ("action: LOG\nrules: [{}]", "spec.action: 'LOG'"),
    ("action: deny\nrules: [{}]", "did you mean 'DENY'?"),
    ("action: DENY", "spec.rules: is empty, so this DENY would never match"),
    ("action: AUDIT\nrules: []", "spec.rules: is empty"),
    ("rules: [null]", "spec.rules[0]: is empty"),
    ("rules: {}", "spec.rules: {}: expected a list"),
    ("rules: [{from: []}]", "spec.rules[0].from: is empty"),
    ("rules: [{from: [{}]}]", "spec.rules[0].from[0].source: is empty"),
    ("rules: [{from: [{source: {}}]}]", "spec.rules[0].from[0].source: is empty"),
    ("rules: [{from: [null]}]", "spec.rules[0].from[0]: is empty"),
    ("rules: [{to: [{operation: null}]}]", "spec.rules[0].to[0].operation: is empty"),
    ("rules: [{to: []}]", "spec.rules[0].to: is empty"),
    ("rules: [{when: []}]", "spec.rules[0].when: is empty"),
    ("rules: [{form: [{source: {namespaces: [a]}}]}]", "spec.rules[0].form: unknown field; did you mean 'from'?"),
    ("rules: [{from: [{sources: {namespaces: [a]}}]}]", "from[0].sources: unknown field; did you mean 'source'?"),
    (source("{namespaces: []}"), "source.namespaces: is empty"),
    (source("{namespaces: [a], principals: []}"), "source.principals: is empty"),
    (source("{namespaces: shop}"), "source.namespaces: 'shop': expected a list"),
    (source("{namespaces: [1]}"), "source.namespaces[0]: 1: expected text"),
    (source("{namespaces: ['']}"), "source.namespaces[0]: ''"),
    (source("{namespaces: [a/b]}"), "a namespace has no slash"),
    (source("{namespaces: ['a*b']}"), "* may stand once"),
    (source("{principals: ['spiffe://cluster.local/ns/a/sa/b']}"), "without spiffe://"),
    (source("{principals: [web]}"), "would never match"),
    (source("{principals: [cluster.local/ns/shop/sa/]}"), "would never match"),
    (source("{principals: ['cluster.local/ns/*/sa/web']}"), "* may stand once"),
    (source("{serviceAccounts: ['web*']}"), "without wildcards"),
    (source("{serviceAccounts: [a/b/c]}"), "expected a service account"),
    (source("{serviceAccounts: [a], namespaces: [b]}"), "cannot stand beside principals or namespaces"),
    (source("{notServiceAccounts: [a], notPrincipals: ['*']}"), "cannot stand beside"),
    (source("{ipBlocks: [10.0.0.1/8]}"), "source.ipBlocks[0]: '10.0.0.1/8'"),
    (source("{ipBlocks: [localhost]}"), "source.ipBlocks[0]: 'localhost'"),
    (source("{ipBlocks: [1]}"), "source.ipBlocks[0]: 1"),
    (operation("{ports: ['0']}"), "operation.ports[0]: '0': expected a port"),
    (operation("{ports: ['http']}"), "operation.ports[0]: 'http'"),
    (operation("{ports: ['8*']}"), "operation.ports[0]: '8*'"),
    (operation("{ports: [true]}"), "operation.ports[0]: True"),
    ("selector: {matchLabels: {app: web}, matchExpressions: []}", "spec.selector.matchExpressions: unknown field"),
    ("selector: {matchLabels: {app: 'w*'}}", "without wildcards"),
    ("selector: {matchLabels: {app: 1}}", "spec.selector.matchLabels.app: 1"),
    ("when: []", "spec.when: unknown field"),
]


@pytest.mark.parametrize("kind", ["Gateway", "GatewayClass"])
def test_an_object_that_aims_at_gateways_only_is_for_no_sidecar(kind: str) -> None:
    aim = GATEWAY.replace("Gateway", kind)
    for text in (f"targetRefs: [{aim}, {aim}]", f"targetRef: {aim}"):
        http = "action: DENY\nrules: [{to: [{operation: {methods: [GET]}}]}]"
        config = settled(auth(f"{text}\n{http}", "istio-system/gate"))
        assert allowed(config, WEB) and config.policy.objects == ()


@pytest.mark.parametrize(("spec", "said"), REFUSED)
@pytest.mark.parametrize("dry_run", ["", "true"])
def test_what_is_not_supported_is_an_error_that_names_file_object_field_and_value(
    spec: str, said: str, dry_run: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        settled(ALL, auth(spec, "shop/odd", dry_run))
    assert said in str(caught.value)
    assert str(caught.value).startswith("1.yaml (AuthorizationPolicy shop/odd): spec")


@pytest.mark.parametrize(("spec", "said"), [row for row in REFUSED if "selector" not in row[0]])
def test_what_another_workload_s_object_says_stops_nobody_else(spec: str, said: str) -> None:
    assert allowed(settled(auth(spec, "data/odd")), WEB)
    assert allowed(settled(auth(f"selector: {{matchLabels: {{app: db}}}}\n{spec}")), WEB)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "RequestAuthentication"}, "0.yaml: kind: 'RequestAuthentication': expected one of"),
        ({"kind": "AuthorisationPolicy"}, "did you mean 'AuthorizationPolicy'?"),
        ({"kind": None}, "kind: '': expected one of"),
        ({"apiVersion": "security.istio.io/v1alpha1"}, "apiVersion: 'security.istio.io/v1alpha1'"),
        ({"metadata": {"name": "a"}}, "metadata.namespace: '': is missing"),
        ({"metadata": {"namespace": "a"}}, "metadata.name: '': is missing"),
        ({"metadata": {"namespace": "a/b", "name": "c"}}, "metadata.namespace: 'a/b': is no name"),
        ({"metadata": {"namespace": "a", "name": "c", "creationTimestamp": "soon"}}, "creationTimestamp: 'soon'"),
        ({"metadata": {"namespace": "a", "name": "c", "creationTimestamp": 1}}, "creationTimestamp: 1"),
        (
            {"metadata": {"namespace": "a", "name": "c", "annotations": {"istio.io/dry-run": "yes"}}},
            "metadata.annotations.istio.io/dry-run: 'yes': expected the text 'true' or 'false'",
        ),
        ({"metadata": {"namespace": "a", "name": "c", "annotations": {"istio.io/dry-run": True}}}, "dry-run: True"),
        ({"rules": [{}]}, "0.yaml: rules: unknown field"),
        ({"spec": []}, "spec: []: expected a mapping"),
        ({"kind": "List", "items": [None]}, "0.yaml: items[0]: is empty"),
    ],
)
def test_an_object_whose_head_cannot_be_read_is_refused_whomever_it_is_for(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settled({**auth("{}", "data/other"), **change})
    assert said in str(caught.value)


def test_an_object_that_stands_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"1\.yaml \(.*: metadata\.name: stands in 0\.yaml .*, too"):
        settled(ALL, ALL)


def test_a_list_holds_many_objects() -> None:
    config = settled({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": [ALLOW_WEB, DENY_WEB]})
    assert asked(config, WEB) == Deny(
        Reason.POLICY, f"spiffe://cluster.local/{WEB} at 10.0.0.7 is denied on port 80", "shop/deny-web[0]"
    )


# properties, over small worlds where rules and callers meet often

names = st.sampled_from(["shop", "data", "sh*", "*ata", "*"])
blocks = st.sampled_from(["10.0.0.0/16", "10.0.0.7", "fd00::/8"])
principals = st.sampled_from(["cluster.local/ns/shop/sa/web", "*/sa/db", "cluster.local/ns/data/*", "*"])


def lists(of: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(of, min_size=1, max_size=2)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields).filter(bool)


sources = some(
    principals=lists(principals),
    notPrincipals=lists(principals),
    namespaces=lists(names),
    notNamespaces=lists(names),
    ipBlocks=lists(blocks),
    notIpBlocks=lists(blocks),
)
operations = some(ports=lists(st.sampled_from(["80", "443"])), notPorts=lists(st.sampled_from(["80", "443"])))
rules = st.fixed_dictionaries(
    {},
    optional={
        "from": st.lists(sources.map(lambda it: {"source": it}), min_size=1, max_size=2),
        "to": st.lists(operations.map(lambda it: {"operation": it}), min_size=1, max_size=2),
        "when": st.just([{"key": "destination.port", "notValues": ["443"]}]),
    },
)
specs = st.builds(
    lambda action, given: {"action": action, "rules": given},
    st.sampled_from(["ALLOW", "DENY", "AUDIT"]),
    st.lists(rules, min_size=1, max_size=3),
)
calls = st.fixed_dictionaries(
    {
        "who": st.sampled_from(["", WEB, DB, "ns/shop/sa/db", "vm/db"]),
        "port": st.sampled_from([80, 443, 8080]),
        "source": st.sampled_from(["10.0.0.7", "10.1.0.7", "[fd00::7]"]),
    }
)


def of(given: list[dict[str, Any]]) -> Config:
    return settled(*({**auth("{}", f"shop/p{index}"), "spec": spec} for index, spec in enumerate(given)))


@given(st.lists(specs, max_size=4), rules, calls)
def test_a_deny_that_matches_always_wins(given: list[dict[str, Any]], rule: dict[str, Any], call: Any) -> None:
    alone = of([{"action": "DENY", "rules": [rule]}])
    if not allowed(alone, **call):
        assert not allowed(of([*given, {"action": "DENY", "rules": [rule]}]), **call)


@given(st.lists(specs, max_size=4), rules, calls)
def test_one_more_deny_never_lets_more_in(given: list[dict[str, Any]], rule: dict[str, Any], call: Any) -> None:
    if allowed(of([*given, {"action": "DENY", "rules": [rule]}]), **call):
        assert allowed(of(given), **call)


@given(st.lists(specs, max_size=3), st.lists(rules, max_size=2), rules, calls)
def test_one_more_rule_of_an_allow_never_refuses_more(
    given: list[dict[str, Any]], has: list[dict[str, Any]], rule: dict[str, Any], call: Any
) -> None:
    if allowed(of([*given, {"rules": has}]), **call):
        assert allowed(of([*given, {"rules": [*has, rule]}]), **call)


@given(st.lists(specs, min_size=1, max_size=4), calls)
def test_neither_the_order_of_objects_nor_an_audit_changes_the_answer(given: list[dict[str, Any]], call: Any) -> None:
    answer = allowed(of(given), **call)
    assert allowed(of(given[::-1]), **call) is answer
    assert allowed(of([spec for spec in given if spec["action"] != "AUDIT"]), **call) is answer


@given(rules, calls)
def test_a_rule_matches_for_a_deny_exactly_if_for_an_allow(rule: dict[str, Any], call: Any) -> None:
    assert allowed(of([{"rules": [rule]}]), **call) is not allowed(of([{"action": "DENY", "rules": [rule]}]), **call)


@given(st.lists(specs, max_size=3), st.sampled_from(REFUSED))
def test_an_object_with_something_unsupported_is_never_left_out_in_silence(
    given: list[dict[str, Any]], row: tuple[str, str]
) -> None:
    objects = [{**auth("{}", f"shop/p{index}"), "spec": spec} for index, spec in enumerate(given)]
    with pytest.raises(ConfigError):
        settled(*objects, auth(row[0], "shop/odd"))


ours = st.lists(
    some(
        ports=st.lists(st.sampled_from([80, 443]), min_size=1, max_size=2),
        ids=st.lists(st.sampled_from(["ns/shop/sa/web", "ns/data/sa/db"]), min_size=1, max_size=2),
        namespaces=st.lists(st.sampled_from(["shop", "data"]), min_size=1, max_size=2),
        sources=lists(blocks),
    ),
    min_size=1,
    max_size=3,
)


@given(ours, calls)
def test_our_rules_are_an_allow_with_one_more_rule_for_the_ports_that_none_selects(
    given: list[dict[str, Any]], call: Any
) -> None:
    translated = [_translated(rule) for rule in given]
    if all("ports" in rule for rule in given):
        named = sorted({str(port) for rule in given for port in rule["ports"]})
        translated.append({"to": [{"operation": {"notPorts": named}}]})
    native = settled(inbound={"rules": given})
    assert allowed(native, **call) is allowed(of([{"rules": translated}]), **call)


def _translated(rule: dict[str, Any]) -> dict[str, Any]:
    keys = {"ids": "principals", "namespaces": "namespaces", "sources": "ipBlocks"}
    source = {keys[key]: value for key, value in rule.items() if key in keys}
    if "principals" in source:
        source["principals"] = [f"cluster.local/{path}" for path in source["principals"]]
    made: dict[str, Any] = {"from": [{"source": source}]} if source else {}
    return {**made, "to": [{"operation": {"ports": list(map(str, rule["ports"]))}}]} if "ports" in rule else made


@given(st.lists(specs, max_size=3), st.lists(specs, min_size=1, max_size=2), calls)
def test_what_a_dry_run_foretells_is_what_happens_when_it_is_in_force(
    given: list[dict[str, Any]], tried: list[dict[str, Any]], call: Any
) -> None:
    tried = [spec for spec in tried if spec["action"] != "AUDIT"]
    wet = [{**auth("{}", f"shop/w{index}"), "spec": spec} for index, spec in enumerate(tried)]
    dry = [{**auth("{}", f"shop/w{index}", dry_run="true"), "spec": spec} for index, spec in enumerate(tried)]
    base = [{**auth("{}", f"shop/p{index}"), "spec": spec} for index, spec in enumerate(given)]
    config = settled(*base, *dry)
    assert allowed(config, **call) is allowed(settled(*base), **call)
    if tried:
        who = SpiffeId.parse(f"spiffe://cluster.local/{call['who']}") if call["who"] else None
        asking = Call(call["port"], who, parse_address(call["source"].strip("[]")), parse_address("10.0.0.9"))
        assert config.policy.dry_run(asking).startswith("allow") is allowed(settled(*base, *wet), **call)


def test_a_policy_without_objects_foretells_nothing() -> None:
    assert Policy(()).dry_run(Call(80, None, parse_address("::1"), parse_address("::2"))) == ""
