"""Egress by rule as values: which rule takes a connection, which router carries it, and what cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core import decide
from tproxy.core.address import Endpoint, parse_address
from tproxy.core.config import Config
from tproxy.core.directory import Absent, Entry, Kind
from tproxy.core.egress.routes import (
    EgressRoutes,
    EgressRule,
    Names,
    Parity,
    Router,
    Unread,
    choose,
    last_octet,
    order,
    parity,
)
from tproxy.core.fields import ConfigError
from tproxy.core.policy import recheck
from tproxy.core.reason import Deny, Reason

ROUTERS = {
    "egress-router1": {"host": "egress-router1.default.svc.cluster.local"},
    "egress-router2": {"host": "egress-router2.default.svc.cluster.local"},
}
BOTH = [
    {"name": "even", "ports": [80, 443], "sourceOctet": "even", "routers": ["egress-router1"]},
    {"name": "odd", "ports": [80, 443], "sourceOctet": "odd", "routers": ["egress-router2"]},
]
OUTSIDE, POD = Endpoint.parse("93.184.216.34:443"), Endpoint.parse("10.0.0.2:40000")


def config(rules: list[dict[str, Any]] | None = None, top: dict[str, Any] | None = None, **section: Any) -> Config:
    routes = {"routers": ROUTERS, "rules": BOTH if rules is None else rules, **section}
    return Config.parse({"egressRoutes": routes, **(top or {})}, "sidecar.yaml")


def rule(name: str = "r", *routers: tuple[str, int], **conditions: Any) -> EgressRule:
    made = tuple((Router(each, each), weight) for each, weight in routers or (("one", 1),))
    return EgressRule(name, made, **conditions)


def went(config: Config, source: str, target: str = "93.184.216.34:443", sni: str | None = None) -> str:
    """The router's name as it stands in records, or how it was decided else."""
    wanted = Endpoint.parse(target)
    answer = decide.egress(wanted, False, config, source=Endpoint(parse_address(source), 1), sni=sni)
    if not isinstance(answer, decide.Routed):
        return type(answer).__name__
    router = answer.by.routers[0][0]
    return router.cluster(router.port(wanted.port) or 0, config.egress_routes.names)


@pytest.mark.parametrize(
    ("text", "octet"),
    [
        ("1.2.3.4:5678", 4),
        ("10.244.0.94:33198", 94),
        ("127.0.0.1", 1),
        ("10.0.0.255", 255),
        ("172.16.1.0", 0),
        ("[::ffff:1.2.3.100]:8080", 100),
        ("::ffff:192.168.1.100", 100),
        ("not-an-ip", None),
        ("1.2.3.256", None),
        ("192.168.1.", None),
        ("192.168.1.abc", None),
        ("", None),
        ("[fd00::64]:8080", None),
    ],
)
def test_002_02_the_last_octet_of_a_source(text: str, octet: int | None) -> None:
    assert last_octet(text) == octet


@pytest.mark.parametrize(
    ("source", "router"),
    [
        ("192.168.1.2", "egress-router1"),
        ("10.0.0.4", "egress-router1"),
        ("172.16.1.100", "egress-router1"),
        ("::ffff:192.168.1.100", "egress-router1"),
        ("192.168.1.3", "egress-router2"),
        ("10.0.0.5", "egress-router2"),
        ("::ffff:192.168.1.101", "egress-router2"),
        ("fd00::1", "Deny"),
    ],
)
def test_002_02_even_goes_to_the_first_router_and_odd_to_the_second(source: str, router: str) -> None:
    """What has no octet is not rewritten: here it is refused, as without a rule."""
    assert went(config(), source) == router


@given(st.ip_addresses().map(lambda ip: parse_address(str(ip))))
def test_002_02_every_ipv4_source_has_one_router_and_every_other_none(source: Any) -> None:
    found = went(config(), str(source))
    if source.version == 6:
        assert found == "Deny"
    else:
        assert found == ("egress-router2" if source.packed[-1] & 1 else "egress-router1")


@pytest.mark.parametrize(("port", "at"), [(443, 8080), (80, 8081), (1234, 8080)])
def test_002_03_the_routers_port_follows_the_destination_port_and_names_follow_the_style(port: int, at: int) -> None:
    anything = [{"routers": ["egress-router1"]}]
    target = f"93.184.216.34:{port}"
    assert went(config(anything), "10.0.0.2", target) == "egress-router1"
    istio = f"outbound|{at}||egress-router1.default.svc.cluster.local"
    assert went(config(anything, names="istio"), "10.0.0.2", target) == istio


def test_002_03_ports_of_ones_own_replace_the_table() -> None:
    section = {"routers": {"r": {"host": "10.9.9.9", "ports": {"443": 1443, "*": 1000}}, "only": {"host": "10.9.9.8"}}}
    made = config([{"routers": ["r"]}], **section, names="istio")
    assert [went(made, "10.0.0.2", f"1.1.1.1:{port}") for port in (443, 80)] == [
        "outbound|1443||10.9.9.9",
        "outbound|1000||10.9.9.9",
    ]
    assert Router("r", "h", ((443, 1443),), 0).port(80) is None


