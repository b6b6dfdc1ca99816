"""Istio's PeerAuthentication: the narrowest object sets the mode, then the oldest; what it leaves open is inherited."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.istio import peer, settled
from tproxy.core import decide
from tproxy.core.address import Endpoint
from tproxy.core.config import Config, Mode
from tproxy.core.fields import ConfigError
from tproxy.core.hello import NotTls
from tproxy.core.identity import SpiffeId
from tproxy.core.policy.effective import settle
from tproxy.core.policy.manifest import manifests
from tproxy.core.reason import Deny

APP = {"app": "web"}
SELECT = "selector: {matchLabels: {app: web}}\n"


def mtls(mode: str) -> str:
    return f"mtls: {{mode: {mode}}}"


@pytest.mark.parametrize(
    ("objects", "modes"),
    [
        # (port 80, port 8080)
        ([], "strict strict"),
        ([peer(mtls("PERMISSIVE"))], "permissive permissive"),
        ([peer(mtls("DISABLE"))], "disable disable"),
        ([peer(mtls("STRICT"))], "strict strict"),
        ([peer("{}")], "strict strict"),
        ([peer(mtls("UNSET"))], "strict strict"),
        ([peer("mtls: null")], "strict strict"),
        ([peer(mtls("PERMISSIVE"), "data/default")], "strict strict"),
        ([peer(mtls("PERMISSIVE"), "istio-system/default")], "permissive permissive"),
        # narrower wins
        ([peer(mtls("PERMISSIVE"), "istio-system/default"), peer(mtls("STRICT"))], "strict strict"),
        ([peer(mtls("STRICT")), peer(mtls("PERMISSIVE"), "istio-system/default")], "strict strict"),
        ([peer(mtls("STRICT")), peer(SELECT + mtls("PERMISSIVE"), "shop/web")], "permissive permissive"),
        ([peer(SELECT + mtls("DISABLE"), "shop/web"), peer(mtls("STRICT"))], "disable disable"),
        (
            [peer(mtls("STRICT")), peer("selector: {matchLabels: {app: db}}\n" + mtls("DISABLE"), "shop/db")],
            "strict strict",
        ),
        # UNSET inherits from the next wider
        ([peer(mtls("PERMISSIVE"), "istio-system/default"), peer(mtls("UNSET"))], "permissive permissive"),
        ([peer(mtls("PERMISSIVE")), peer(SELECT + mtls("UNSET"), "shop/web")], "permissive permissive"),
        (
            [
                peer(mtls("PERMISSIVE"), "istio-system/default"),
                peer(mtls("UNSET")),
                peer(SELECT + mtls("UNSET"), "shop/web"),
            ],
            "permissive permissive",
        ),
        # ports
        ([peer(SELECT + "portLevelMtls: {8080: {mode: DISABLE}}", "shop/web")], "strict disable"),
        (
            [peer(SELECT + mtls("PERMISSIVE") + "\nportLevelMtls: {8080: {mode: STRICT}}", "shop/web")],
            "permissive strict",
        ),
        (
            [peer(SELECT + mtls("PERMISSIVE") + "\nportLevelMtls: {'8080': {mode: STRICT}}", "shop/web")],
            "permissive strict",
        ),
        (
            [peer(mtls("PERMISSIVE")), peer(SELECT + "portLevelMtls: {8080: {mode: UNSET}}", "shop/web")],
            "permissive permissive",
        ),
        (
            [peer(mtls("PERMISSIVE")), peer(SELECT + mtls("DISABLE") + "\nportLevelMtls: {8080: {}}", "shop/web")],
            "disable disable",
        ),
        # the oldest of the same scope; without a time it is the oldest of all, then the name decides
        (
            [
                peer(mtls("STRICT"), "shop/a", "2026-01-02T00:00:00Z"),
                peer(mtls("DISABLE"), "shop/b", "2026-01-01T00:00:00Z"),
            ],
            "disable disable",
        ),
        (
            [
                peer(SELECT + mtls("STRICT"), "shop/a", "2026-01-01T00:00:00+02:00"),
                peer(SELECT + mtls("DISABLE"), "shop/b", "2026-01-01T00:00:00Z"),
            ],
            "strict strict",
        ),
        ([peer(mtls("STRICT"), "shop/a", "2026-01-02T00:00:00Z"), peer(mtls("DISABLE"), "shop/b")], "disable disable"),
        (
            [
                peer(mtls("STRICT"), "shop/a", "2026-01-02T00:00:00"),
                peer(mtls("DISABLE"), "shop/b", "2026-01-01T00:00:00Z"),
            ],
            "disable disable",
        ),
        ([peer(mtls("STRICT"), "shop/b"), peer(mtls("PERMISSIVE"), "shop/a")], "permissive permissive"),
        # ports of a younger object of the workload do not count
        (
            [
                peer(SELECT + mtls("STRICT"), "shop/a"),
                peer(SELECT + "portLevelMtls: {8080: {mode: DISABLE}}", "shop/b"),
            ],
            "strict strict",
        ),
        # in the root namespace a selector makes it nobody's
        ([peer(SELECT + mtls("DISABLE"), "istio-system/web")], "strict strict"),
    ],
)
def test_the_mode_of_each_port(objects: list[dict[str, Any]], modes: str) -> None:
    config = settled(*objects, labels=APP)
    assert f"{config.mode_of(80)} {config.mode_of(8080)}" == modes


def test_the_rule_in_a_record_names_the_object_that_set_the_mode() -> None:
    web = SELECT + "portLevelMtls: {8080: {mode: STRICT}}"
    config = settled(peer(mtls("STRICT"), "istio-system/default"), peer(web, "shop/web"), labels=APP)
    assert config.mode_rule(80) == "mode strict of PeerAuthentication istio-system/default"
    assert config.mode_rule(8080) == "mode strict of PeerAuthentication shop/web"
    target = Endpoint.parse("10.0.0.9:80")
    answer = decide.ingress(target, Mode.STRICT, NotTls("first byte 0x47"), config.mode_rule(80))
    assert isinstance(answer, Deny) and answer.rule == config.mode_rule(80)
    assert settled().mode_rule(80) == "mode strict"


def test_an_object_that_does_nothing_is_told_of() -> None:
    younger = peer(mtls("DISABLE"), "shop/b", "2026-01-02T00:00:00Z")
    config = settled(peer(mtls("STRICT")), younger, peer(SELECT, "istio-system/web"), labels=APP)
    assert config.settled is not None
    assert config.settled.remarks == (
        "PeerAuthentication istio-system/web does nothing: in the root namespace Istio ignores one with a selector",
        "PeerAuthentication shop/b does nothing: PeerAuthentication shop/default is older",
    )


@pytest.mark.parametrize(
    ("inbound", "said", "modes"),
    [
        ({"mode": "strict"}, "PERMISSIVE", "strict strict"),
        ({"mode": "permissive"}, "STRICT", "strict strict"),
        ({"mode": "permissive"}, "DISABLE", "permissive permissive"),
        ({"mode": "permissive"}, "UNSET", "permissive permissive"),
        ({"ports": {8080: "strict"}}, "PERMISSIVE", "permissive strict"),
        ({"ports": {8080: "permissive"}}, "STRICT", "strict strict"),
        ({"ports": {8080: "permissive"}}, "UNSET", "strict permissive"),
        ({"mode": "strict", "ports": {8080: "disable"}}, "PERMISSIVE", "strict permissive"),
    ],
)
def test_where_the_configuration_and_an_object_set_a_mode_the_stricter_holds(
    inbound: dict[str, Any], said: str, modes: str
) -> None:
    config = settled(peer(mtls(said)), inbound=inbound)
    assert f"{config.mode_of(80)} {config.mode_of(8080)}" == modes


def test_an_object_that_would_open_what_the_configuration_closes_is_told_of() -> None:
    config = settled(peer(mtls("DISABLE")), inbound={"mode": "strict", "ports": {8080: "permissive"}})
    assert config.mode_rule(80) == "mode strict of inbound.mode"
    assert config.mode_rule(8080) == "mode permissive of inbound.ports.8080"
    assert config.settled is not None
    assert config.settled.remarks == (
        "PeerAuthentication shop/default does not open what inbound.mode closes: disable is asked for, strict holds",
        "PeerAuthentication shop/default does not open what inbound.ports.8080 closes: disable is asked for,"
        " permissive holds",
    )


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "mtls: {mode: strict}",
            "spec.mtls.mode: 'strict': expected one of UNSET, STRICT, PERMISSIVE, DISABLE; did you",
        ),
        ("mtls: {mode: MUTUAL}", "spec.mtls.mode: 'MUTUAL'"),
        ("mtls: {modes: STRICT}", "spec.mtls.modes: unknown field; did you mean 'mode'?"),
        ("mtls: STRICT", "spec.mtls: 'STRICT': expected a mapping"),
        ("portLevelMtls: {80: {mode: STRICT}}", "spec.portLevelMtls: needs a selector"),
        (SELECT + "portLevelMtls: {}", "spec.portLevelMtls: is empty"),
        (SELECT + "portLevelMtls: {0: {mode: STRICT}}", "spec.portLevelMtls.0: expected a port"),
        (SELECT + "portLevelMtls: {http: {mode: STRICT}}", "spec.portLevelMtls.http: expected a port"),
        (SELECT + "portLevelMtls: {80: STRICT}", "spec.portLevelMtls.80: 'STRICT': expected a mapping"),
        (
            SELECT + "portLevelMtls: {80: {mode: STRICT}, '80': {mode: DISABLE}}",
            "portLevelMtls: a port stands here twice",
        ),
        ("portLevelMTLS: {80: {mode: STRICT}}", "did you mean 'portLevelMtls'?"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_file_object_field_and_value(spec: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settled(peer(spec), labels=APP)
    assert said in str(caught.value)
    assert str(caught.value).startswith("0.yaml (PeerAuthentication shop/default): ")


def test_a_mode_cannot_be_tried_without_being_in_force() -> None:
    tried = peer(mtls("DISABLE"))
    tried["metadata"]["annotations"] = {"istio.io/dry-run": "true"}
    with pytest.raises(ConfigError, match="a PeerAuthentication cannot be tried"):
        settled(tried)


# the namespace


def test_the_namespace_is_that_of_our_svid_unless_the_configuration_names_one() -> None:
    config = Config.parse({}, "sidecar.yaml", manifests(peer(mtls("DISABLE")), "a.yaml"))
    assert settle(config, SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/web")).mode is Mode.DISABLE
    assert settle(config, SpiffeId.parse("spiffe://cluster.local/ns/data/sa/web")).mode is Mode.STRICT
    with pytest.raises(ConfigError, match=r"workload\.namespace: is missing: spiffe://cluster\.local/vm/db does not"):
        settle(config, SpiffeId.parse("spiffe://cluster.local/vm/db"))


def test_what_is_settled_stays_as_it_is() -> None:
    config = settled(peer(mtls("DISABLE")))
    assert settle(config, SpiffeId.parse("spiffe://cluster.local/ns/data/sa/web")) is config


def test_without_objects_nothing_is_asked_and_nothing_changes() -> None:
    config = Config.parse({}, "sidecar.yaml")
    assert settle(config, None) is config


# properties

_modes = st.sampled_from(["UNSET", "STRICT", "PERMISSIVE", "DISABLE"])
_times = st.none() | st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])


@st.composite
def worlds(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    for index in range(draw(st.integers(0, 5))):
        scope = draw(st.sampled_from(["istio-system", "shop", "data"]))
        spec = (draw(st.sampled_from(["", SELECT]))) + mtls(draw(_modes))
        found.append(peer(spec, f"{scope}/p{index}", draw(_times)))
    return found


@given(worlds())
def test_the_order_in_which_objects_are_read_does_not_matter(objects: list[dict[str, Any]]) -> None:
    assert settled(*objects, labels=APP).mode is settled(*objects[::-1], labels=APP).mode


@given(worlds())
def test_the_mode_is_that_of_the_first_that_sets_one_from_narrow_to_wide(objects: list[dict[str, Any]]) -> None:
    def oldest(namespace: str, selector: bool) -> str | None:
        there = [
            o for o in objects if o["metadata"]["namespace"] == namespace and ("selector" in o["spec"]) is selector
        ]
        there.sort(key=lambda o: (o["metadata"]["creationTimestamp"] or "", o["metadata"]["name"]))
        return there[0]["spec"]["mtls"]["mode"] if there else None

    wanted = (oldest("shop", True), oldest("shop", False), oldest("istio-system", False), "STRICT")
    assert settled(*objects, labels=APP).mode == next(m for m in wanted if m not in (None, "UNSET")).lower()
