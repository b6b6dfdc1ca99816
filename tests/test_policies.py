"""Policies from Kubernetes objects between real pods: who is let in, what is cut, and what the record says of it."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import yaml

from tests.istio import auth, peer
from tests.test_rotation import is_alive, is_cut
from tests.test_sidecar import answer, connect
from tproxy.world import apps
from tproxy.world.control import Control
from tproxy.world.pods import Pod, World, wait_for
from tproxy.world.sidecars import TPROXY, Authority, Sidecar

DOMAIN = "test.local"
CLIENT = f"{DOMAIN}/ns/demo/sa/client"


class Shop:
    """An echo server with a folder of policies; a client, one of another namespace, and a pod without a sidecar."""

    def __init__(self, world: World) -> None:
        self.ca = Authority(world, DOMAIN)
        self.web, self.client, self.other, self.outsider = (
            world.pod(name) for name in ("web", "client", "other", "outsider")
        )
        for port in (7, 8):
            apps.peer(self.web, port, "echo")
        self.folder = world.directory / "policies"
        self.folder.mkdir()
        self.folder.chmod(0o755)
        self.config: dict[str, Any] = {
            "policies": [str(self.folder)],
            "workload": {"labels": {"app": "web"}},
            "limits": {"peek": 1.0, "silence": 0.2},
        }
        self.server = Sidecar(self.web, self.ca.issue("web"), DOMAIN, **self.config).up()
        self.callers = [
            Sidecar(self.client, self.ca.issue("client"), DOMAIN).up(),
            Sidecar(self.other, self.ca.issue("client", "data"), DOMAIN).up(),
        ]

    def clear(self) -> None:
        """No policies."""
        for path in self.folder.iterdir():
            path.unlink()

    def apply(self, *objects: dict[str, Any]) -> None:
        """Exactly these objects, in force: the effective configuration shows them."""
        new = self.folder.with_name("new.yaml")
        new.write_text(yaml.safe_dump_all(objects))
        new.chmod(0o644)
        new.rename(self.folder / "all.yaml")
        wanted = json.loads(json.dumps([each["spec"] for each in objects]))
        wait_for(lambda: all(spec in self.specs() for spec in wanted), 10, "the new policies are in force")
        assert len(self.specs()) == len(wanted)

    def specs(self) -> list[Any]:
        """Of all objects that are in force."""
        config = json.loads(self.server.page(15000, "/config_dump"))["config"]
        return [each["spec"] for each in config["manifests"]]

    def reloads(self, result: str) -> float:
        """How many there have been."""
        return self.server.metrics().get(f'tproxy_reloads_total{{result="{result}"}}', 0)

    def says(self, pod: Pod, port: int = 7) -> bool:
        """Whether the echo answers a new connection."""
        return answer(pod, self.web.v4, port, b"hello") == b"hello"

    def refusal(self, pod: Pod, port: int = 7) -> dict[str, Any]:
        """A connection that must be refused; the server's record of it."""
        before = len(self.server.records())
        assert not self.says(pod, port)
        return self.server.wait_record(lambda r: r["outcome"] == "refused", after=before)


@pytest.fixture(scope="module")
def shop(world: World) -> Shop:
    return Shop(world)


@pytest.fixture(autouse=True)
def _nothing_yet(shop: Shop) -> None:
    """Each test begins with an object that does nothing here."""
    shop.clear()
    shop.apply(auth("{}", "elsewhere/nothing"))


def who(text: str) -> str:
    return f"rules: [{{from: [{{source: {text}}}]}}]"


def test_without_objects_for_this_workload_the_mesh_may_call_and_plaintext_may_not(shop: Shop) -> None:
    assert shop.says(shop.client) and shop.says(shop.other)
    assert shop.refusal(shop.outsider)["rule"] == "mode strict"


