"""Who may speak to whom: without a rule for the port everyone, with one only those whom it names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.address import Address, parse_address, parse_network
from tproxy.core.identity import IdPattern, SpiffeId
from tproxy.core.policy.conditions import Call
from tproxy.core.policy.policy import Allow, Policy, Rule
from tproxy.core.reason import Deny, Reason

WEB = SpiffeId.workload("cluster.local", "shop", "web")
DB = SpiffeId.workload("cluster.local", "data", "db")
HERE = parse_address("10.0.0.7")

# small worlds, so that rules and callers meet often
ports = st.sampled_from([80, 443, 8080])
names = st.sampled_from(["shop", "data"])
accounts = st.sampled_from(["web", "db"])
callers = st.none() | st.builds(SpiffeId.workload, st.sampled_from(["cluster.local", "other"]), names, accounts)
sources = st.sampled_from(["10.0.0.7", "10.1.0.7", "fd00::7"]).map(parse_address)
patterns = st.sampled_from(["ns/shop/sa/web", "ns/*/sa/db", "ns/data/sa/*"]).map(
    lambda text: IdPattern.parse(text, "cluster.local")
)
networks = st.sampled_from(["10.0.0.0/16", "10.0.0.7", "fd00::/8"]).map(parse_network)
rules = st.builds(
    Rule,
    name=st.sampled_from(["a", "b", "c"]),
    ports=st.frozensets(ports, max_size=2),
    ids=st.lists(patterns, max_size=2).map(tuple),
    namespaces=st.frozensets(names, max_size=1),
    sources=st.lists(networks, max_size=2).map(tuple),
)
policies = st.lists(rules, max_size=4).map(lambda made: Policy(tuple(made)))


def call(port: int, peer: SpiffeId | None, source: Address) -> Call:
    """What our own rules look at; they do not ask for the target."""
    return Call(port, peer, source, HERE)


def reason_of(answer: Allow | Deny) -> Reason | None:
    return answer.reason if isinstance(answer, Deny) else None


@given(ports, callers, sources)
def test_without_rules_everyone_is_allowed(port: int, caller: SpiffeId | None, source: Address) -> None:
    assert Policy(()).check(call(port, caller, source)) == Allow(f"default: no rule selects port {port}")


@given(policies, ports, callers, sources)
def test_a_port_that_no_rule_selects_is_open_and_one_that_a_rule_selects_needs_a_rule_that_allows(
    policy: Policy, port: int, caller: SpiffeId | None, source: Address
) -> None:
    selecting = [rule for rule in policy.rules if rule.selects(port)]
    allowing = [rule for rule in selecting if rule.allows(caller, source)]
    match policy.check(call(port, caller, source)):
        case Allow(rule):
            assert (not selecting and rule.startswith("default")) or rule == allowing[0].name
        case Deny(reason, why, rule):
            assert reason is Reason.POLICY and selecting and not allowing
            assert rule == ", ".join(rule.name for rule in selecting)
            assert str(source) in why and (str(caller) if caller else "without identity") in why


@given(policies, rules, ports, callers, sources)
def test_a_rule_for_other_ports_changes_nothing(
    policy: Policy, rule: Rule, port: int, caller: SpiffeId | None, source: Address
) -> None:
    if not rule.selects(port):
        assert Policy((rule, *policy.rules)).check(call(port, caller, source)) == policy.check(
            call(port, caller, source)
        )


@given(policies, ports, callers, sources)
def test_the_order_of_the_rules_does_not_matter(
    policy: Policy, port: int, caller: SpiffeId | None, source: Address
) -> None:
    turned = Policy(policy.rules[::-1])
    assert reason_of(turned.check(call(port, caller, source))) == reason_of(policy.check(call(port, caller, source)))


@given(rules, sources)
def test_without_an_id_no_condition_on_ids_or_namespaces_holds(rule: Rule, source: Address) -> None:
    if rule.ids or rule.namespaces:
        assert not rule.allows(None, source)


@given(rules, callers, sources)
def test_every_given_condition_must_hold_and_one_value_of_each_is_enough(
    rule: Rule, caller: SpiffeId | None, source: Address
) -> None:
    by_id = not rule.ids or any(caller is not None and pattern.matches(caller) for pattern in rule.ids)
    by_namespace = not rule.namespaces or (caller is not None and caller.namespace in rule.namespaces)
    by_source = not rule.sources or any(source.version == net.version and source in net for net in rule.sources)
    assert rule.allows(caller, source) is (by_id and by_namespace and by_source)


@given(ports, callers, sources)
def test_a_rule_without_conditions_allows_everyone_on_every_port(
    port: int, caller: SpiffeId | None, source: Address
) -> None:
    assert Policy((Rule("open"),)).check(call(port, caller, source)) == Allow("open")


def test_a_rule_that_selects_the_port_denies_everyone_it_does_not_name() -> None:
    policy = Policy((Rule("only-web", frozenset({80}), (IdPattern.parse("ns/shop/sa/web", "cluster.local"),)),))
    assert policy.check(call(80, WEB, HERE)) == Allow("only-web")
    assert policy.check(call(80, DB, HERE)) == Deny(Reason.POLICY, f"{DB} at 10.0.0.7 is not allowed", "only-web")
    assert policy.check(call(80, None, HERE)) == Deny(
        Reason.POLICY, "a caller without identity at 10.0.0.7 is not allowed", "only-web"
    )
    assert reason_of(policy.check(call(81, DB, HERE))) is None


def test_a_namespace_is_one_of_our_ids_form_and_not_any_second_segment() -> None:
    rule = Rule("shop", namespaces=frozenset({"shop"}))
    assert rule.allows(WEB, HERE)
    assert not rule.allows(SpiffeId.parse("spiffe://cluster.local/workload/shop/sa/web"), HERE)


@pytest.mark.parametrize(("source", "allowed"), [("10.0.0.7", True), ("10.1.0.7", False), ("::ffff:10.0.0.7", True)])
def test_a_source_is_a_network_of_the_caller_s_address(source: str, allowed: bool) -> None:
    rule = Rule("near", sources=(parse_network("10.0.0.0/16"),))
    assert rule.allows(None, parse_address(source)) is allowed
