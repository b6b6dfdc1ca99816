"""Injection as the specification says it: what a pod gets, what it loses, and which pods are refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonpatch
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pods import JSON, PODS, UNHURRIED, pod
from tproxy.core.config import Config, Mode
from tproxy.core.inject import jsonpatch as ours
from tproxy.core.inject.injection import Injection
from tproxy.core.inject.pod import Patch, Refusal, Skip, inject
from tproxy.core.settings import Files, IstioCa

CLUSTER = Injection()
OLD = Injection(native=False)


def done(given_pod: dict[str, Any], settings: Injection = CLUSTER) -> Patch:
    result = inject(given_pod, settings)
    assert isinstance(result, Patch), result
    return result


def refused(given_pod: dict[str, Any], settings: Injection = CLUSTER) -> str:
    result = inject(given_pod, settings)
    assert isinstance(result, Refusal), result
    return result.reason


def container(patched: dict[str, Any], name: str) -> dict[str, Any]:
    spec = patched["spec"]
    return next(one for one in [*spec.get("initContainers", []), *spec["containers"]] if one["name"] == name)


def unescaped(text: str) -> str:
    """As the kubelet hands it over."""
    return text.replace("$$", "$")


def variable(patched: dict[str, Any], name: str, owner: str = "tproxy-sidecar") -> Any:
    text = next(one["value"] for one in container(patched, owner)["env"] if one["name"] == name)
    return json.loads(unescaped(text))


def config(patched: dict[str, Any]) -> Config:
    return Config.parse(variable(patched, "TPROXY_CONFIG"), "the sidecar")


# properties


@UNHURRIED
@given(PODS, st.sampled_from([CLUSTER, OLD]))
def test_injecting_twice_is_injecting_once(given_pod: dict[str, Any], settings: Injection) -> None:
    match inject(given_pod, settings):
        case Patch(pod=patched):
            assert inject(patched, settings) == Skip("already injected")


@UNHURRIED
@given(PODS)
def test_the_patch_applied_to_the_pod_is_the_patched_pod(given_pod: dict[str, Any]) -> None:
    before = json.loads(json.dumps(given_pod))
    match inject(given_pod, CLUSTER):
        case Patch(operations, patched):
            assert jsonpatch.apply_patch(before, operations) == patched
            assert ours.apply(copy.deepcopy(before), operations) == patched
    assert given_pod == before, "the input was changed"


@UNHURRIED
@given(PODS)
def test_every_port_that_a_rewritten_probe_asks_is_declared_to_the_sidecar(given_pod: dict[str, Any]) -> None:
    match inject(given_pod, CLUSTER):
        case Patch(pod=patched):
            asked = {path for path in paths(patched["spec"]) if path.startswith("/app-")}
            env = container(patched, "tproxy-sidecar")["env"]
            declared = variable(patched, "TPROXY_APP_PROBERS") if len(env) > 1 else {}
            assert asked == set(declared)
            assert all(isinstance(port, int) for check in declared.values() for port in ports(check))


def paths(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["path"]] if value.get("port") == 15020 and "path" in value else []
        return own + [path for item in value.values() for path in paths(item)]
    return [path for item in value for path in paths(item)] if isinstance(value, list) else []


def ports(check: dict[str, Any]) -> list[Any]:
    return [action["port"] for action in check.values() if isinstance(action, dict)]


@UNHURRIED
@given(PODS)
def test_what_the_injector_hands_out_the_sidecar_accepts(given_pod: dict[str, Any]) -> None:
    match inject(given_pod, CLUSTER):
        case Patch(pod=patched):
            assert config(patched).identity is not None


@settings(UNHURRIED, max_examples=400)
@given(PODS, st.booleans(), JSON, st.data())
def test_a_malformed_pod_is_an_answer_and_never_a_surprise(
    given_pod: dict[str, Any], before: bool, odd: Any, data: st.DataObject
) -> None:
    first = inject(given_pod, CLUSTER)
    broken = json.loads(json.dumps(first.pod if before and isinstance(first, Patch) else given_pod))
    if before:
        broken["spec"]["containers"].append({"name": "late", "livenessProbe": {"tcpSocket": {"port": 5}}})
    place: Any = broken
    while True:  # down to some part, which becomes something else
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or data.draw(st.integers(0, 4)) == 0:
            place[key] = odd
            break
        place = place[key]
    match inject(broken, CLUSTER):
        case Patch(operations, patched):
            assert jsonpatch.apply_patch(broken, operations) == patched


@UNHURRIED
@given(JSON, JSON)
def test_the_difference_of_any_two_documents_leads_from_one_to_the_other(old: Any, new: Any) -> None:
    operations = ours.diff(old, new)
    assert ours.same(ours.apply(copy.deepcopy(old), operations), new)
    assert ours.same(jsonpatch.apply_patch(copy.deepcopy(old), operations), new)
    assert bool(operations) == (not ours.same(old, new))


@UNHURRIED
@given(st.permutations("abcde"), st.permutations("abcde"), st.integers(0, 5), st.integers(0, 5))
def test_named_lists_are_compared_by_name(one: list[str], two: list[str], first: int, second: int) -> None:
    old, new = [{"name": name} for name in one[:first]], [{"name": name, "x": 1} for name in two[:second]]
    assert jsonpatch.apply_patch(copy.deepcopy(old), ours.diff(old, new)) == new


def test_one_more_container_is_one_operation() -> None:
    old = [{"name": "b"}, {"name": "c"}]
    assert ours.diff(old, [{"name": "a"}, *old]) == [{"op": "add", "path": "/0", "value": {"name": "a"}}]


# the two containers


def test_the_rules_come_first_then_the_sidecar_then_everyone_else() -> None:
    found = done(pod(initContainers=[{"name": "migrate"}])).pod["spec"]["initContainers"]
    assert [one["name"] for one in found] == ["tproxy-init", "tproxy-sidecar", "migrate"]
    assert [one.get("restartPolicy") for one in found] == [None, "Always", None]


def test_before_native_sidecars_it_is_the_first_container_and_holds_the_others() -> None:
    spec = done(pod(), OLD).pod["spec"]
    assert [one["name"] for one in spec["initContainers"]] == ["tproxy-init"]
    assert [one["name"] for one in spec["containers"]] == ["tproxy-sidecar", "web"]
    hooks = spec["containers"][0]["lifecycle"]
    assert hooks["postStart"] == {"exec": {"command": ["tproxy", "wait", "--timeout", "120"]}}
    assert hooks["preStop"] == {"exec": {"command": ["tproxy", "wait", "--seconds", "5"]}}


def test_kubectl_logs_still_shows_the_application_where_the_sidecar_stands_first() -> None:
    name = "kubectl.kubernetes.io/default-container"
    assert done(pod(), OLD).pod["metadata"]["annotations"][name] == "web"
    assert done(pod(annotations={name: "other"}), OLD).pod["metadata"]["annotations"][name] == "other"
    assert name not in done(pod()).pod["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [
        ("tproxy-init", CLUSTER, ["NET_ADMIN"]),
        ("tproxy-sidecar", CLUSTER, ["NET_RAW", "SETGID", "SETUID"]),
        ("tproxy-sidecar", Injection(old_kernels=True), ["NET_ADMIN", "SETGID", "SETUID"]),
    ],
)
def test_our_containers_hold_these_capabilities_and_no_other_right(
    name: str, settings: Injection, wanted: list[str]
) -> None:
    assert container(done(pod(), settings).pod, name)["securityContext"] == {
        "runAsUser": 0,
        "runAsGroup": 0,
        "runAsNonRoot": False,
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": wanted},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_the_application_waits_for_a_startup_probe_and_a_readiness_probe_follows() -> None:
    made = container(done(pod()).pod, "tproxy-sidecar")
    for kind in ("startupProbe", "readinessProbe"):
        assert made[kind]["httpGet"] == {"path": "/healthz/ready", "port": 15021}
    assert "livenessProbe" not in made


def test_rules_and_sidecar_read_the_same_configuration() -> None:
    patched = done(pod()).pod
    assert variable(patched, "TPROXY_CONFIG") == variable(patched, "TPROXY_CONFIG", "tproxy-init")


def test_a_dollar_in_the_configuration_is_not_kubernetes_to_expand() -> None:
    probe = {"httpGet": {"port": 80, "path": "/$(HOME)$$x"}}
    patched = done(pod({"name": "web", "livenessProbe": probe})).pod
    assert "$$(HOME)$$$$x" in container(patched, "tproxy-sidecar")["env"][1]["value"]
    assert variable(patched, "TPROXY_APP_PROBERS")["/app-health/web/livez"]["httpGet"]["path"] == "/$(HOME)$$x"


@pytest.mark.parametrize(("grace", "settings", "drain"), [(None, CLUSTER, 29), (3, CLUSTER, 2), (0, CLUSTER, 1),
    (None, OLD, 24), (3, OLD, 1), (600, CLUSTER, 30)])  # fmt: skip
def test_the_drain_is_over_before_the_kubelet_kills(grace: int | None, settings: Injection, drain: int) -> None:
    spec = {} if grace is None else {"terminationGracePeriodSeconds": grace}
    assert config(done(pod(**spec), settings).pod).limits.drain == drain


# identity


def test_the_token_is_for_our_audience_only_and_lives_where_the_sidecar_looks() -> None:
    patched = done(pod(), Injection(audience="a", token_seconds=600)).pod
    parsed, mounts = config(patched), container(patched, "tproxy-sidecar")["volumeMounts"]
    assert isinstance(parsed.identity, IstioCa)
    claim = patched["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]
    assert (claim["audience"], claim["expirationSeconds"]) == ("a", 600)
    assert f"{mounts[0]['mountPath']}/{claim['path']}" == parsed.identity.token
    assert f"{mounts[1]['mountPath']}/root-cert.pem" == parsed.identity.roots
    assert all(mount["readOnly"] for mount in mounts)


def test_a_config_map_holds_the_rules_of_egress_and_only_the_sidecar_reads_it() -> None:
    shared = Injection(config={"egressRoutes": {"routers": {"r": {"host": "10.0.0.1"}}}})
    result = done(pod(annotations={"tproxy.dev/egressRoutes": "my-routes"}), shared)
    path = "/var/run/tproxy/egress"
    sidecar = container(result.pod, "tproxy-sidecar")
    assert json.loads(sidecar["env"][0]["value"])["egressRoutes"] == {"file": f"{path}/egress.yaml"}
    assert {"name": "tproxy-egress", "configMap": {"name": "my-routes"}} in result.pod["spec"]["volumes"]
    assert {"name": "tproxy-egress", "mountPath": path, "readOnly": True} in sidecar["volumeMounts"]
    assert "volumeMounts" not in container(result.pod, "tproxy-init")
    assert "tproxy-egress" in refused(pod(volumes=[{"name": "tproxy-egress", "emptyDir": {}}]), shared)


def test_a_secret_holds_the_certificate_where_there_is_no_ca() -> None:
    result = done(pod(annotations={"tproxy.dev/secret": "web-tls"}))
    assert config(result.pod).identity == Files(
        *(f"/var/run/secrets/tproxy/{n}" for n in ("tls.crt", "tls.key", "ca.crt"))
    )
    assert result.pod["spec"]["volumes"] == [
        {"name": "tproxy-secret", "secret": {"secretName": "web-tls", "defaultMode": 0o440}}
    ]
    assert result.pod["spec"]["securityContext"]["fsGroup"] == config(result.pod).gid == 1337
    assert any("fsGroup is 1337 now" in warning for warning in result.warnings)


def test_what_is_written_for_the_pods_group_the_sidecar_reads_as_that_group() -> None:
    assert config(done(pod(securityContext={"fsGroup": 999})).pod).gid == 999
    assert "fsGroup: 0: the sidecar cannot be of root's group" in refused(pod(securityContext={"fsGroup": 0}))


@pytest.mark.parametrize(
    ("spec", "user", "group"),
    [({}, None, None), ({"securityContext": {"runAsUser": 0}}, None, 1337), ({}, 0, 1337), ({}, 1000, None)],
)
def test_where_all_containers_are_root_the_token_would_be_roots_alone(
    spec: dict[str, Any], user: int | None, group: int | None
) -> None:
    one: dict[str, Any] = {"name": "web"} if user is None else {"name": "web", "securityContext": {"runAsUser": user}}
    assert done(pod(one, **spec)).pod["spec"].get("securityContext", {}).get("fsGroup") == group


# probes


def rewritten(
    probe: dict[str, Any], kind: str = "readinessProbe", **rest: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The kubelet's probe, and the sidecar's declaration."""
    patched = done(pod({"name": "web", kind: probe, **rest})).pod
    has = len(container(patched, "tproxy-sidecar")["env"]) > 1
    return container(patched, "web")[kind], variable(patched, "TPROXY_APP_PROBERS") if has else {}