def test_the_mode_follows_peer_authentication_port_by_port_and_the_record_names_the_object(shop: Shop) -> None:
    shop.apply(peer("mtls: {mode: PERMISSIVE}", "istio-system/default"))
    assert shop.says(shop.outsider) and shop.says(shop.client)
    shop.apply(peer("mtls: {mode: PERMISSIVE}", "istio-system/default"), peer("mtls: {mode: STRICT}", "demo/default"))
    assert shop.refusal(shop.outsider)["rule"] == "mode strict of PeerAuthentication demo/default"
    selector = "selector: {matchLabels: {app: web}}\n"
    shop.apply(
        peer("mtls: {mode: STRICT}", "demo/default"),
        peer(selector + "portLevelMtls: {8: {mode: PERMISSIVE}}", "demo/web"),
    )
    assert shop.says(shop.outsider, 8)
    assert shop.refusal(shop.outsider)["rule"] == "mode strict of PeerAuthentication demo/default"
    assert shop.says(shop.client) and shop.says(shop.client, 8)


def test_an_allow_by_principal_lets_in_whom_it_names(shop: Shop) -> None:
    shop.apply(auth(who(f"{{principals: [{CLIENT}]}}"), "demo/only-client"))
    before = len(shop.server.records())
    assert shop.says(shop.client)
    assert shop.server.wait_record(lambda r: r["outcome"] == "closed", after=before)["rule"] == "demo/only-client[0]"
    refused = shop.refusal(shop.other)
    assert (refused["reason"], refused["rule"]) == ("policy", "demo/only-client")
    assert refused["peer"] == f"spiffe://{DOMAIN}/ns/data/sa/client"


def test_an_allow_by_namespace_and_port(shop: Shop) -> None:
    spec = "rules: [{from: [{source: {namespaces: [data]}}], to: [{operation: {ports: ['7']}}]}]"
    shop.apply(auth(spec, "demo/data-may"))
    assert shop.says(shop.other)
    assert shop.refusal(shop.other, 8)["rule"] == "demo/data-may"
    assert shop.refusal(shop.client)["rule"] == "demo/data-may"


def test_a_deny_by_address_comes_before_an_allow(shop: Shop) -> None:
    deny = auth(f"action: DENY\n{who(f'{{ipBlocks: [{shop.other.v4}]}}')}", "istio-system/not-from-there")
    shop.apply(auth("rules: [{}]", "demo/all"), deny)
    assert shop.says(shop.client)
    assert shop.refusal(shop.other)["rule"] == "istio-system/not-from-there[0]"


def test_a_permitted_plaintext_caller_has_no_principal(shop: Shop) -> None:
    shop.apply(peer("mtls: {mode: PERMISSIVE}", "demo/default"), auth(who("{principals: ['*']}"), "demo/known"))
    assert shop.says(shop.client)
    assert shop.refusal(shop.outsider)["rule"] == "demo/known"


def test_a_reload_that_denies_cuts_live_connections_and_spares_the_others(shop: Shop) -> None:
    with connect(shop.client, shop.web.v4, 7) as cut, connect(shop.other, shop.web.v4, 7) as spared:
        assert is_alive(cut) and is_alive(spared)
        before = len(shop.server.records())
        shop.apply(auth(f"action: DENY\n{who(f'{{principals: [{CLIENT}]}}')}", "demo/no-client"))
        assert is_cut(cut, 10)
        assert is_alive(spared)
    record = shop.server.wait_record(lambda r: r["outcome"] == "cut", after=before)
    assert (record["reason"], record["rule"]) == ("cut_by_policy", "demo/no-client[0]")


def test_a_dry_run_and_an_audit_are_written_and_decide_nothing(shop: Shop) -> None:
    shop.apply(
        auth(f"action: DENY\n{who('{namespaces: [data]}')}", "demo/try", dry_run="true"),
        auth(f"action: AUDIT\n{who('{namespaces: [demo, data]}')}", "demo/look"),
    )
    for pod, foretold in ((shop.other, "deny: demo/try[0]"), (shop.client, "allow: default: no rule selects port 7")):
        before = len(shop.server.records())
        assert shop.says(pod)
        record = shop.server.wait_record(lambda r: r["direction"] == "ingress", after=before)
        assert (record["dry_run"], record["audit"]) == (foretold, "demo/look[0]")
    assert any("demo/look only writes the field audit" in str(line) for line in shop.server.lines())


