"""Policies that control tells: nobody is let in before the first set, and a set counts whole or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tests.istio import asked, auth, peer
from tests.pods import JSON
from tproxy.core.config import Config, Mode
from tproxy.core.fields import ConfigError
from tproxy.core.identity import SpiffeId
from tproxy.core.policy.effective import settle, with_set
from tproxy.core.policy.policy import Allow
from tproxy.core.policy.told import Told
from tproxy.core.reason import Deny, Reason
from tproxy.core.settings import Directory
from tproxy.identity.policies import Policies
from tproxy.wire.policies_pb2 import PolicySet

OWN = SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/web")
BASE = {"policies": {"control": True}, "directory": {"address": "control:15013"}}
WEB = "ns/shop/sa/web"


def told(*objects: Any, root: str = "istio-system") -> Told:
    return Told("v", "shop", root, tuple(json.dumps(one).encode() for one in objects))


def settled(given_set: Told | None, **config: Any) -> Config:
    return settle(with_set(Config.parse({**BASE, **config}), given_set), OWN)


# what a set means


@pytest.mark.parametrize("inbound", [{}, {"mode": "permissive"}, {"mode": "disable"}, {"ports": {80: "permissive"}}])
def test_until_the_first_set_every_port_is_strict_and_nobody_is_let_in(inbound: dict[str, Any]) -> None:
    config = settled(None, inbound=inbound)
    assert config.mode_of(80) is Mode.STRICT
    for who in (WEB, ""):
        answer = asked(config, who)
        assert isinstance(answer, Deny) and answer.reason is Reason.POLICIES_AWAY
    assert config.mode_rule(80) == "mode strict of no set of policies from control is in force yet"


def test_a_set_without_objects_leaves_what_the_configuration_says() -> None:
    config = settled(told(), inbound={"mode": "permissive"})
    assert config.mode_of(80) is Mode.PERMISSIVE
    assert isinstance(asked(config, WEB), Allow)


def test_the_root_namespace_is_the_one_that_control_says() -> None:
    deny = auth("action: DENY\nrules: [{}]", "mesh/closed")
    assert isinstance(asked(settled(told(deny, root="mesh")), WEB), Deny)
    assert isinstance(asked(settled(told(deny)), WEB), Allow)


def test_a_configuration_for_another_namespace_than_our_svid_s_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"workload\.namespace: 'data': control tells of shop"):
        settled(told(), workload={"namespace": "data"})
    assert settled(told(), workload={"namespace": "shop"}).held == "v"


def test_an_object_in_a_file_and_from_control_is_a_contradiction() -> None:
    one = peer("mtls: {mode: STRICT}")
    config = with_set(Config.parse(BASE), told(one))
    with pytest.raises(ConfigError, match="PeerAuthentication shop/default"):
        with_set(config, told(one))


def test_one_object_that_applies_and_cannot_be_read_refuses_the_set_and_names_itself() -> None:
    bad = auth("rules: [{to: [{operation: {paths: [/a]}}]}]", "shop/http")
    with pytest.raises(ConfigError, match=r"control \(AuthorizationPolicy shop/http\): .*paths: \['/a'\]"):
        settled(told(peer("mtls: {mode: STRICT}"), bad))


@given(st.lists(st.binary(max_size=50) | JSON.map(lambda one: json.dumps(one).encode()), max_size=3))
def test_nothing_but_a_configuration_error_comes_of_any_objects(objects: list[bytes]) -> None:
    try:
        settle(with_set(Config.parse(BASE), Told("v", "shop", "istio-system", tuple(objects))), OWN)
    except ConfigError as error:
        assert str(error).isprintable()


# how it arrives


def client() -> Policies:
    return Policies(Directory("control:15013"), "cluster.local")


def part(**said: Any) -> bytes:
    return PolicySet(**{"version": "v1", "namespace": "shop", "root": "istio-system", **said}).SerializeToString()


def test_pieces_count_when_the_last_one_is_there() -> None:
    made = client()
    made.take(part(objects=[b"1"], more=True))
    assert made.newest is None and not made.news.is_set()
    made.take(part(objects=[b"2"]))
    assert made.newest == Told("v1", "shop", "istio-system", (b"1", b"2")) and made.news.is_set()


def test_pieces_of_a_stream_that_ended_are_forgotten() -> None:
    made = client()
    made.take(part(objects=[b"1"], more=True))
    made.interrupted()
    made.take(part(objects=[b"2"]))
    assert made.newest is not None and made.newest.objects == (b"2",)


@pytest.mark.parametrize(
    "wrong",
    [
        part(version="v2"),
        part(namespace="data"),
        part(root="mesh"),
        PolicySet(version="v1", unchanged=True).SerializeToString(),
    ],
)
def test_another_set_in_the_middle_of_one_is_an_error_and_changes_nothing(wrong: bytes) -> None:
    made = client()
    made.take(part(objects=[b"1"], more=True))
    with pytest.raises(ValueError, match=r"set in pieces|nothing else is said"):
        made.take(wrong)
    assert made.newest is None


@pytest.mark.parametrize("missing", ["version", "namespace", "root"])
def test_a_set_that_does_not_say_what_it_is_is_an_error(missing: str) -> None:
    with pytest.raises(ValueError, match="set in pieces"):
        client().take(part(**{missing: ""}))


def test_a_set_that_is_never_complete_is_an_error_before_it_fills_the_memory() -> None:
    made = client()
    with pytest.raises(ValueError, match="more than"):
        for _ in range(100):
            made.take(part(objects=[b"x" * (1 << 20)], more=True))


def test_unchanged_is_believed_of_what_we_have_only() -> None:
    made = client()
    with pytest.raises(ValueError, match="nothing else is said"):
        made.take(PolicySet(version="v1", unchanged=True).SerializeToString())
    made.take(part())
    made.take(PolicySet(version="v1", unchanged=True).SerializeToString())


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_any_bytes_are_a_set_or_an_error(messages: list[bytes]) -> None:
    made = client()
    for message in messages:
        try:
            made.take(message)
        except (ValueError, DecodeError):
            made.interrupted()
    assert made.newest is None or made.newest.version


def test_ready_says_why_until_a_set_is_in_force_and_a_refused_one_keeps_the_last() -> None:
    made = client()
    assert "nothing came yet" in made.not_ready()
    made.take(part())
    made.refused("spec.rules: bad")
    assert "spec.rules: bad" in made.not_ready()
    made.taken("v1")
    assert (made.not_ready(), made.status.refused, made.status.in_force) == ("", "", "v1")
    made.take(part(version="v2", objects=[b"{}"]))
    made.refused("spec.rules: bad")
    made.taken("v1")  # a renewed certificate puts what is in force in force again
    assert (made.not_ready(), made.status.refused, made.status.in_force) == ("", "spec.rules: bad", "v1")