@pytest.mark.parametrize(
    ("kind", "page"), [("livenessProbe", "livez"), ("readinessProbe", "readyz"), ("startupProbe", "startupz")]
)
def test_each_probe_has_its_own_page(kind: str, page: str) -> None:
    path = f"/app-health/web/{page}"
    asked, declared = rewritten({"httpGet": {"port": 80}, "periodSeconds": 3}, kind)
    assert asked == {"httpGet": {"path": path, "port": 15020}, "periodSeconds": 3}
    assert declared == {path: {"httpGet": {"port": 80}, "timeoutSeconds": 1}}


def test_scheme_headers_and_path_move_to_the_sidecar() -> None:
    action = {"path": "/a", "port": 8443, "scheme": "HTTPS", "httpHeaders": [{"name": "Host", "value": "x"}]}
    asked, declared = rewritten({"httpGet": action, "timeoutSeconds": 9})
    assert asked["httpGet"] == {"path": "/app-health/web/readyz", "port": 15020}
    assert declared["/app-health/web/readyz"] == {"httpGet": action, "timeoutSeconds": 9}


def test_tcp_and_grpc_probes_become_http_for_the_kubelet() -> None:
    for action in ({"tcpSocket": {"port": 5432}}, {"grpc": {"port": 50051, "service": "a.B"}}):
        asked, declared = rewritten(action)
        assert asked == {"httpGet": {"path": "/app-health/web/readyz", "port": 15020}}
        assert declared["/app-health/web/readyz"] == {**action, "timeoutSeconds": 1}


