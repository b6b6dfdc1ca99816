"""Egress and ingress as values: which facts lead to plain bytes, to mTLS, or to a refusal with its reason."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.address import Endpoint, parse_address
from tproxy.core.config import Config, Mode
from tproxy.core.decide import (
    MESH_ALPN,
    First,
    Gone,
    Mtls,
    Plain,
    Silence,
    Terminate,
    arrival,
    authorize,
    egress,
    expected,
    ingress,
)
from tproxy.core.hello import Hello, Malformed, NeedMore, NotTls, parse
from tproxy.core.identity import IdPattern, SpiffeId
from tproxy.core.policy.policy import Allow
from tproxy.core.reason import Deny, Reason

WEB = SpiffeId.workload("cluster.local", "shop", "web")
ONLY_WEB = IdPattern.parse("ns/shop/sa/web", "cluster.local")
CALLER = Endpoint.parse("10.0.0.9:40000")
PRIVATE_PORTS = (15000, 15001, 15006)

addresses = st.ip_addresses().map(lambda ip: parse_address(str(ip)))
ports = st.integers(1, 65535)
targets = st.builds(Endpoint, addresses, ports)


def config(**data: Any) -> Config:
    return Config.parse(data)


MESH = config(
    mesh=[
        {"cidr": "10.0.0.0/8", "ids": "ns/shop/sa/web"},
        {"cidr": "10.0.9.0/24", "mtls": False},
        {"cidr": "10.0.9.7"},
        {"cidr": "fd00::/8"},
    ]
)

# egress


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("10.1.1.1:80", Mtls(Endpoint.parse("10.1.1.1:80"), (ONLY_WEB,), "mesh 10.0.0.0/8")),
        ("10.0.9.1:80", Plain(Endpoint.parse("10.0.9.1:80"), "mesh 10.0.9.0/24: mtls: false")),
        ("10.0.9.7:80", Mtls(Endpoint.parse("10.0.9.7:80"), (), "mesh 10.0.9.7/32")),
        ("[fd00::1]:80", Mtls(Endpoint.parse("[fd00::1]:80"), (), "mesh fd00::/8")),
        ("8.8.8.8:53", Deny(Reason.EGRESS_DENIED, "8.8.8.8:53 is not in the mesh", "egress: deny")),
    ],
)
def test_the_most_specific_mesh_entry_decides_and_names_itself(target: str, answer: Plain | Mtls | Deny) -> None:
    assert egress(Endpoint.parse(target), False, MESH) == answer


@given(targets)
def test_outside_the_mesh_passthrough_is_plain_and_deny_is_refused(target: Endpoint) -> None:
    assert egress(target, False, config(mesh=[], egress="passthrough")) == Plain(target, "egress: passthrough")
    refused = egress(target, False, config(mesh=[]))
    assert isinstance(refused, Deny) and refused.reason is Reason.EGRESS_DENIED


@given(targets, st.sampled_from(["passthrough", "deny"]))
def test_a_destination_in_the_mesh_is_never_plain_unless_its_entry_says_so(target: Endpoint, outside: str) -> None:
    everywhere = config(mesh=[{"cidr": "0.0.0.0/0"}, {"cidr": "::/0"}], egress=outside)
    assert isinstance(egress(target, False, everywhere), Mtls)


@given(targets, st.booleans(), st.booleans())
def test_no_entry_that_is_less_specific_can_take_mtls_away(target: Endpoint, is_local: bool, narrow: bool) -> None:
    wide = {"cidr": "0.0.0.0/0" if target.ip.version == 4 else "::/0", "mtls": not narrow}
    own = {"cidr": str(target.ip), "mtls": narrow}
    for mesh in ([wide, own], [own, wide]):
        answer = egress(target, False, config(mesh=mesh))
        assert isinstance(answer, Mtls) is narrow and not isinstance(answer, Deny)


@given(addresses, st.sampled_from(PRIVATE_PORTS))
def test_the_application_cannot_call_the_sidecar_s_own_ports(ip: Any, port: int) -> None:
    answer = egress(Endpoint(ip, port), True, MESH)
    assert isinstance(answer, Deny) and answer.reason is Reason.OWN_PORT and str(port) in answer.why


@given(addresses, st.sampled_from(PRIVATE_PORTS))
def test_the_same_port_of_another_pod_is_a_destination_like_any_other(ip: Any, port: int) -> None:
    answer = egress(Endpoint(ip, port), False, MESH)
    assert not isinstance(answer, Deny) or answer.reason is Reason.EGRESS_DENIED


@given(targets.filter(lambda target: target.port not in PRIVATE_PORTS))
def test_what_stays_in_the_pod_is_plain_whatever_the_mesh_says(target: Endpoint) -> None:
    assert egress(target, True, MESH) == Plain(target, "own address: stays in this pod")


@given(addresses, ports)
def test_own_ports_are_the_configured_ones(ip: Any, port: int) -> None:
    moved = config(ports={"egress": 1, "ingress": 2, "admin": 3})
    assert isinstance(egress(Endpoint(ip, port), True, moved), Deny) is (port in (1, 2, 3))
    assert isinstance(arrival(Endpoint(ip, port), moved), Deny) is (port in (1, 2, 3))


# ingress


@pytest.mark.parametrize("port", PRIVATE_PORTS)
@pytest.mark.parametrize("mode", Mode)
def test_a_caller_that_addresses_the_sidecar_itself_is_refused_in_every_mode(mode: Mode, port: int) -> None:
    answer = arrival(Endpoint.parse(f"10.0.0.7:{port}"), config(inbound={"mode": mode.value}))
    assert isinstance(answer, Deny) and answer.reason is Reason.OWN_PORT


@given(targets.filter(lambda target: target.port not in PRIVATE_PORTS), st.sampled_from(Mode), st.sampled_from(Mode))
def test_a_caller_meets_the_mode_of_the_port(target: Endpoint, own: Mode, other: Mode) -> None:
    made = config(inbound={"mode": other.value, "ports": {target.port: own.value}})
    assert arrival(target, made) is own


def client_hello(*alpn: str) -> bytes:
    """What a real client sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    out = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="web").do_handshake()
    return out.read()