def test_what_cannot_be_read_leaves_the_last_good_set_in_force_until_it_is_mended(shop: Shop) -> None:
    shop.apply(auth(who("{namespaces: [data]}"), "demo/data-may"))
    refused, odd = shop.reloads("refused"), shop.folder / "odd.yaml"
    odd.write_text(yaml.safe_dump(auth("rules: [{to: [{operation: {methods: [GET]}}]}]", "demo/http")))
    odd.chmod(0o644)
    wait_for(lambda: shop.reloads("refused") > refused, 10, "the set is refused")
    said = next(str(line) for line in reversed(shop.server.lines()) if "reload refused" in str(line))
    assert f"{odd} (AuthorizationPolicy demo/http): spec.rules[0].to[0].operation.methods: ['GET']" in said
    assert shop.says(shop.other) and not shop.says(shop.client)
    with odd.open("w") as file:  # in place: the folder does not change
        file.write(yaml.safe_dump(auth(who("{namespaces: [demo]}"), "demo/mended")))
    wait_for(lambda: shop.says(shop.client), 10, "the mended set is in force")


def test_a_folder_that_is_swapped_as_a_kubelet_does_is_seen(shop: Shop, world: World) -> None:
    place = world.directory / "configmap"
    for name, spec in (("..1", "rules: [{}]"), ("..2", "{}")):
        (place / name).mkdir(parents=True)
        (place / name / "policy.yaml").write_text(yaml.safe_dump(auth(spec, "demo/swapped")))
    (place / "..data").symlink_to("..1")
    (place / "policy.yaml").symlink_to("..data/policy.yaml")
    try:
        shop.server.write(**{**shop.config, "policies": [str(place)]})
        wait_for(lambda: "demo/swapped" in shop.server.page(15000, "/config_dump"), 10, "the folder is read")
        assert shop.says(shop.client)
        (place / "..new").symlink_to("..2")
        (place / "..new").rename(place / "..data")
        wait_for(lambda: not shop.says(shop.client), 10, "the other folder is in force")
    finally:
        shop.server.write(**shop.config)
        wait_for(lambda: str(place) not in shop.server.page(15000, "/config_dump"), 10, "the first folder is back")
        shutil.rmtree(place)


@pytest.mark.parametrize("namespace", ["", "demo"])
def test_a_sidecar_does_not_start_with_an_object_that_it_cannot_read(world: World, shop: Shop, namespace: str) -> None:
    """Known at once where the configuration names the namespace, else with the first credentials."""
    file = world.directory / "bad.yaml"
    file.write_text(yaml.safe_dump(auth("rules: [{to: [{operation: {paths: [/admin]}}]}]", "demo/http")))
    pod = world.pod(f"late-{namespace or 'svid'}")
    workload = {"workload": {"namespace": namespace}} if namespace else {}
    sidecar = Sidecar(pod, shop.ca.issue(f"late{namespace}"), DOMAIN, policies=[str(file)], **workload)
    done = pod.run([*TPROXY, "sidecar", "--config", str(sidecar.path)])
    assert done.returncode == 2
    wanted = f"{file} (AuthorizationPolicy demo/http): spec.rules[0].to[0].operation.paths: ['/admin']"
    assert wanted in done.stderr


def test_a_policy_that_changes_before_the_first_credentials_is_not_missed(world: World) -> None:
    control, pod = Control(world.pod("late-ca"), DOMAIN), world.pod("early")
    file = world.directory / "early-policy.yaml"
    file.write_text(yaml.safe_dump(auth("rules: [{}]", "demo/open")))
    sidecar = Sidecar(pod, control.identity("early"), DOMAIN, policies=[str(file)])
    process = sidecar.process = pod.start([*TPROXY, "sidecar", "--config", str(sidecar.path)], log=sidecar.log)
    wait_for(lambda: "waiting" in sidecar.page(15021, "/healthz/ready"), 10, "it waits for credentials", process)
    file.write_text(yaml.safe_dump(auth("{}", "demo/closed")))
    control.start()
    wait_for(sidecar.ready, 60, "the credentials are there", process)
    wait_for(lambda: "demo/closed" in sidecar.page(15000, "/config_dump"), 2, "the new policy is in force")