def test_a_ports_name_is_looked_up_in_its_own_container() -> None:
    named = [{"name": "http", "containerPort": 8080}]
    assert (
        rewritten({"tcpSocket": {"port": "http"}}, ports=named)[1]["/app-health/web/readyz"]["tcpSocket"]["port"]
        == 8080
    )
    result = done(pod({"name": "a", "ports": named}, {"name": "b", "livenessProbe": {"tcpSocket": {"port": "http"}}}))
    assert container(result.pod, "b")["livenessProbe"] == {"tcpSocket": {"port": "http"}}
    assert any("no port 'http' in its container" in warning for warning in result.warnings)


def test_a_declaration_that_the_sidecar_would_refuse_refuses_the_pod() -> None:
    broken = {"httpGet": {"port": 80, "path": "/a\nb"}}
    said = refused(pod({"name": "web", "livenessProbe": broken}))
    assert said.startswith("pod shop/web: TPROXY_APP_PROBERS: /app-health/web/livez.httpGet.path: ")


def test_exec_probes_and_probes_of_other_hosts_stay() -> None:
    for probe in ({"exec": {"command": ["true"]}}, {"httpGet": {"host": "10.0.0.1", "port": 80}}):
        assert rewritten(probe) == (probe, {})


def test_hooks_by_http_are_asked_of_the_sidecar_and_show_a_key() -> None:
    hooks = {"preStop": {"httpGet": {"port": 80, "path": "/quit"}}, "postStart": {"exec": {"command": ["true"]}}}
    patched = done(pod({"name": "web", "lifecycle": hooks}), Injection(key="secret")).pod
    assert container(patched, "web")["lifecycle"]["preStop"]["httpGet"] == {
        "path": "/app-lifecycle/web/prestopz",
        "port": 15020,
        "httpHeaders": [{"name": "tproxy-key", "value": "secret"}],
    }
    declared = variable(patched, "TPROXY_APP_PROBERS")["/app-lifecycle/web/prestopz"]
    assert declared == {"httpGet": {"port": 80, "path": "/quit"}, "timeoutSeconds": 30, "key": "secret"}
    assert any("can call this hook" in warning for warning in done(pod({"name": "web", "lifecycle": hooks})).warnings)