OURS, THEIRS = client_hello(MESH_ALPN), client_hello("h2", "http/1.1")
FIRST: dict[str, First] = {
    "hello of the mesh": parse(OURS),
    "hello of Istio": parse(client_hello("istio-peer-exchange", "istio")),
    "hello of someone else": parse(THEIRS),
    "hello without ALPN": parse(client_hello()),
    "half a hello": parse(OURS[:100]),
    "plaintext": parse(b"GET / HTTP/1.1\r\n"),
    "malformed": parse(b"\x16\x09" + bytes(60)),
    "silence": Silence(0.3),
    "gone": Gone(),
}
T, P = "terminate", "plain"
MATRIX: dict[Mode, dict[str, str | Reason]] = {
    Mode.STRICT: {
        "hello of the mesh": T,
        "hello of Istio": T,
        "hello of someone else": T,  # the handshake asks for its certificate
        "hello without ALPN": T,
        "half a hello": Reason.HELLO_TIMEOUT,
        "plaintext": Reason.PLAINTEXT,
        "malformed": Reason.HELLO_MALFORMED,
        "silence": Reason.HELLO_TIMEOUT,
        "gone": Reason.HELLO_CLOSED,
    },
    Mode.PERMISSIVE: {name: T if name in ("hello of the mesh", "hello of Istio") else P for name in FIRST},
    Mode.DISABLE: dict.fromkeys(FIRST, P),
}
CASES = [(mode, name, MATRIX[mode][name]) for mode in Mode for name in FIRST]


def test_the_examples_are_what_their_names_say() -> None:
    kinds = [type(first) for first in FIRST.values()]
    assert kinds == [Hello, Hello, Hello, Hello, NeedMore, NotTls, Malformed, Silence, Gone]


