"""One Config, parsed once: what is not said has a safe default, what is said wrongly is refused by its full name."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.address import parse_address, parse_network
from tproxy.core.capture import Capture
from tproxy.core.config import Config, Files, Limits, Marks, MeshRule, Mode, Outside, Ports, parse_port
from tproxy.core.fields import ConfigError
from tproxy.core.identity import IdPattern
from tproxy.core.policy.manifest import Workload
from tproxy.core.policy.policy import Policy, Rule

KEY = "-----BEGIN PRIVATE KEY-----\nMHcCAQEEIG9uZSBzZWNyZXQ=\n-----END PRIVATE KEY-----\n"
PORTS = ("egress", "ingress", "admin", "metrics", "ready")

WHOLE: dict[str, Any] = {
    "trustDomain": "example.org",
    "identity": {"cert": "/i/cert.pem", "key": "/i/key.pem", "ca": "/i/ca.pem"},
    "mesh": [
        {"cidr": "10.0.0.0/8"},
        {"cidr": "10.0.9.0/24", "mtls": False},
        {"cidr": "10.0.0.7", "ids": ["ns/shop/sa/*"], "mtls": True},
    ],
    "egress": "passthrough",
    "inbound": {
        "mode": "permissive",
        "ports": {8080: "strict", "9090": "disable"},
        "rules": [
            {"name": "web", "ports": [8080], "ids": ["spiffe://example.org/ns/shop/sa/web"]},
            {"namespaces": ["shop"], "sources": ["10.0.0.0/8", "fd00::/8"]},
        ],
    },
    "capture": {
        "includeOutboundIPRanges": ["10.0.0.0/8"],
        "excludeOutboundIPRanges": ["10.9.0.0/16"],
        "includeOutboundPorts": [80],
        "excludeOutboundPorts": [81],
        "excludeOutboundUIDs": [0],
        "includeInboundPorts": [82],
        "excludeInboundPorts": [83],
        "includeInboundIPRanges": ["10.1.0.0/16"],
        "excludeInboundIPRanges": ["10.2.0.0/16"],
    },
    "ports": {"egress": 1, "ingress": 2, "admin": 3, "metrics": 4, "ready": 5},
    "limits": {
        "peek": 1.5,
        "silence": 0.2,
        "handshake": 3,
        "connect": 4,
        "drain": 5,
        "handshakes": 6,
        "connections": 7,
    },
    "uid": 1000,
    "gid": 1001,
    "workload": {"namespace": "shop", "labels": {"app": "web"}, "rootNamespace": "mesh"},
    "policies": ["/policies", "/more/one.yaml"],
}


def patched(path: str, value: Any) -> dict[str, Any]:
    """The whole example with one field set; path as in error messages, indexes as their own step."""
    steps: list[Any] = [int(step) if step.isdecimal() else step for step in path.split(".")]

    def put(node: Any, depth: int) -> Any:
        if depth == len(steps):
            return value
        step = steps[depth]
        if isinstance(node, list):
            return [put(item, depth + 1) if at == step else item for at, item in enumerate(node)]
        return {**node, step: put(node.get(step, {}), depth + 1)}

    result: dict[str, Any] = put(WHOLE, 0)
    return result


def fault(data: Any) -> str:
    """The sentence that refuses this configuration."""
    with pytest.raises(ConfigError) as caught:
        Config.parse(data, "sidecar.yaml")
    return str(caught.value)


def test_every_field_is_read() -> None:
    assert Config.parse(WHOLE, "sidecar.yaml") == Config(
        trust_domain="example.org",
        identity=Files("/i/cert.pem", "/i/key.pem", "/i/ca.pem"),
        mesh=(
            MeshRule(parse_network("10.0.0.7/32"), (IdPattern.parse("ns/shop/sa/*", "example.org"),)),
            MeshRule(parse_network("10.0.9.0/24"), mtls=False),
            MeshRule(parse_network("10.0.0.0/8")),
        ),
        egress=Outside.PASSTHROUGH,
        mode=Mode.PERMISSIVE,
        port_modes={8080: Mode.STRICT, 9090: Mode.DISABLE},
        policy=Policy(
            (
                Rule("web", frozenset({8080}), (IdPattern.parse("ns/shop/sa/web", "example.org"),)),
                Rule(
                    "rule-2",
                    namespaces=frozenset({"shop"}),
                    sources=(parse_network("10.0.0.0/8"), parse_network("fd00::/8")),
                    domain="example.org",
                ),
            )
        ),
        capture=Capture(
            include_outbound_networks=(parse_network("10.0.0.0/8"),),
            exclude_outbound_networks=(parse_network("10.9.0.0/16"),),
            include_outbound_ports=frozenset({80}),
            exclude_outbound_ports=frozenset({81}),
            exclude_outbound_uids=frozenset({0}),
            include_inbound_ports=frozenset({82}),
            exclude_inbound_ports=frozenset({83}),
            include_inbound_networks=(parse_network("10.1.0.0/16"),),
            exclude_inbound_networks=(parse_network("10.2.0.0/16"),),
        ),
        ports=Ports(1, 2, 3, 4, 5),
        marks=Marks(),
        limits=Limits(1.5, 0.2, 3, 4, 5, 6, 7),
        uid=1000,
        gid=1001,
        workload=Workload("shop", {"app": "web"}, "mesh"),
        policies=("/policies", "/more/one.yaml"),
        mode_said=True,
    )


@pytest.mark.parametrize("nothing", [None, {}, dict.fromkeys(WHOLE)])
def test_what_is_not_said_has_a_default_and_the_default_is_closed(nothing: Any) -> None:
    config = Config.parse(nothing)
    assert config.mode is Mode.STRICT and config.egress is Outside.DENY and not config.port_modes
    assert config.trust_domain == "cluster.local" and config.identity is None and config.policy == Policy(())
    assert config.capture == Capture() and config.ports == Ports() and config.limits == Limits()
    assert (config.uid, config.gid) == (1337, 1337)
    assert (config.ports.egress, config.ports.ingress, config.ports.admin) == (15001, 15006, 15000)
    assert (config.ports.metrics, config.ports.ready) == (15020, 15021)


def test_the_marks_are_one_nibble_and_the_deadlines_what_the_documentation_says() -> None:
    assert Marks() == Marks(divert=0x1, own=0x2, outward=0x4, mask=0xF, table=133, preference=100)
    assert Limits() == Limits(peek=5, silence=0.3, handshake=10, connect=10, drain=30, handshakes=512, connections=8192)


def test_by_default_private_networks_are_the_mesh() -> None:
    config = Config.parse({})
    for inside in ("10.0.0.7", "172.31.0.1", "192.168.1.1", "fd00::7"):
        rule = config.mesh_rule(parse_address(inside))
        assert rule is not None and rule.mtls and not rule.ids
    for outside in ("8.8.8.8", "172.32.0.1", "2001:db8::1", "127.0.0.1", "169.254.169.254"):
        assert config.mesh_rule(parse_address(outside)) is None


def test_a_mesh_that_is_said_replaces_the_default() -> None:
    assert Config.parse({"mesh": []}).mesh == ()


def test_the_sidecar_s_listeners_are_private_and_its_metrics_are_not() -> None:
    assert Ports().private == {15000, 15001, 15006}


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Config.parse({}).mode = Mode.DISABLE  # type: ignore[misc]


# what is refused

UNKNOWN = [
    ("trustdomain", "trustdomain: unknown field; did you mean 'trustDomain'?"),
    ("ingress", "ingress: unknown field; did you mean 'egress'?"),
    ("identity.certs", "identity.certs: unknown field; did you mean 'cert'?"),
    ("mesh.0.cidrs", "mesh[0].cidrs: unknown field; did you mean 'cidr'?"),
    ("inbound.rule", "inbound.rule: unknown field; did you mean 'rules'?"),
    ("inbound.rules.1.namespace", "inbound.rules[1].namespace: unknown field; did you mean 'namespaces'?"),
    ("capture.excludeInboundPort", "capture.excludeInboundPort: unknown field; did you mean 'excludeInboundPorts'?"),
    ("ports.outgress", "ports.outgress: unknown field; did you mean 'egress'?"),
    ("limits.handshaks", "limits.handshaks: unknown field; did you mean 'handshakes'?"),
]


@pytest.mark.parametrize(("path", "sentence"), UNKNOWN, ids=[path for path, _ in UNKNOWN])
def test_an_unknown_field_is_refused_with_the_nearest_name(path: str, sentence: str) -> None:
    assert fault(patched(path, "x")) == f"sidecar.yaml: {sentence}"


SECTIONS = ("", "identity.", "mesh.0.", "inbound.", "inbound.rules.0.", "capture.", "ports.", "limits.")


@pytest.mark.parametrize("section", SECTIONS)
def test_no_section_ignores_what_it_does_not_know(section: str) -> None:
    assert "quux: unknown field" in fault(patched(f"{section}quux", 1))


WRONG = [
    ("trustDomain", "Cluster.Local", "trustDomain: 'Cluster.Local': 'Cluster.Local' is not a trust domain"),
    ("trustDomain", 5, "trustDomain: 5: expected text"),
    ("identity", "files", "identity: 'files': expected a mapping"),
    ("identity.cert", 5, "identity.cert: 5: expected one line of text"),
    ("identity.ca", "", "identity.ca: is missing: the path of a PEM file"),
    ("identity.key", None, "identity.key: is missing: the path of a PEM file"),
    ("identity.ca", "-----BEGIN\n", "identity.ca: '-----BEGIN\\n': expected one line of text"),
    ("mesh", "10.0.0.0/8", "mesh: '10.0.0.0/8': expected a list"),
    ("mesh.0", "10.0.0.0/8", "mesh[0]: '10.0.0.0/8': expected a mapping"),
    ("mesh.0.cidr", None, "mesh[0].cidr: is missing: a CIDR or an address"),
    ("mesh.0.cidr", "10.0.0.1/8", "mesh[0].cidr: '10.0.0.1/8': 10.0.0.1/8 has host bits set"),
    ("mesh.0.cidr", 10, "mesh[0].cidr: 10: expected text"),
    ("mesh.0.mtls", "false", "mesh[0].mtls: 'false': expected true or false"),
    ("mesh.1.ids", ["ns/shop/sa/web"], "mesh[1].ids: cannot be proven without TLS"),
    ("mesh.2.ids", ["ns//sa/web"], "mesh[2].ids[0]: 'ns//sa/web': "),
    ("mesh.2.ids", ["spiffe://*/ns/shop"], "mesh[2].ids[0]: 'spiffe://*/ns/shop': '*' is not a trust domain"),
    ("egress", "permit", "egress: 'permit': expected one of passthrough, deny"),
    ("egress", False, "egress: False: expected one of passthrough, deny"),
    ("inbound", [], "inbound: []: expected a mapping"),
    ("inbound.mode", "STRICT", "inbound.mode: 'STRICT': expected one of strict, permissive, disable; did you mean 'st"),
    ("inbound.mode", "strickt", "inbound.mode: 'strickt': expected one of strict, permissive, disable; did you mean"),
    ("inbound.ports", [80], "inbound.ports: [80]: expected a mapping"),
    ("inbound.ports.80", "off", "inbound.ports.80: 'off': expected one of strict, permissive, disable"),
    ("inbound.ports.http", "strict", "inbound.ports.http: expected a port, 1 to 65535"),
    ("inbound.ports.70000", "strict", "inbound.ports.70000: expected a port, 1 to 65535"),
    ("inbound.rules", {"ports": 80}, "inbound.rules: {'ports': 80}: expected a list"),
    ("inbound.rules.1", None, "inbound.rules[1]: is empty; expected a mapping"),
    ("inbound.rules.0.name", 7, "inbound.rules[0].name: 7: expected one line of text"),
    ("inbound.rules.0.ports", ["http"], "inbound.rules[0].ports[0]: 'http': expected a port, 1 to 65535"),
    ("inbound.rules.0.ports", 0, "inbound.rules[0].ports[0]: 0: expected a port"),
    ("inbound.rules.0.ids", [5], "inbound.rules[0].ids[0]: 5: expected text"),
    ("inbound.rules.0.namespaces", [None], "inbound.rules[0].namespaces[0]: expected text"),
    ("inbound.rules.0.namespaces", "shop,*", "inbound.rules[0].namespaces[1]: '*': expected a namespace"),
    ("inbound.rules.1.sources", "10.0.0.0/8,x", "inbound.rules[1].sources[1]: 'x': "),
    ("capture.includeOutboundIPRanges", "*,10.0.0.0/8", "capture.includeOutboundIPRanges[0]: '*': "),
    ("capture.excludeOutboundIPRanges", "*", "capture.excludeOutboundIPRanges[0]: '*': "),
    ("capture.excludeInboundPorts", "*", "capture.excludeInboundPorts[0]: '*': expected a port"),
    ("capture.excludeInboundPorts", "22,ssh", "capture.excludeInboundPorts[1]: 'ssh': expected a port"),
    ("capture.excludeOutboundUIDs", ["root"], "capture.excludeOutboundUIDs[0]: 'root': expected a user id, 0 to 42949"),
    ("ports.egress", 0, "ports.egress: 0: expected a port, 1 to 65535"),
    ("ports.egress", 80.0, "ports.egress: 80.0: expected a port"),
    ("ports.egress", True, "ports.egress: True: expected a port"),
    ("limits.peek", "5s", "limits.peek: '5s': expected a number from 0.01 to 86400"),
    ("limits.peek", 0, "limits.peek: 0: expected a number from 0.01 to 86400"),
    ("limits.connections", 0.5, "limits.connections: 0.5: expected a number from 1 to 1000000"),
    ("limits.connections", 1.5, "limits.connections: 1.5: expected a whole number"),
    ("uid", 0, "uid: 0: expected a number from 1 to 4294967294"),
    ("gid", "1337", "gid: '1337': expected a number from 1 to 4294967294"),
]


@pytest.mark.parametrize(("path", "value", "sentence"), WRONG, ids=[f"{path}={value!r}" for path, value, _ in WRONG])
def test_a_wrong_value_is_refused_by_file_field_and_value(path: str, value: Any, sentence: str) -> None:
    assert fault(patched(path, value)).startswith(f"sidecar.yaml: {sentence}")


@pytest.mark.parametrize("data", [[], "strict", 5])
def test_a_configuration_that_is_no_mapping_is_refused(data: Any) -> None:
    assert fault(data).startswith(f"sidecar.yaml: {data!r}: expected a mapping")


def leaves(node: Any, path: str = "") -> list[str]:
    """The path of every field and item in the whole example, the branches too."""
    steps = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = [name for key, inner in steps for name in leaves(inner, f"{path}.{key}")]
    return [path.lstrip("."), *found] if path else found


@pytest.mark.parametrize("path", leaves(WHOLE))
def test_a_private_key_pasted_into_any_field_is_refused_and_not_repeated(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse(patched_item(path, KEY), "sidecar.yaml")
    said = str(caught.value)
    assert "MHcCAQ" not in said and "BEGIN" not in said and said.isprintable()
    assert caught.value.__cause__ is None or "MHcCAQ" not in str(caught.value.__cause__)


def patched_item(path: str, value: Any) -> dict[str, Any]:
    """As patched, for keys that are numbers too (inbound.ports.8080)."""
    if path.startswith("inbound.ports."):
        return patched("inbound.ports", {8080: value})
    return patched(path, value)


@given(st.sampled_from(leaves(WHOLE)), st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()))
def test_no_value_in_any_field_raises_anything_but_a_config_error(path: str, value: Any) -> None:
    try:
        Config.parse(patched_item(path, value), "sidecar.yaml")
    except ConfigError as error:
        assert str(error).startswith("sidecar.yaml: ") and str(error).isprintable()


# ports


@pytest.mark.parametrize(
    ("ports", "sentence"),
    [
        ({"ingress": 15001}, "ports.ingress: 15001: the port is taken by ports.egress"),
        ({"egress": 15006}, "ports.ingress: 15006: the port is taken by ports.egress"),
        ({"ready": 9000, "metrics": "9000"}, "ports.ready: 9000: the port is taken by ports.metrics"),
    ],
)
def test_two_listeners_cannot_share_a_port(ports: dict[str, Any], sentence: str) -> None:
    assert fault({"ports": ports}) == f"sidecar.yaml: {sentence}"


@given(st.lists(st.integers(1, 65535), min_size=5, max_size=5))
def test_listeners_may_have_any_ports_that_differ(numbers: list[int]) -> None:
    data = {"ports": dict(zip(PORTS, numbers, strict=True))}
    if len(set(numbers)) < 5:
        assert "the port is taken by" in fault(data)
    else:
        assert Config.parse(data).ports == Ports(*numbers)


def test_a_port_of_the_application_has_one_mode() -> None:
    said = fault({"inbound": {"ports": {8080: "strict", "8080": "permissive"}}})
    assert said == "sidecar.yaml: inbound.ports.8080: port 8080 stands here twice"


@given(st.integers(1, 65535))
def test_a_port_may_be_a_number_or_its_text(port: int) -> None:
    assert parse_port(port) == port == parse_port(str(port))


@pytest.mark.parametrize(
    "value", [0, 65536, -1, "0", "", " 80", "+80", "8_0", "٨٠", "9" * 5000, 80.0, True, None, [80]]
)
def test_what_is_no_port_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="expected a port, 1 to 65535"):
        parse_port(value)


@given(st.dictionaries(st.integers(1, 65535), st.sampled_from(Mode), max_size=4), st.sampled_from(Mode), st.data())
def test_a_port_has_its_own_mode_or_else_the_pod_s(modes: dict[int, Mode], mode: Mode, data: st.DataObject) -> None:
    written = {port if data.draw(st.booleans()) else str(port): own.value for port, own in modes.items()}
    config = Config.parse({"inbound": {"mode": mode.value, "ports": written}})
    port = data.draw(st.sampled_from([*modes, 80]))
    assert config.mode_of(port) is modes.get(port, mode)


# capture: the names and meanings of Istio's annotations

INCLUDES = [
    ("includeOutboundIPRanges", "include_outbound_networks"),
    ("includeOutboundPorts", "include_outbound_ports"),
    ("includeInboundPorts", "include_inbound_ports"),
    ("includeInboundIPRanges", "include_inbound_networks"),
]
EXCLUDES = [
    ("excludeOutboundIPRanges", "exclude_outbound_networks"),
    ("excludeOutboundPorts", "exclude_outbound_ports"),
    ("excludeOutboundUIDs", "exclude_outbound_uids"),
    ("excludeInboundPorts", "exclude_inbound_ports"),
    ("excludeInboundIPRanges", "exclude_inbound_networks"),
]


def captured(key: str, name: str, value: Any) -> Any:
    return getattr(Config.parse({"capture": {key: value}}).capture, name)


@pytest.mark.parametrize(("key", "name"), INCLUDES)
@pytest.mark.parametrize("everything", ["*", ["*"], None])
def test_a_star_includes_everything_and_so_does_no_word_at_all(key: str, name: str, everything: Any) -> None:
    assert captured(key, name, everything) is None


@pytest.mark.parametrize(("key", "name"), INCLUDES + EXCLUDES)
@pytest.mark.parametrize("nothing", ["", [], " , "])
def test_an_empty_list_names_nothing(key: str, name: str, nothing: Any) -> None:
    found = captured(key, name, nothing)
    assert found is not None and not found


@pytest.mark.parametrize(("key", "name"), EXCLUDES)
def test_nothing_is_excluded_by_default_and_a_star_cannot_exclude_everything(key: str, name: str) -> None:
    assert not captured(key, name, None)
    assert f"capture.{key}[0]: '*'" in fault({"capture": {key: "*"}})


@pytest.mark.parametrize(("key", "name"), INCLUDES + EXCLUDES)
def test_a_capture_list_may_be_written_as_annotations_have_it(key: str, name: str) -> None:
    items = ["10.0.0.0/8", "fd00::/8"] if "IPRanges" in key else ["22", "443"]
    found = captured(key, name, ", ".join(items))
    assert found == captured(key, name, items) and len(found) == 2


def test_every_field_of_capture_can_be_said() -> None:
    assert {name for _, name in INCLUDES + EXCLUDES} == {field.name for field in fields(Capture)}


# mesh

networks = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
    lambda drawn: str(parse_network(f"{parse_address_of(drawn[0] >> (32 - drawn[1]) << (32 - drawn[1]))}/{drawn[1]}"))
)


def parse_address_of(number: int) -> str:
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))


@given(st.lists(networks, unique=True, max_size=6), st.ip_addresses(v=4))
def test_the_longest_prefix_that_holds_the_address_wins(cidrs: list[str], address: Any) -> None:
    rule = Config.parse({"mesh": [{"cidr": cidr} for cidr in cidrs]}).mesh_rule(address)
    holding = [network for network in map(parse_network, cidrs) if address in network]
    assert (rule.network if rule else None) == max(holding, key=lambda network: network.prefixlen, default=None)


def test_rules_without_a_name_are_counted() -> None:
    config = Config.parse({"inbound": {"rules": [{}, {"name": "second"}, {}]}})
    assert [rule.name for rule in config.policy.rules] == ["rule-1", "second", "rule-3"]


def test_ids_without_a_trust_domain_are_of_ours() -> None:
    data = {"trustDomain": "example.org", "inbound": {"rules": [{"ids": "ns/shop/sa/web, ns/*/sa/db"}]}}
    assert list(map(str, Config.parse(data).policy.rules[0].ids)) == [
        "spiffe://example.org/ns/shop/sa/web",
        "spiffe://example.org/ns/*/sa/db",
    ]


# the directory


def test_a_directory_is_an_address_and_what_its_certificate_says() -> None:
    found = Config.parse({"directory": {"address": "tproxy-control.tproxy-system.svc:15013"}}).directory
    assert found is not None
    assert (found.address, found.server_name, found.timeout) == ("tproxy-control.tproxy-system.svc:15013", "", 10)
    assert Config.parse({}).directory is None


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ({}, "directory.address"),
        ({"address": "control"}, "directory.address"),
        ({"address": "control:15013", "timeout": -1}, "directory.timeout"),
        ({"address": "control:15013", "mixed": "plian"}, "directory.mixed.*did you mean 'plain'"),
        ({"address": "control:15013", "serverNmae": "control"}, "directory.serverNmae.*serverName"),
    ],
)
def test_a_directory_that_cannot_be_dialled_is_refused_by_name(section: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        Config.parse({"directory": section})


# policies

ASKED = {"address": "tproxy-control.tproxy-system.svc:15013"}


def test_policies_come_from_files_from_control_or_from_both() -> None:
    def policies(section: Any) -> tuple[tuple[str, ...], bool]:
        found = Config.parse({"policies": section, "directory": ASKED})
        return found.policies, found.follows

    assert policies(["/policies"]) == policies({"files": ["/policies"]}) == (("/policies",), False)
    assert policies({"control": True}) == ((), True)
    assert policies({"control": True, "files": "/a,/b"}) == (("/a", "/b"), True)
    assert policies(None) == policies({}) == ((), False)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"policies": {"control": True}}, "policies.control: True: needs the section directory"),
        ({"policies": {"control": "yes"}, "directory": ASKED}, "policies.control: 'yes': expected true or false"),
        ({"policies": {"contrl": True}}, "policies.contrl: unknown field; did you mean 'control'?"),
        (
            {"policies": {"control": True}, "directory": ASKED, "workload": {"rootNamespace": "mesh"}},
            "workload.rootNamespace: 'mesh': stands beside policies.control",
        ),
        (
            {"workload": {"labels": {"app": "web"}, "labelsFile": "/labels"}},
            "workload.labelsFile: '/labels': stands beside labels",
        ),
    ],
)
def test_policies_that_contradict_something_are_refused_by_name(data: dict[str, Any], sentence: str) -> None:
    assert fault(data).startswith(f"sidecar.yaml: {sentence}")