def test_probes_stay_where_the_author_says_so_and_strict_would_refuse_them() -> None:
    probed = {"name": "web", "livenessProbe": {"httpGet": {"port": 80}}}
    result = done(pod(probed, annotations={"tproxy.dev/rewriteProbes": "false"}))
    assert container(result.pod, "web")["livenessProbe"] == probed["livenessProbe"]
    assert result.warnings == ("container web: livenessProbe: stays as it is, and a strict port refuses it",)


# what applications lose, and who is refused


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, {"drop": ["NET_RAW"]}),
        ({"drop": ["ALL"]}, {"drop": ["ALL"]}),
        ({"drop": ["NET_RAW"]}, {"drop": ["NET_RAW"]}),
        ({"drop": ["CAP_NET_RAW"]}, {"drop": ["CAP_NET_RAW"]}),
        ({"add": ["CHOWN"]}, {"add": ["CHOWN"], "drop": ["NET_RAW"]}),
        ({"add": ["NET_RAW"]}, {"drop": ["NET_RAW"]}),
        ({"add": ["NET_RAW"], "drop": ["ALL"]}, {"drop": ["ALL"]}),
        ({"add": ["ALL"], "drop": ["ALL"]}, {"add": ["ALL"], "drop": ["ALL", "NET_RAW"]}),
    ],
)
def test_applications_lose_net_raw(before: Any, after: Any) -> None:
    one: dict[str, Any] = {"name": "web", **({"securityContext": {"capabilities": before}} if before else {})}
    assert container(done(pod(one)).pod, "web")["securityContext"]["capabilities"] == after