@pytest.mark.parametrize(("mode", "name", "answer"), CASES, ids=[f"{mode}, {name}" for mode, name, _ in CASES])
def test_the_mode_and_the_first_bytes_decide(mode: Mode, name: str, answer: str | Reason) -> None:
    target = Endpoint.parse("10.0.0.7:8080")
    match ingress(target, mode, FIRST[name]):
        case Terminate(to):
            assert answer == T and to == target
        case Plain(to, rule):
            assert answer == P and to == target and rule == f"mode {mode} on port 8080"
        case Deny(reason, why, rule):
            assert answer is reason and why and rule == "mode strict"


@given(
    st.builds(NotTls, st.text())
    | st.builds(Malformed, st.text())
    | st.builds(NeedMore, st.integers(0, 100), st.integers(0, 100))
    | st.builds(Silence, st.floats(0, 10))
    | st.just(Gone())
)
def test_a_strict_port_never_lets_anything_but_a_client_hello_pass(first: First) -> None:
    assert isinstance(ingress(Endpoint.parse("10.0.0.7:80"), Mode.STRICT, first), Deny)


@given(st.binary(max_size=200))
def test_bytes_that_no_client_hello_begins_with_are_refused_on_a_strict_port(data: bytes) -> None:
    assert not isinstance(ingress(Endpoint.parse("10.0.0.7:80"), Mode.STRICT, parse(data)), Plain)


# who it is

domains = st.sampled_from(["cluster.local", "other.local"])
peers = st.builds(SpiffeId.workload, domains, st.sampled_from(["shop", "data"]), st.sampled_from(["web", "db"]))
expectations = st.lists(
    st.sampled_from(
        ["ns/shop/sa/web", "ns/*/sa/db", "spiffe://other.local/ns/*/sa/*", "spiffe://other.local/ns/shop/sa/web"]
    ).map(lambda text: IdPattern.parse(text, "cluster.local")),
    max_size=3,
).map(tuple)


@given(peers, expectations)
def test_the_peer_we_dialled_must_be_of_our_trust_domain_and_one_of_the_expected(
    peer: SpiffeId, expect: tuple[IdPattern, ...]
) -> None:
    match expected(peer, expect, MESH, "mesh 10.0.0.0/8"):
        case Allow(rule):
            assert peer.trust_domain == "cluster.local" and rule == "mesh 10.0.0.0/8"
            assert not expect or any(pattern.matches(peer) for pattern in expect)
        case Deny(Reason.PEER_FOREIGN, why):
            assert peer.trust_domain == "other.local" and str(peer) in why
        case Deny(reason, why, rule):
            assert reason is Reason.PEER_UNEXPECTED and rule == "mesh 10.0.0.0/8" and str(peer) in why
            assert expect and not any(pattern.matches(peer) for pattern in expect)


def test_an_unexpected_peer_is_named_beside_the_expected_ones() -> None:
    wanted = (IdPattern.parse("ns/shop/sa/web", "cluster.local"), IdPattern.parse("ns/shop/sa/db", "cluster.local"))
    answer = expected(SpiffeId.workload("cluster.local", "shop", "spy"), wanted, MESH, "mesh 10.0.0.0/8")
    assert isinstance(answer, Deny)
    assert answer.why == (
        "expected spiffe://cluster.local/ns/shop/sa/web or spiffe://cluster.local/ns/shop/sa/db, "
        "found spiffe://cluster.local/ns/shop/sa/spy"
    )


@given(peers, targets)
def test_a_caller_of_a_foreign_trust_domain_is_denied_even_where_no_rule_selects(
    peer: SpiffeId, target: Endpoint
) -> None:
    answer = authorize(peer, CALLER, target, MESH)
    if peer.trust_domain == "cluster.local":
        assert isinstance(answer, Allow)
    else:
        assert isinstance(answer, Deny) and answer.reason is Reason.PEER_FOREIGN


def test_a_caller_meets_the_policy_of_the_port_it_called_with_its_id_and_its_address() -> None:
    rules = [{"name": "web", "ports": 80, "ids": "ns/shop/sa/web", "sources": "10.0.0.0/24"}]
    closed = config(inbound={"rules": rules})
    assert authorize(WEB, CALLER, Endpoint.parse("10.0.0.7:80"), closed) == Allow("web")
    for peer, source in ((None, CALLER), (WEB, Endpoint.parse("10.0.1.9:1"))):
        answer = authorize(peer, source, Endpoint.parse("10.0.0.7:80"), closed)
        assert isinstance(answer, Deny) and answer.reason is Reason.POLICY
    assert isinstance(authorize(None, CALLER, Endpoint.parse("10.0.0.7:81"), closed), Allow)