def test_002_04_without_a_rule_for_port_80_it_is_refused_and_with_one_it_is_routed() -> None:
    only_443 = [{**each, "ports": [443]} for each in BOTH]
    assert went(config(only_443), "10.0.0.2", "93.184.216.34:80") == "Deny"
    assert went(config(), "10.0.0.2", "93.184.216.34:80") == "egress-router1"


def test_the_refusal_says_that_no_rule_took_it() -> None:
    answer = decide.egress(Endpoint.parse("93.184.216.34:22"), False, config(), source=POD, sni=None)
    assert isinstance(answer, Deny) and answer.reason is Reason.EGRESS_DENIED
    assert answer.why.endswith("is not in the mesh, and no rule of egressRoutes takes it")


@pytest.mark.parametrize(
    ("sni", "found"),
    [
        ("httpbin.org", "exact"),
        ("api.example.com", "wild"),
        ("a.b.example.com", "wild"),
        ("example.com", "rest"),
        ("other.org", "rest"),
        ("httpbin.org.", "rest"),
        (None, "rest"),
    ],
)
def test_names_are_matched_exactly_or_by_wildcard_and_the_first_rule_wins(sni: str | None, found: str) -> None:
    rules = (rule("exact", sni=("httpbin.org",)), rule("wild", sni=("*.example.com",)), rule("rest"))
    chosen = choose(EgressRoutes(rules), POD, OUTSIDE, sni)
    assert isinstance(chosen, EgressRule) and chosen.name == found


def test_the_first_bytes_are_looked_at_only_if_the_answer_hangs_on_a_name() -> None:
    named = rule("named", sni=("a.b",), ports=frozenset({443}))
    assert choose(EgressRoutes((named, rule("rest"))), POD, OUTSIDE, Unread.UNREAD) is Unread.UNREAD
    early = rule("early", ports=frozenset({443}))
    assert choose(EgressRoutes((early, named)), POD, OUTSIDE, Unread.UNREAD) == early
    assert choose(EgressRoutes((named,)), POD, Endpoint.parse("1.1.1.1:25"), Unread.UNREAD) is None


NAMES = st.sampled_from([None, "a.b", "x.a.b", "other"])
RULES = st.lists(
    st.builds(
        lambda number, ports, sni, octet: rule(f"r{number}", ports=frozenset(ports), sni=tuple(sni), octet=octet),
        st.integers(0, 99),
        st.sets(st.sampled_from([80, 443])),
        st.lists(st.sampled_from(["a.b", "*.a.b", "*.b"]), max_size=2),
        st.sampled_from([None, *Parity]),
    ),
    max_size=5,
)


@given(RULES, st.sampled_from([80, 443, 22]), NAMES)
def test_what_is_decided_without_the_name_is_decided_with_any_and_the_first_match_wins(
    rules: list[EgressRule], port: int, name: str | None
) -> None:
    routes, target = EgressRoutes(tuple(rules)), Endpoint.parse(f"1.2.3.4:{port}")
    blind, seeing = (choose(routes, POD, target, sni) for sni in (Unread.UNREAD, name))
    assert seeing is not Unread.UNREAD
    assert blind is Unread.UNREAD or blind is seeing
    assert seeing is next((one for one in rules if not one.misses(POD, target, name)), None)


def test_the_mesh_goes_before_rules_and_so_does_what_nobody_knows_yet() -> None:
    everything = config([{"routers": ["egress-router1"]}])
    assert isinstance(decide.egress(Endpoint.parse("10.0.0.9:443"), False, everything, source=POD), decide.Mtls)
    assert isinstance(decide.egress(Endpoint.parse("10.0.0.9:443"), True, everything, source=POD), decide.Plain)
    away = decide.egress(OUTSIDE, False, everything, Absent.UNKNOWN, POD)
    assert isinstance(away, Deny) and away.reason is Reason.DIRECTORY_AWAY


def test_a_service_that_the_directory_knows_is_routed_only_by_a_rule_that_names_its_network() -> None:
    found = Entry(Kind.SERVICE, "shop/db")
    target = Endpoint.parse("10.0.0.9:443")
    for cidrs, kind in (({}, Deny), ({"cidrs": ["10.0.0.0/24"]}, decide.Routed)):
        made = config([{"routers": ["egress-router1"], **cidrs}])
        assert isinstance(decide.egress(target, False, made, found, POD), kind)


WEIGHTS = st.lists(st.integers(0, 5), min_size=1, max_size=6)
DRAWS = st.floats(0, 1, exclude_max=True)


@given(WEIGHTS, st.sets(st.integers(0, 5)), st.data())
def test_every_healthy_router_has_its_turn_once_and_stand_bys_come_last(
    weights: list[int], down: set[int], data: st.DataObject
) -> None:
    made = rule("r", *((f"r{number}", weight) for number, weight in enumerate(weights)))
    turns = order(made, 443, lambda host, _: int(host[1:]) not in down, lambda: data.draw(DRAWS))
    names = [router.name for router, _ in turns]
    assert sorted(names) == [f"r{number}" for number in range(len(weights)) if number not in down]
    standing_by = [weights[int(name[1:])] == 0 for name in names]
    assert standing_by == sorted(standing_by)