@pytest.mark.parametrize(
    ("value", "kept"), [("true", {"a", "b"}), ("a", {"a"}), ("a, b", {"a", "b"}), ("false", set())]
)
def test_an_annotation_keeps_net_raw(value: str, kept: set[str]) -> None:
    patched = done(pod({"name": "a"}, {"name": "b"}, annotations={"tproxy.dev/netRaw": value})).pod
    assert {one["name"] for one in patched["spec"]["containers"] if "securityContext" not in one} == kept


def test_keeping_net_raw_for_a_container_that_is_not_there_is_refused_with_the_nearest() -> None:
    said = refused(pod({"name": "pinger"}, annotations={"tproxy.dev/netRaw": "pingr"}))
    assert said.startswith("pod shop/web: metadata.annotations.tproxy.dev/netRaw: 'pingr'")
    assert said.endswith("did you mean 'pinger'?")


@pytest.mark.parametrize("security", [{"privileged": True}, {"capabilities": {"add": ["NET_ADMIN"]}}])
def test_who_can_remove_the_rules_is_told_of(security: dict[str, Any]) -> None:
    warnings = done(pod({"name": "web", "securityContext": security})).warnings
    assert any("can remove the rules of this pod" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, True),
        ({"prometheus.io/port": "metrics"}, False),
        ({"tproxy.dev/excludeInboundPorts": "9100"}, False),
        ({"tproxy.dev/includeInboundPorts": "80"}, False),
        ({"tproxy.dev/portModes": "9100=permissive"}, False),
        ({"tproxy.dev/mode": "permissive"}, False),
    ],
)
def test_who_is_scraped_in_plaintext_on_a_strict_port_is_told_of(more: dict[str, str], told: bool) -> None:
    scraped = {"prometheus.io/scrape": "true", "prometheus.io/port": "9100", **more}
    warnings = done(pod(annotations=scraped)).warnings
    assert any("a strict port refuses Prometheus" in warning for warning in warnings) == told


