"""``tproxy control``'s configuration: what a file may say, and what is refused before anything starts."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tproxy.cli import main, parser
from tproxy.cli.control import effective
from tproxy.control.config import NAMES, Control, Directory
from tproxy.core.fields import ConfigError
from tproxy.core.identity import SpiffeId

MANY = {
    "trustDomain": "cluster.local",
    "dir": "/ca",
    "listen": {"address": "::1", "port": 1, "health": 2},
    "names": ["ca.example", "10.0.0.1"],
    "maxTtl": "1h",
    "audience": "mine",
    "kubernetes": {"apiServer": "https://[fd00::1]:6443", "tokenFile": "/t", "caFile": "/c", "checkAddress": False},
    "joinTokens": False,
    "impersonators": ["spiffe://cluster.local/ns/istio-system/sa/ztunnel"],
    "keep": "30d",
}


def test_everything_can_be_said() -> None:
    found = Control.parse(MANY)
    assert (found.address, found.port, found.health, found.max_ttl, found.keep) == ("::1", 1, 2, 3600, 30 * 86400)
    assert found.names == ("ca.example", ip_address("10.0.0.1")) and not found.join_tokens
    assert found.kubernetes and (found.kubernetes.host, found.kubernetes.port) == ("fd00::1", 6443)
    assert found.impersonators == {SpiffeId("cluster.local", ("ns", "istio-system", "sa", "ztunnel"))}


def test_the_defaults_are_istios_port_a_day_and_no_kubernetes() -> None:
    found = Control.parse({})
    assert (found.port, found.health, found.max_ttl, found.audience) == (15012, 15021, 86400, "istio-ca")
    assert found.kubernetes is None and found.join_tokens and len(found.names) == len(NAMES)


def test_kubernetes_with_its_defaults_needs_one_word() -> None:
    found = Control.parse({"kubernetes": {"enabled": True}}).kubernetes
    assert found and (found.host, found.port) == ("kubernetes.default.svc", 443) and found.check_address
    assert Control.parse({"kubernetes": {"enabled": False}}).kubernetes is None


def test_without_injection_there_is_no_webhook_and_with_it_the_certificate_has_its_services_name() -> None:
    assert Control.parse({}).webhook is None
    found = Control.parse({"injection": {"namespace": "mesh"}, "webhook": {"service": "hook", "namespaces": ""}})
    assert found.webhook and (found.webhook.port, found.webhook.configuration) == (15017, "tproxy-injector")
    assert found.names == (*Control.parse({}).names, "hook.mesh.svc")
    assert Control.parse({"injection": {}}).names == Control.parse({}).names


def test_the_tokens_of_injected_pods_are_for_this_authority_unless_something_else_is_said() -> None:
    audiences = [
        found.injection.audience
        for injection in ({}, {"token": {"audience": "theirs"}}, {"token": {"seconds": 600}})
        if (found := Control.parse({"audience": "mine", "injection": injection}).webhook)
    ]
    assert audiences == ["mine", "theirs", "mine"]


def test_a_sidecar_with_certificates_of_another_authority_may_be_of_another_trust_domain() -> None:
    own = {"trustDomain": "theirs", "identity": {"workloadApi": {"socket": "unix:///x"}}}
    for injection in ({"config": own}, {"secret": "certs", "config": {"trustDomain": "theirs"}}):
        found = Control.parse({"injection": injection}).webhook
        assert found and found.settled("ours", True).config["trustDomain"] == "theirs"
    found = Control.parse({"injection": {"config": {"trustDomain": "theirs"}}}).webhook
    assert found
    with pytest.raises(ConfigError, match=r"injection\.config\.trustDomain: 'theirs': sidecars get their certificates"):
        found.settled("ours", True)


def test_sidecars_that_can_ask_us_get_their_policies_from_us_unless_the_settings_say_otherwise() -> None:
    asks = {"address": "tproxy-control.tproxy-system.svc:15013"}
    theirs = {"workloadApi": {"socket": "unix:///x"}}

    def policies(told: bool, **config: Any) -> Any:
        found = Control.parse({"injection": {"config": config}}).webhook
        assert found
        return found.settled("ours", True, told).config.get("policies")

    assert policies(True, directory=asks) == {"control": True}
    assert policies(False, directory=asks) is None
    assert policies(True) is None
    assert policies(True, directory=asks, identity=theirs) is None
    assert policies(True, directory=asks, policies=["/policies"]) == ["/policies"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"policies": {}, "kubernetes": {}},
            "policies: needs the section directory: policies are told on its port",
        ),
        (
            {"policies": {"rootNamespace": "a/b"}, "directory": {}, "kubernetes": {}},
            "policies.rootNamespace: 'a/b': is no name in Kubernetes",
        ),
        ({"maxTTL": "1h"}, "maxTTL: unknown field; did you mean 'maxTtl'?"),
        ({"maxTtl": "1y"}, "maxTtl: '1y': expected a time"),
        ({"names": ["UPPER"]}, "names[0]: 'UPPER': expected a DNS name in lower case"),
        ({"names": []}, "names: is empty"),
        ({"listen": {"port": 0}}, "listen.port: 0: expected a port"),
        ({"listen": {"port": 15021}}, "listen.health: 15021: the port is taken by listen.port"),
        ({"listen": {"address": "localhost"}}, "listen.address: 'localhost'"),
        ({"kubernetes": {"apiServer": "http://x"}}, "kubernetes.apiServer: 'http://x': expected https://host"),
        ({"kubernetes": {"apiServer": "https://x/y"}}, "kubernetes.apiServer: 'https://x/y': expected https://host"),
        ({"kubernetes": {"apiServer": "https://x:y"}}, "kubernetes.apiServer: 'https://x:y': expected https://host"),
        ({"kubernetes": {"tokenfile": "x"}}, "kubernetes.tokenfile: unknown field; did you mean 'tokenFile'?"),
        ({"impersonators": ["ztunnel"]}, "impersonators[0]: 'ztunnel'"),
        ({"limits": {"deadline": 0}}, "limits.deadline: 0"),
        ({"webhook": {"port": 1}}, "webhook: there is no webhook without injection: {}"),
        ({"injection": {}, "webhook": {"prot": 1}}, "webhook.prot: unknown field; did you mean 'port'?"),
        ({"injection": {}, "webhook": {"port": 15012}}, "webhook.port: 15012: the port is taken by listen"),
        ({"injection": {}, "webhook": {"service": "A"}}, "webhook.service: 'A': expected the name of an object"),
        ({"injection": {}, "webhook": {"namespaces": "a b"}}, "webhook.namespaces: 'a b': expected a label"),
        ({"injection": {"imge": "x"}}, "injection: imge: unknown field; did you mean 'image'?"),
        ({"injection": {"config": {"egres": 1}}}, "injection: config: egres: unknown field; did you mean 'egress'?"),
        ({"injection": [1]}, "injection: [1]: expected a mapping"),
    ],
)
def test_what_is_wrong_is_named_with_its_field(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Control.parse(data, "control.yaml")
    assert str(caught.value).startswith(f"control.yaml: {said}")


def test_options_are_laid_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "control.yaml"
    path.write_text("dir: here\nmaxTtl: 1h\n")
    args = parser().parse_args(["control", "--config", str(path), "--dir", "there", "--port", "7"])
    found = effective(args)
    assert (found.dir, found.port, found.max_ttl) == ("there", 7, 3600)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "dir: is missing"),
        (("--dir", "x", "--port", "seven"), "--port: 'seven': expected a port"),
        (("--dir", "/nonexistent"), "make an authority with tproxy ca init --dir /nonexistent"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(
    options: tuple[str, ...], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["control", *options]) == 2
    err = capfd.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_server_to_which_nobody_could_come_does_not_start(tmp_path: Path) -> None:
    path = tmp_path / "control.yaml"
    path.write_text("dir: x\njoinTokens: false\n")
    with pytest.raises(ConfigError, match="nobody could come"):
        effective(parser().parse_args(["control", "--config", str(path)]))


def test_the_directory_reads_pods_from_kubernetes_and_has_a_port_of_its_own() -> None:
    assert Control.parse({"kubernetes": {}, "directory": {}}).directory == Directory(15013, 10_000)
    assert Control.parse({"kubernetes": {}}).directory is None
    with pytest.raises(ConfigError, match="directory: needs the section kubernetes"):
        Control.parse({"directory": {}})
    with pytest.raises(ConfigError, match="directory: needs the section kubernetes"):
        Control.parse({"directory": {}, "kubernetes": {"enabled": False}})
    with pytest.raises(ConfigError, match=r"directory.port: 15012: the port is taken by listen"):
        Control.parse({"kubernetes": {}, "directory": {"port": 15012}})
