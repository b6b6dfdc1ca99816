"""What the cluster is told and asked: a real ``tproxy control`` against an API server that keeps objects and rights."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control import DOMAIN, Ca, metric
from tests.kubernetes import ApiServer
from tests.objects import HOOK, HOOKS, ROOTS, Cluster
from tests.pods import pod
from tests.test_admission import asked
from tests.webhook import Caller, caller, injecting, patched, port
from tproxy.control import cabundle, rootmaps, rotation
from tproxy.control.config import Control
from tproxy.control.publisher import version
from tproxy.kube.api_server import ApiError, Reply, connected
from tproxy.world.process import wait_for


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    made = ApiServer(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def cluster(api: ApiServer) -> Cluster:
    return api.cluster


@pytest.fixture
def ca(tmp_path: Path, api: ApiServer) -> Iterator[Ca]:
    """Started by the tests, which first say what stands in the cluster."""
    made = injecting(tmp_path, kubernetes=api.config)
    yield made
    made.kill()


def bundle(ca: Ca) -> str:
    return (ca.dir / "bundle.pem").read_text()


def soon(condition: Any, what: str, ca: Ca) -> None:
    wait_for(condition, 20, what, ca.running())


def told(ca: Ca, words: str) -> list[str]:
    """What was logged, of what holds these words."""
    return [line["message"] for line in ca.lines() if words in line.get("message", "")]


def sidecar(ca: Ca, namespace: str = "shop") -> dict[str, Any]:
    """Of an injected pod, which was reviewed by somebody who believes what the API server has as caBundle."""
    with caller(ca) as one:
        found = one.review(asked(pod(), namespace=namespace))
    spec = patched(pod(), json.loads(base64.b64decode(found["patch"])))["spec"]
    every = [*spec["initContainers"], *spec["containers"]]
    made: dict[str, Any] = next(one for one in every if one["name"] == "tproxy-sidecar")
    return made


def test_the_api_server_believes_the_webhook_by_the_ca_bundle_that_it_was_given(ca: Ca, cluster: Cluster) -> None:
    ca.start()
    soon(lambda: cluster.bundles() == [bundle(ca)] * 2, "both webhooks have the bundle", ca)
    with Caller(port(ca), cluster.bundles()[0]) as one:
        assert one.ask("GET", "/healthz")[0] == 200
    soon(lambda: metric(ca.page("/metrics")[1], 'tproxy_cluster_current{what="caBundle"}') == 1, "it is counted", ca)


def test_labelled_namespaces_get_the_roots_and_no_others(ca: Ca, cluster: Cluster) -> None:
    for name in ("shop", "bank", "desk", "kube-system", "tproxy-system"):
        cluster.space(name)
    cluster.space("other", inject=False)
    cluster.space("dying", phase="Terminating")
    ca.start()
    soon(lambda: cluster.roots() == dict.fromkeys(("shop", "bank", "desk"), bundle(ca)), "three have the roots", ca)
    assert {key for key in cluster.wrote if key[0] == "configmaps"} == {
        ("configmaps", name, ROOTS) for name in ("shop", "bank", "desk")
    }


def test_the_roots_of_another_ca_are_left_to_it(tmp_path: Path, api: ApiServer, cluster: Cluster) -> None:
    cluster.space("shop")
    cluster.put("configmaps", "shop", ROOTS, data={"root-cert.pem": "istiod's"})
    identity = {"istioCa": {"address": "istiod.istio-system.svc:15012"}}
    ca = injecting(tmp_path, kubernetes=api.config, injection={"roots": ROOTS, "config": {"identity": identity}})
    try:
        ca.start()
        soon(lambda: cluster.bundles() == [bundle(ca)] * 2, "the webhooks have the bundle", ca)
        assert cluster.roots() == {"shop": "istiod's"}
        assert not {key for key in cluster.wrote if key[0] == "configmaps"}
    finally:
        ca.kill()


def test_a_namespace_that_has_the_config_map_keeps_it_up_to_date_without_the_label(ca: Ca, cluster: Cluster) -> None:
    cluster.space("old", inject=False)
    cluster.put("configmaps", "old", ROOTS, data={"root-cert.pem": "of yesterday"})
    cluster.put("configmaps", "old", "other", data={"root-cert.pem": "not ours"})
    ca.start()
    soon(lambda: cluster.roots() == {"old": bundle(ca)}, "it is of today", ca)
    assert cluster.objects["configmaps", "old", "other"]["data"] == {"root-cert.pem": "not ours"}


def test_what_is_right_is_not_written_again(ca: Ca, cluster: Cluster, api: ApiServer) -> None:
    cluster.space("shop")
    ca.start()
    soon(lambda: len(cluster.wrote) == 2, "all is written", ca)
    ca.kill()
    before = len(api.seen)
    ca.start()
    soon(lambda: len(api.seen) >= before + 4 and "configmaps" in api.seen[-1], "it has looked again", ca)
    assert len(cluster.wrote) == 2


def test_each_step_of_a_rotation_reaches_the_cluster_and_the_webhook_is_believed_all_the_way(
    ca: Ca, cluster: Cluster
) -> None:
    cluster.space("shop")
    ca.start()
    state, now = ca.state(), int(time.time())
    steps = (
        lambda: rotation.add(ca.dir, state, DOMAIN, "ecdsa", now),
        lambda: rotation.switch(ca.dir, state, now, force=True),
        lambda: rotation.drop(ca.dir, state, now, force=True),
    )
    for step in steps:
        assert not isinstance(step(), rotation.NotYet)
        soon(lambda: cluster.bundles() == [bundle(ca)] * 2, "the webhooks have it", ca)
        soon(lambda: cluster.roots() == {"shop": bundle(ca)}, "the namespace has it", ca)
        with Caller(port(ca), cluster.bundles()[0]) as one:
            assert one.ask("GET", "/healthz")[0] == 200
    state.close()


def test_a_pod_in_a_new_namespace_does_not_wait_a_minute_for_its_roots(ca: Ca, cluster: Cluster) -> None:
    ca.start()
    soon(lambda: told(ca, "caBundle of"), "the first look is over", ca)
    soon(lambda: sidecar_or_none(ca), "reviews are answered", ca)
    cluster.space("fresh")
    assert sidecar(ca, "fresh")
    soon(lambda: cluster.roots() == {"fresh": bundle(ca)}, "it has them", ca)


def sidecar_or_none(ca: Ca) -> dict[str, Any] | None:
    with caller(ca) as one:
        ready = one.ask("POST", "/inject", asked(pod()))[0] == 200
    return sidecar(ca) if ready else None


@pytest.mark.parametrize(
    ("said", "config", "native"),
    [
        (("1", "29+"), {}, True),
        (("1", "28"), {}, False),
        (("1", "28"), {"native": True}, True),
        (("1", "35"), {"native": False}, False),
    ],
)
def test_sidecars_are_native_from_1_29_on_unless_the_configuration_says_otherwise(
    ca: Ca, cluster: Cluster, said: tuple[str, str], config: dict[str, bool], native: bool
) -> None:
    cluster.version = said
    ca.config["injection"] = {**ca.config["injection"], **config}
    ca.start()
    soon(lambda: sidecar_or_none(ca), "reviews are answered", ca)
    assert (sidecar(ca).get("restartPolicy") == "Always") == native


def test_a_sidecar_is_told_the_authoritys_trust_domain_and_to_mount_what_is_published(ca: Ca) -> None:
    ca.config["audience"] = "mine"
    ca.start()
    soon(lambda: sidecar_or_none(ca), "reviews are answered", ca)
    with caller(ca) as one:
        patch = json.loads(base64.b64decode(one.review(asked(pod()))["patch"]))
    said = json.dumps(patched(pod(), patch))
    assert f'trustDomain\\": \\"{DOMAIN}' in said and '"audience": "mine"' in said
    assert f'"name": "{ROOTS}"' in said and "tproxy-control.tproxy-system.svc:15012" in said


def test_what_is_forbidden_is_told_once_with_the_rule_and_does_not_keep_the_rest_from_being_done(
    ca: Ca, api: ApiServer, cluster: Cluster
) -> None:
    cluster.space("shop")
    cluster.rights.discard(("patch", HOOKS, HOOK))
    ca.start()
    soon(lambda: cluster.roots() == {"shop": bundle(ca)}, "the roots are there all the same", ca)
    before = len(api.seen)
    soon(lambda: len(api.seen) > before + 3, "it was tried again", ca)
    lines = told(ca, "forbidden")
    assert len(lines) == 1 and "allow our service account get and patch of mutatingwebhookconfigurations" in lines[0]
    assert metric(ca.page("/metrics")[1], 'tproxy_cluster_current{what="caBundle"}') == 0
    cluster.rights.add(("patch", HOOKS, HOOK))
    sidecar(ca, "somewhere-new")  # makes it look now
    soon(lambda: cluster.bundles() == [bundle(ca)] * 2, "it is tried again", ca)


@pytest.mark.parametrize(
    ("right", "said"),
    [
        (("get", HOOKS, HOOK), "get and patch of mutatingwebhookconfigurations"),
        (("list", "namespaces", ""), "list of namespaces"),
        (("list", "configmaps", ROOTS), "list of configmaps with resourceNames: [tproxy-ca-roots]"),
        (("create", "configmaps", ROOTS), "create and patch of configmaps with resourceNames: [tproxy-ca-roots]"),
        (("patch", "configmaps", ROOTS), "create and patch of configmaps with resourceNames: [tproxy-ca-roots]"),
    ],
)
def test_each_right_that_is_missing_is_named(ca: Ca, cluster: Cluster, right: Any, said: str) -> None:
    cluster.space("shop")
    cluster.rights.discard(right)
    ca.start()
    soon(lambda: told(ca, "forbidden"), "it is told", ca)
    assert told(ca, "forbidden")[0].endswith(f"allow our service account {said}")


def test_a_write_of_others_in_between_is_kept_and_ours_is_tried_again(ca: Ca, cluster: Cluster) -> None:
    left = [2]

    def meddle() -> None:
        if left[0]:
            left[0] -= 1
            hooks = cluster.objects[HOOKS, "", HOOK]
            cluster.put(HOOKS, "", HOOK, webhooks=[*hooks["webhooks"], {"name": "new", "clientConfig": {}}])

    cluster.meddle = meddle
    ca.start()
    soon(lambda: cluster.bundles() == [bundle(ca)] * 4, "all four have it, those of others, too", ca)
    assert not told(ca, "422")


def test_what_somebody_changed_is_mended_at_the_next_look(ca: Ca, cluster: Cluster) -> None:
    cluster.space("shop")
    ca.start()
    soon(lambda: cluster.roots() and all(cluster.bundles()), "all is written", ca)
    hooks = cluster.objects[HOOKS, "", HOOK]["webhooks"]
    spoilt = [{**one, "clientConfig": {"caBundle": "AAAA"}} for one in hooks]
    cluster.put(HOOKS, "", HOOK, webhooks=spoilt)
    cluster.put("configmaps", "shop", ROOTS, data={"root-cert.pem": "spoilt"})
    sidecar(ca, "somewhere-new")  # makes it look now, not within the minute
    soon(lambda: cluster.bundles() == [bundle(ca)] * 2, "the webhooks are mended", ca)
    soon(lambda: cluster.roots() == {"shop": bundle(ca)}, "the ConfigMap is mended", ca)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (500, b'{"message": "etcd is away"}', "500 (etcd is away)"),
        (401, b'{"message": "Unauthorized"}', "401 (Unauthorized)"),
        (302, b"{}", "status 302"),
        (200, b"[]", "not a JSON object"),
        (200, b"no json", "not JSON"),
        (200, b"{}", "is not a list"),
        (200, b'{"items": [7], "webhooks": 7}', "is not a list"),
        (200, b'{"items": [{"metadata": 7}], "webhooks": [7]}', "is not a list"),
        (200, b'{"items": [{"metadata": {}}], "webhooks": [{}], "metadata": 7}', "is not a list"),
        (200, b'{"items": 7, "webhooks": [{"clientConfig": []}], "metadata": {}}', "is not a list"),
    ],
)
def test_nonsense_from_the_api_server_is_an_error_in_words(api: ApiServer, status: int, body: bytes, said: str) -> None:
    where = Control.parse({"kubernetes": api.config}).kubernetes
    assert where
    api.twist = lambda *_: (status, body)

    async def hooks() -> None:
        async with connected(where) as found:
            await cabundle.publish(found, HOOK, "PEM")

    with pytest.raises(ApiError, match=r"the API server 127\.0\.0\.1:"):
        asyncio.run(hooks())
    with pytest.raises(ApiError, match=re.escape(said)):
        asyncio.run(rootmaps.publish(where, ROOTS, "a=b", frozenset(), "PEM"))


def test_an_api_server_that_is_ill_is_told_about_and_tried_again(ca: Ca, api: ApiServer, cluster: Cluster) -> None:
    cluster.space("shop")
    api.twist = lambda *_: (500, b'{"message": "etcd is away"}')
    ca.start()
    soon(lambda: told(ca, "caBundle: ") and told(ca, "version: "), "it is told", ca)
    with caller(ca) as one:
        assert one.ask("POST", "/inject", asked(pod()))[0] == 503
    api.twist = None
    soon(lambda: cluster.roots() == {"shop": bundle(ca)} and sidecar_or_none(ca), "all is well", ca)
    ca.running().popen.send_signal(signal.SIGTERM)
    assert ca.running().popen.wait(10) == 0


def test_control_serves_while_the_api_server_is_down_and_catches_up(tmp_path: Path) -> None:
    api = ApiServer(tmp_path)
    address = api.port
    api.stop()
    ca = injecting(tmp_path, kubernetes=api.config).start()
    try:
        assert len(ca.call(ca.token())) == 3
        with caller(ca) as one:
            assert one.ask("GET", "/healthz")[0] == 200
            status, said = one.ask("POST", "/inject", asked(pod()))
            assert status == 503 and "version of Kubernetes" in said
        api = ApiServer(tmp_path, address)
        try:
            soon(lambda: api.cluster.bundles() == [bundle(ca)] * 2, "the webhooks have the bundle", ca)
            soon(lambda: sidecar_or_none(ca), "reviews are answered", ca)
        finally:
            api.stop()
        assert sidecar(ca)  # what is known stays known
    finally:
        ca.kill()


def test_after_kill_9_the_ca_bundle_of_before_is_still_good(ca: Ca, cluster: Cluster) -> None:
    for _ in range(3):
        ca.start()
        soon(lambda: all(cluster.bundles()), "the webhooks have the bundle", ca)
        with Caller(port(ca), cluster.bundles()[0]) as one:
            assert one.ask("GET", "/healthz")[0] == 200
        ca.kill()
    assert [key for key in cluster.wrote if key[0] == HOOKS] == [(HOOKS, "", HOOK)]


def test_a_sidecar_that_would_be_of_another_trust_domain_keeps_control_from_starting(ca: Ca) -> None:
    ca.config["injection"] = {"config": {"trustDomain": "other.local"}}
    process = ca.spawn()
    assert process.popen.wait(20) == 2
    assert "injection.config.trustDomain: 'other.local'" in process.log.read_text()


# what is pure


def hooks(*bundles: str | None) -> dict[str, Any]:
    every = [
        {"name": str(n), "clientConfig": {} if one is None else {"caBundle": one}} for n, one in enumerate(bundles)
    ]
    return {"metadata": {"resourceVersion": "7"}, "webhooks": every}


def test_a_patch_holds_for_one_version_and_touches_nothing_but_what_is_wrong() -> None:
    right = base64.b64encode(b"PEM").decode()
    assert cabundle.changes(hooks(right, right), "PEM") == []
    assert cabundle.changes(hooks(right, None, "AAAA"), "PEM") == [
        {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
        {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": right},
        {"op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": right},
    ]


def test_a_configuration_without_webhooks_is_an_error_and_not_well() -> None:
    with pytest.raises(ApiError, match="has no webhooks"):
        cabundle.changes(hooks(), "PEM")


@pytest.mark.parametrize(
    ("body", "found"), [({"major": "1", "minor": "29+"}, (1, 29)), ({"major": "2", "minor": "0-gke.1"}, (2, 0))]
)
def test_a_version_may_have_a_tail(body: dict[str, str], found: tuple[int, int]) -> None:
    assert version(Reply(200, body)) == found


def test_the_api_servers_certificate_is_verified_before_a_token_is_sent(ca: Ca, api: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "api-ca.pem").write_bytes((ca.dir / "root.crt").read_bytes())
    ca.start()
    soon(lambda: told(ca, "version: "), "it is told", ca)
    assert not api.seen