@pytest.mark.parametrize("key", ["runAsUser", "runAsGroup"])
def test_who_runs_as_the_proxy_is_refused(key: str) -> None:
    as_proxy = {"securityContext": {key: 1337}}
    assert f"spec.containers[0].securityContext.{key}: 1337: is the sidecar's" in refused(
        pod({"name": "a", **as_proxy})
    )
    assert f"spec.securityContext.{key}: 1337" in refused(pod(**as_proxy))
    assert "spec.initContainers[0]" in refused(pod(initContainers=[{"name": "a", **as_proxy}]))
    done(pod({"name": "a", "securityContext": {key: 1}}, **as_proxy))  # the container's word counts


@pytest.mark.parametrize(
    ("given_pod", "message"),
    [
        (pod({"name": "a"}, {"name": "a"}), "spec.containers[1].name: 'a': two containers have this name"),
        (pod({"name": "a"}, initContainers=[{"name": "a"}]), "two containers have this name"),
        (pod({"name": "tproxy-sidecar"}), "is the injector's, but this pod was not injected by it"),
        (pod({"name": "istio-proxy"}), "Istio's sidecar is here already"),
        (pod({"image": "a"}), "spec.containers[0].name: is missing"),
        (pod({"name": "a", "ports": [{"containerPort": 15006}]}), "ports[0].containerPort: 15006"),
        (pod(volumes=[{"name": "tproxy-token"}]), "spec.volumes[0].name: 'tproxy-token'"),
        (pod({"name": 3}), "spec.containers[0].name: 3: expected text"),
        (
            pod(annotations={"tproxy.dev/excludeOutboundUIDs": "1337"}),
            "excludeOutboundUIDs: 1337: is the sidecar's own",
        ),
        (pod(containers="x"), "spec.containers: 'x': expected a list"),
    ],
)
def test_what_cannot_stand_beside_a_sidecar_is_refused_with_the_field(given_pod: dict[str, Any], message: str) -> None:
    assert message in refused(given_pod)


def test_the_sidecars_ports_are_tcp() -> None:
    done(pod({"name": "a", "ports": [{"containerPort": 15020, "protocol": "UDP"}]}))


# who is left alone


@pytest.mark.parametrize(
    ("given_pod", "reason"),
    [
        (pod(hostNetwork=True), "hostNetwork"),
        (pod(os={"name": "windows"}), "Windows"),
        (pod(nodeSelector={"kubernetes.io/os": "windows"}), "Windows"),
        (pod(containers=[]), "no containers"),
        (pod(annotations={"tproxy.dev/inject": "false"}), "metadata.annotations: tproxy.dev/inject is false"),
        (pod(annotations={"sidecar.istio.io/inject": "false"}), "sidecar.istio.io/inject is false"),
        ({"metadata": {"labels": {"tproxy.dev/inject": "false"}}, "spec": {"containers": [{}]}}, "metadata.labels"),
        ({}, "no containers"),
    ],
)
def test_these_are_left_alone_and_the_reason_is_said(given_pod: dict[str, Any], reason: str) -> None:
    result = inject(given_pod, CLUSTER)
    assert isinstance(result, Skip)
    assert reason in result.reason