# other names, and other trust domains


def federation(**data: Any) -> Config:
    """Our own trust domain has an alias, and one other is known."""
    return config(trust={"aliases": ["old.local"], "federated": [{"trustDomain": "partner.example"}]}, **data)


PARTNER = SpiffeId.workload("partner.example", "shop", "web")
FORMER = SpiffeId.workload("old.local", "shop", "web")
AT_80 = Endpoint.parse("10.0.0.7:80")


@pytest.mark.parametrize("written", ["ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/web", f"{FORMER}"])
@pytest.mark.parametrize("peer", [WEB, FORMER])
def test_an_alias_is_our_own_trust_domain_on_either_side_of_a_comparison(written: str, peer: SpiffeId) -> None:
    aliased = federation(
        inbound={"rules": [{"name": "web", "ids": written}]}, mesh=[{"cidr": "10.0.0.7", "ids": written}]
    )
    assert authorize(peer, CALLER, AT_80, aliased) == Allow("web")
    assert expected(peer, aliased.mesh[0].ids, aliased, "mesh") == Allow("mesh")


def test_a_peer_of_an_alias_has_our_namespaces_and_needs_no_ids() -> None:
    closed = federation(inbound={"rules": [{"name": "shop", "namespaces": "shop"}]})
    assert authorize(FORMER, CALLER, AT_80, closed) == Allow("shop")
    assert expected(FORMER, (), closed, "mesh") == Allow("mesh")


def test_a_denial_names_the_id_that_the_certificate_bears() -> None:
    closed = federation(inbound={"rules": [{"name": "web", "ids": "ns/shop/sa/web"}]})
    spy = SpiffeId.workload("old.local", "shop", "spy")
    for answer in (authorize(spy, CALLER, AT_80, closed), expected(spy, (ONLY_WEB,), closed, "mesh")):
        assert isinstance(answer, Deny) and str(spy) in answer.why


def test_a_federated_peer_may_only_what_is_written_with_its_name() -> None:
    rules = [{"name": "partner", "ports": 80, "ids": str(PARTNER)}]
    named = federation(inbound={"rules": rules})
    assert authorize(PARTNER, CALLER, AT_80, named) == Allow("partner")
    silent = authorize(PARTNER, CALLER, Endpoint.parse("10.0.0.7:81"), named)
    assert isinstance(silent, Deny) and silent.reason is Reason.POLICY and "no rule selects port 81" in silent.why
    assert isinstance(authorize(WEB, CALLER, Endpoint.parse("10.0.0.7:81"), named), Allow)
    assert expected(PARTNER, (IdPattern.parse(str(PARTNER), "cluster.local"),), named, "mesh") == Allow("mesh")
    unnamed = expected(PARTNER, (), named, "mesh")
    assert isinstance(unnamed, Deny) and unnamed.reason is Reason.PEER_UNEXPECTED and "no ids are listed" in unnamed.why


@pytest.mark.parametrize("rule", [{"namespaces": "shop"}, {"ids": "ns/shop/sa/web"}, {"ids": "ns/*/sa/*"}])
def test_a_federated_peer_with_the_names_of_ours_is_not_ours(rule: dict[str, str]) -> None:
    answer = authorize(PARTNER, CALLER, AT_80, federation(inbound={"rules": [{"name": "ours", **rule}]}))
    assert isinstance(answer, Deny) and answer.reason is Reason.POLICY


def test_a_foreign_peer_hears_which_trust_domains_are_known() -> None:
    for answer in (
        authorize(SpiffeId.workload("evil.example", "a", "b"), CALLER, AT_80, federation()),
        expected(SpiffeId.workload("evil.example", "a", "b"), (), federation(), "mesh"),
    ):
        assert isinstance(answer, Deny) and answer.reason is Reason.PEER_FOREIGN
        assert answer.why.endswith("than cluster.local, old.local, partner.example")