def test_turns_follow_the_weights() -> None:
    made = rule("r", ("often", 3), ("seldom", 1), ("never", 0))
    firsts = [order(made, 443, lambda *_: True, lambda mark=mark: mark / 8)[0][0].name for mark in range(8)]  # type: ignore[misc]
    assert firsts == ["often"] * 6 + ["seldom"] * 2


def test_a_router_without_a_port_for_it_is_not_asked() -> None:
    one, other = Router("one", "h1", ((443, 8080),), 0), Router("other", "h2")
    made = EgressRule("r", ((one, 1), (other, 1)))
    assert [router.name for router, _ in order(made, 80, lambda *_: True, lambda: 0.0)] == ["other"]


@given(st.integers(0, 255))
def test_parity(octet: int) -> None:
    assert (parity(octet) is Parity.EVEN) == (octet % 2 == 0)


def test_a_running_connection_may_stay_only_where_it_would_go_now() -> None:
    now = config([{"name": "one", "routers": ["egress-router1"]}])
    facts = OUTSIDE, False, None, now, Absent.UNLISTED, POD, None
    assert recheck.egress(*facts, "egress-router1") is None
    for elsewhere in ("egress-router2", ""):
        found = recheck.egress(*facts, elsewhere)
        assert found is not None and found.why.endswith("is reached through egress-router1 only now")
    direct = config([{"name": "one", "routers": ["egress-router1"], "otherwise": "direct"}])
    assert recheck.egress(OUTSIDE, False, None, direct, Absent.UNLISTED, POD, None, "") is None
    gone = recheck.egress(OUTSIDE, False, None, config([]), Absent.UNLISTED, POD, None, "egress-router1")
    assert gone is not None and gone.reason is Reason.EGRESS_DENIED


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"rules": [{"routers": ["egress-routr1"]}]}, "rules[0].routers.egress-routr1: is no router; these are"),
        ({"rules": [{}]}, "rules[0].routers: is missing"),
        ({"rules": [{"routers": {"egress-router1": -1}}]}, "expected a weight"),
        ({"rules": [{"routers": ["egress-router1"], "ports": []}]}, "rules[0].ports: is empty"),
        ({"rules": [{"routers": ["egress-router1"], "sni": ["*"]}]}, "leave sni out"),
        ({"rules": [{"routers": ["egress-router1"], "sni": ["a.*.b"]}]}, "a wildcard is the whole first label"),
        ({"rules": [{"routers": ["egress-router1"], "cidrs": ["1.2.3.4/8"]}]}, "has host bits set"),
        ({"rules": [{"routers": ["egress-router1"], "sourceOctet": "evn"}]}, "did you mean 'even'"),
        ({"rules": [{"routers": ["egress-router1"], "otherwise": "pass"}]}, "refuse, direct"),
        ({"rules": [{"name": "a", "routers": ["egress-router1"]}] * 2}, "is the name of an earlier rule"),
        ({"rules": [{"routers": ["egress-router1"], "port": [1]}]}, "did you mean 'ports'"),
        ({"routers": {"r": {}}}, "routers.r.host: is missing"),
        ({"routers": {"r": {"host": "a b"}}}, "expected a host's name or address"),
        ({"routers": {"r": {"host": "h", "ports": {}}}}, "which of the router's ports takes what?"),
        ({"routers": {"r": {"host": "h", "ports": {"https": 1}}}}, "expected a port, 1 to 65535, or *"),
        ({"routers": {"r": {"host": "h", "ports": {443: 1}}}, "rules": [{"routers": ["r"], "ports": [80]}]}, "nor *"),
        ({"names": "Istio"}, "did you mean 'istio'"),
        ({"file": "/etc/egress.yaml"}, "file: '/etc/egress.yaml': stands alone"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_field(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**section)
    assert "sidecar.yaml: egressRoutes." in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize(
    ("capture", "rule", "said"),
    [
        ({"excludeOutboundPorts": [80]}, {"ports": [80]}, "capture.excludeOutboundPorts has it"),
        ({"includeOutboundPorts": [443]}, {"ports": [80]}, "capture.includeOutboundPorts has it not"),
        ({"excludeOutboundIPRanges": ["1.0.0.0/8"]}, {"cidrs": ["1.2.0.0/16"]}, "capture.excludeOutboundIPRanges"),
        ({"includeOutboundIPRanges": ["10.0.0.0/8"]}, {"cidrs": ["1.2.0.0/16"]}, "capture.includeOutboundIPRanges"),
    ],
)
def test_a_rule_for_what_is_never_captured_is_refused(capture: dict[str, Any], rule: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config([{"routers": ["egress-router1"], **rule}], {"capture": capture})
    assert said in str(caught.value)
    config([{"routers": ["egress-router1"], **rule}], {"capture": {}})


def test_names_have_a_style() -> None:
    assert Router("egress-router1", "h").cluster(8080, Names.STANDALONE) == "egress-router1"