def test_our_word_counts_before_istios() -> None:
    done(pod(annotations={"sidecar.istio.io/inject": "false", "tproxy.dev/inject": "true"}))


def test_label_and_annotation_may_not_contradict_each_other() -> None:
    torn = pod(annotations={"tproxy.dev/inject": "true"})
    torn["metadata"]["labels"] = {"tproxy.dev/inject": "false"}
    assert "the label tproxy.dev/inject says false, the annotation the opposite" in refused(torn)


def test_a_copied_status_without_our_containers_does_not_keep_the_sidecar_out() -> None:
    done(pod(annotations={"tproxy.dev/status": "{}"}))


# who comes late


def late(**container_: Any) -> dict[str, Any]:
    """An injected pod into which another webhook has put one more container."""
    patched = done(pod({"name": "web", "livenessProbe": {"tcpSocket": {"port": 80}}})).pod
    patched["spec"]["containers"].append({"name": "late", **container_})
    return patched


def test_who_comes_late_loses_net_raw_and_is_probed_through_the_sidecar_like_everyone_else() -> None:
    result = done(late(readinessProbe={"httpGet": {"port": 9000, "path": "/$a"}}))
    assert container(result.pod, "late")["securityContext"]["capabilities"] == {"drop": ["NET_RAW"]}
    declared = variable(result.pod, "TPROXY_APP_PROBERS")
    assert set(declared) == {"/app-health/web/livez", "/app-health/late/readyz"}
    assert declared["/app-health/late/readyz"]["httpGet"] == {"port": 9000, "path": "/$a"}
    assert jsonpatch.apply_patch(late(readinessProbe={"httpGet": {"port": 9000, "path": "/$a"}}), result.operations)
    assert inject(result.pod, CLUSTER) == Skip("already injected")


def test_who_comes_late_and_runs_as_the_proxy_is_refused() -> None:
    assert "runAsUser: 1337: is the sidecar's" in refused(late(securityContext={"runAsUser": 1337}))


def test_who_pushes_in_before_the_rules_is_told_of() -> None:
    patched = done(pod()).pod
    patched["spec"]["initContainers"].insert(0, {"name": "early"})
    assert "init container early: runs before tproxy-init, uncaptured" in done(patched).warnings


@given(PODS, st.sampled_from([CLUSTER, OLD]))
@UNHURRIED
def test_whoever_comes_late_the_second_injection_is_the_last(given_pod: dict[str, Any], settings: Injection) -> None:
    match inject(given_pod, settings):
        case Patch(pod=patched):
            patched["spec"]["containers"].append({"name": "late", "livenessProbe": {"grpc": {"port": 1}}})
            assert inject(done(patched, settings).pod, settings) == Skip("already injected")


# annotations


def noted(**annotations: str) -> Patch:
    names = {"ip": "includeOutboundIPRanges", "ports": "includeOutboundPorts"}
    istio = {f"traffic.sidecar.istio.io/{names[key]}": value for key, value in annotations.items()}
    return done(pod(annotations=istio))


def test_istios_ports_without_ranges_mean_everything_as_with_istio() -> None:
    result = noted(ports="8080")
    assert config(result.pod).capture.include_outbound_ports is None
    assert any("everything is captured, as with Istio" in warning for warning in result.warnings)
    assert config(
        done(pod(annotations={"tproxy.dev/includeOutboundPorts": "80"})).pod
    ).capture.include_outbound_ports == {80}


def test_istios_ports_beside_ranges_are_refused_because_they_are_ored_there() -> None:
    said = refused(pod(annotations={
        "traffic.sidecar.istio.io/includeOutboundPorts": "80",
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8",
    }))  # fmt: skip
    assert "not supported; name the ranges only" in said


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (
            {"mode": "Strict"},
            "tproxy.dev/mode: 'Strict': expected one of strict, permissive, disable; did you mean 'strict'?",
        ),
        ({"excludeOutboundPorts": "80,http"}, "tproxy.dev/excludeOutboundPorts[1]: 'http': expected a port"),
        ({"excludeOutboundIPRanges": "10.0.0.1/8"}, "tproxy.dev/excludeOutboundIPRanges[0]: '10.0.0.1/8'"),
        ({"excludeOutboundUIDs": "root"}, "tproxy.dev/excludeOutboundUIDs[0]: 'root': expected a user id"),
        ({"includeInboundPorts": "80,81", "excludeInboundPorts": "81"}, "81 stands in includeInboundPorts, too"),
        ({"includeInboundIPRanges": "10.0.0.0/8", "excludeInboundIPRanges": "10.0.0.0/8"}, "10.0.0.0/8 stands in"),
        ({"portModes": "80:strict"}, "tproxy.dev/portModes[0]: '80:strict': expected PORT=MODE"),
        ({"cpu": "2", "cpuLimit": "100m"}, "tproxy.dev/cpu: '2': the request is above its limit 100m"),
        ({"memory": "1 GB"}, "tproxy.dev/memory: '1 GB': expected a quantity"),
        ({"native": "yes"}, "tproxy.dev/native: 'yes': expected one of true, false"),
        ({"logLevel": "trace"}, "tproxy.dev/logLevel: 'trace': expected one of debug, info"),
        ({"image": " "}, "tproxy.dev/image: is empty"),
        ({"inject": "on"}, "tproxy.dev/inject: 'on': expected one of true, false"),
        ({"egress": "allow"}, "tproxy.dev/egress: 'allow': expected one of passthrough, deny"),
    ],
)
def test_a_wrong_annotation_refuses_the_pod_with_field_value_and_nearest(
    annotations: dict[str, str], message: str
) -> None:
    said = refused(pod(annotations={f"tproxy.dev/{name}": value for name, value in annotations.items()}))
    assert said.startswith("pod shop/web: metadata.annotations")
    assert message in said


def test_an_unknown_annotation_is_a_warning_with_the_nearest_name() -> None:
    warnings = done(pod(annotations={"tproxy.dev/exclude-outbound-ports": "80"})).warnings
    assert warnings == (
        "metadata.annotations: tproxy.dev/exclude-outbound-ports: unknown, and ignored; "
        "did you mean 'tproxy.dev/excludeOutboundPorts'?",
    )


def test_an_annotation_is_laid_over_the_clusters_configuration() -> None:
    settings = Injection(
        config={"inbound": {"mode": "permissive", "ports": {443: "strict", 80: "strict"}}, "egress": "deny"}
    )
    parsed = config(done(pod(annotations={"tproxy.dev/portModes": "80=disable"}), settings).pod)
    assert (parsed.mode, parsed.port_modes) == (Mode.PERMISSIVE, {443: Mode.STRICT, 80: Mode.DISABLE})


def test_a_request_pulls_its_limit_along_and_a_limit_its_request() -> None:
    def resources(**given_: str) -> tuple[str, str]:
        annotations = {f"tproxy.dev/{name}": value for name, value in given_.items()}
        found = container(done(pod(annotations=annotations)).pod, "tproxy-sidecar")["resources"]
        return found["requests"]["memory"], found["limits"]["memory"]

    assert resources(memory="1Gi") == ("1Gi", "1Gi")
    assert resources(memoryLimit="32Mi") == ("32Mi", "32Mi")
    assert resources(memory="32Mi") == ("32Mi", "256Mi")


def test_jobs_of_old_clusters_are_warned_that_they_do_not_end() -> None:
    assert any("does not end" in warning for warning in done(pod(restartPolicy="Never"), OLD).warnings)
    assert done(pod(restartPolicy="Never")).warnings == ()
