"""What ``kubectl apply -k manifests/...`` would apply: valid, complete, and with no more rights than it says."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pods.podman import injection
from pods.render import Object, containers, find, key, load, render
from tests.conformance.world import SUITE
from tests.test_gateway_schema import specs
from tproxy.cli import parser
from tproxy.cli.gateway_source import labels_of
from tproxy.control.config import Control
from tproxy.core.capture import Capture
from tproxy.core.config import Config
from tproxy.core.egress.config import parse_routes
from tproxy.core.egress.routes import Parity
from tproxy.core.fields import Fields
from tproxy.core.inject.injection import NEVER, Injection
from tproxy.core.inject.pod import Patch, Skip, inject
from tproxy.core.inject.workload import places
from tproxy.core.settings import IstioCa, Mixed, Mode, Outside, WorkloadApi
from tproxy.gateway.gatewayapi.conditions import CONTROLLER
from tproxy.gateway.kinds import CORE, CUSTOM, WITH_STATUS

HERE = Path(__file__).parents[1] / "manifests"
OVERLAYS = sorted(path.parent for path in HERE.glob("overlays/*/kustomization.yaml"))
FILES = sorted(path for path in HERE.rglob("*.yaml") if path.name != "kustomization.yaml")
BROUGHT = {"tproxy-ca"}  # by whoever installs: README
VERSION = "1.31"


PLACES = [HERE / "base", HERE / "examples", HERE / "egress", HERE / "gateway", *OVERLAYS]


@pytest.fixture(params=PLACES, ids=lambda path: path.name)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return render(request.param)


def settings(overlay: str) -> Injection:
    found = find(render(HERE / overlay), "ConfigMap", "tproxy-control")
    return Injection.parse(injection(found), "injection")


def validate(one: Object) -> None:
    """By Kubernetes' schemas; what has a definition of its own, by that, where it is at hand."""
    if not one["apiVersion"].startswith("gateway.networking.k8s.io/"):
        kubernetes_validate.validate(one, VERSION, strict=True)
    elif SUITE.is_dir():
        jsonschema.validate(one["spec"], specs()[one["kind"]])


def templates(objects: list[Object]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that these make, with its namespace."""
    for one in objects:
        for place in places(one):
            yield one["metadata"]["namespace"], place.look(one)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HERE)))
def test_every_file_is_valid_against_kubernetes_schemas(path: Path) -> None:
    for one in load(path):
        validate(one)


def test_every_overlay_renders_to_valid_objects_each_of_which_is_there_once(objects: list[Object]) -> None:
    for one in objects:
        validate(one)
    names = [key(one) for one in objects]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_kubectl_renders_the_same(overlay: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: the renderer is compared with it where it is")
    text = subprocess.run(["kubectl", "kustomize", overlay], capture_output=True, text=True, check=True).stdout
    theirs = {key(one): one for one in yaml.safe_load_all(text)}
    assert theirs == {key(one): one for one in render(overlay)}


def test_what_a_kustomization_uses_and_the_renderer_does_not_know_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: []\nnamePrefix: x-\n")
    with pytest.raises(ValueError, match="namePrefix: not known"):
        render(tmp_path)


def test_every_reference_leads_to_something(objects: list[Object]) -> None:
    there = {(one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]) for one in objects}
    for namespace, pod in templates(objects):
        spec = pod["spec"]
        assert ("ServiceAccount", namespace, spec["serviceAccountName"]) in there
        assert ("Namespace", "", namespace) in there
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", namespace, volume["configMap"]["name"]) in there
            if "secret" in volume:
                assert volume["secret"]["secretName"] in BROUGHT
        mounted = {mount["name"] for one in spec["containers"] for mount in one.get("volumeMounts", [])}
        assert mounted == set(volumes)
    for one in objects:
        if one["kind"] == "ClusterRoleBinding":
            assert ("ClusterRole", "", one["roleRef"]["name"]) in there
            for subject in one["subjects"]:
                assert (subject["kind"], subject["namespace"], subject["name"]) in there


def test_every_selector_selects_a_pod_and_every_port_is_one_of_its(objects: list[Object]) -> None:
    pods = list(templates(objects))
    for one in objects:
        namespace, spec = one["metadata"].get("namespace"), one.get("spec", {})
        wanted = spec.get("podSelector", spec.get("selector"))
        if one["kind"] not in ("Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment") or wanted == {}:
            continue
        labels = wanted.get("matchLabels", wanted)
        chosen = [
            pod for where, pod in pods if where == namespace and labels.items() <= pod["metadata"]["labels"].items()
        ]
        assert chosen, key(one)
        ports = {port["name"] for pod in chosen for found in containers(pod) for port in found.get("ports", [])}
        if one["kind"] == "Service":
            assert {port["targetPort"] for port in spec["ports"]} <= ports
    for pod in (pod for _, pod in pods):
        for container in containers(pod):
            ports = {port["name"] for port in container.get("ports", [])}
            asked = [container.get(f"{kind}Probe", {}) for kind in ("startup", "readiness", "liveness")]
            named = {how["port"] for probe in asked for kind in ("httpGet", "tcpSocket") if (how := probe.get(kind))}
            assert named <= ports


def test_the_webhook_asks_for_labelled_namespaces_only_and_never_for_the_clusters_or_its_own() -> None:
    objects = render(HERE / "base")
    (hook,) = find(objects, "MutatingWebhookConfiguration", "tproxy-injector")["webhooks"]
    assert hook["failurePolicy"] == "Fail"
    assert hook["namespaceSelector"]["matchLabels"] == {"tproxy.dev/inject": "true"}
    (never,) = hook["namespaceSelector"]["matchExpressions"]
    assert (never["key"], never["operator"]) == ("kubernetes.io/metadata.name", "NotIn")
    assert set(never["values"]) == {*NEVER, "tproxy-system"}
    assert hook["sideEffects"] == "None"
    service = find(objects, "Service", hook["clientConfig"]["service"]["name"])
    assert hook["clientConfig"]["service"]["port"] in {port["port"] for port in service["spec"]["ports"]}
    assert service["metadata"]["namespace"] == hook["clientConfig"]["service"]["namespace"]


def test_control_has_these_rights_and_no_others() -> None:
    objects = render(HERE / "base")
    assert [one["kind"] for one in objects if "Role" in one["kind"]] == ["ClusterRole", "ClusterRoleBinding"]
    rules = find(objects, "ClusterRole", "tproxy-control")["rules"]
    rights = {(rule["resources"][0], *rule.get("resourceNames", [])): rule["verbs"] for rule in rules}
    assert rights == {
        ("tokenreviews",): ["create"],
        ("pods",): ["get", "list", "watch"],
        ("services",): ["list", "watch"],
        ("endpointslices",): ["list", "watch"],
        ("mutatingwebhookconfigurations", "tproxy-injector"): ["get", "patch"],
        ("namespaces",): ["list"],
        (
            "customresourcedefinitions",
            "authorizationpolicies.security.istio.io",
            "peerauthentications.security.istio.io",
        ): ["get"],
        ("authorizationpolicies",): ["list", "watch"],
        ("peerauthentications",): ["list", "watch"],
        ("configmaps", "tproxy-ca-roots"): ["list", "create", "patch"],
    }
    assert all(len(rule["resources"]) == 1 for rule in rules)


def test_the_gateway_has_the_rights_that_it_uses_and_no_others() -> None:
    rules = find(render(HERE / "gateway"), "ClusterRole", "tproxy-gateway")["rules"]
    rights = {
        (group, resource, verb, name)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }
    read = {(kind.group, kind.plural, verb, "") for kind in (*CORE, *CUSTOM) for verb in ("list", "watch")}
    written = {(kind.group, f"{kind.plural}/status", "patch", "") for kind in WITH_STATUS.values()}
    asked = {("apiextensions.k8s.io", "customresourcedefinitions", "get", kind.definition) for kind in CUSTOM}
    assert rights == read | written | asked


def test_the_gateway_understands_its_arguments_and_serves_its_class() -> None:
    objects = render(HERE / "gateway")
    (container,) = containers(find(objects, "Deployment", "tproxy-gateway"))
    args = parser().parse_args(container["args"])
    namespace, _, name = args.publish_service.partition("/")
    assert find(objects, "Service", name)["metadata"]["namespace"] == namespace
    assert args.kubernetes and labels_of(args) == {"istio": "ingressgateway"}
    assert find(objects, "GatewayClass", "tproxy")["spec"]["controllerName"] == CONTROLLER


@pytest.mark.parametrize(
    ("folder", "namespace", "deployment"),
    [("base", "tproxy-system", "tproxy-control"), ("gateway", "tproxy-gateway", "tproxy-gateway")],
)
def test_control_and_gateway_may_run_where_pod_security_is_restricted(
    folder: str, namespace: str, deployment: str
) -> None:
    """Kubernetes, Pod Security Standards, "Restricted"."""
    objects = render(HERE / folder)
    labels = find(objects, "Namespace", namespace)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    spec = find(objects, "Deployment", deployment)["spec"]["template"]["spec"]
    sysctls = {each["name"] for each in spec["securityContext"].get("sysctls", ())}
    assert sysctls <= {"net.ipv4.ip_unprivileged_port_start"}
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {next(iter(set(volume) - {"name"})) for volume in spec.get("volumes", ())} <= {
        "configMap",
        "secret",
        "emptyDir",
    }


@pytest.mark.parametrize("overlay", ["base", *(f"overlays/{path.name}" for path in OVERLAYS)])
def test_control_and_the_injector_understand_their_files(overlay: str) -> None:
    data = find(render(HERE / overlay), "ConfigMap", "tproxy-control")["data"]
    control = Control.parse(yaml.safe_load(data["control.yaml"]), "control.yaml")
    (container,) = containers(find(render(HERE / overlay), "Deployment", "tproxy-control"))
    assert control.dir in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert "tproxy-control.tproxy-system.svc" in control.names
    if overlay != "overlays/podman":
        assert control.webhook is not None
        assert control.webhook.host == "tproxy-control.tproxy-system.svc"
        (hook,) = find(render(HERE / overlay), "MutatingWebhookConfiguration", control.webhook.configuration)[
            "webhooks"
        ]
        assert control.webhook.namespaces == "=".join(*hook["namespaceSelector"]["matchLabels"].items())
        ports = {
            port["port"] for port in find(render(HERE / overlay), "Service", control.webhook.service)["spec"]["ports"]
        }
        assert control.directory is not None
        assert ports == {control.port, control.webhook.port, control.directory.port}
    assert settings(overlay).namespace == "tproxy-system"


def test_the_overlays_do_what_they_are_named_for() -> None:
    def config(overlay: str) -> Config:
        return Config.parse(settings(f"overlays/{overlay}").config, overlay)

    assert config("demo").mode is Mode.STRICT
    moving = config("permissive-migration")
    assert (moving.mode, moving.egress, moving.mesh) == (Mode.PERMISSIVE, Outside.PASSTHROUGH, ())
    assert moving.directory is not None and moving.directory.mixed is Mixed.PLAIN
    for other in ("demo", "spire", "istio-ca"):
        directory = config(other).directory
        assert directory is None or directory.mixed is Mixed.MTLS
    assert isinstance(config("spire").identity, WorkloadApi)
    found = config("istio-ca").identity
    assert isinstance(found, IstioCa)
    assert found.address.startswith("istiod.istio-system.svc")


@pytest.mark.parametrize("overlay", ["demo", "podman"])
def test_the_examples_are_injected_into_valid_pods_and_one_is_left_out(overlay: str) -> None:
    results = {}
    for one in render(HERE / "overlays" / overlay):
        if one["metadata"].get("namespace") == "demo":
            for place in places(one):
                results[place.name] = result = inject(place.look(one), settings(f"overlays/{overlay}"))
                if isinstance(result, Patch):
                    assert result.warnings == ()
                    pod = {"apiVersion": "v1", "kind": "Pod", **result.pod}
                    kubernetes_validate.validate(pod, VERSION, strict=True)
    assert {name: type(result) for name, result in results.items()} == {
        "web": Patch,
        "client": Patch,
        "order": Patch,
        "outsider": Skip,
    }


def test_002_06_the_example_of_egress_routes_where_its_policies_let_it_go() -> None:
    """Rules, Services, pods and NetworkPolicy of manifests/egress fit one another."""
    objects = render(HERE / "egress")
    text = find(objects, "ConfigMap", "egress-routes")["data"]["egress.yaml"]
    routes = parse_routes(Fields(yaml.safe_load(text), "egress.yaml"), Capture())
    assert [rule.octet for rule in routes.rules] == [Parity.EVEN, Parity.ODD]
    policy = find(objects, "NetworkPolicy", "client")["spec"]["egress"]
    allowed = {port["port"] for part in policy for port in part["ports"]}
    assert allowed == {53, 8080, 8081, 15001, 15006, 15010, 15011, 15012, 15013, 15020}
    for host, port in routes.hops:
        name, namespace, *_ = host.split(".")
        service = find(objects, "Service", name)
        assert namespace == service["metadata"]["namespace"] and host.endswith(".svc.cluster.local")
        (target,) = [one["targetPort"] for one in service["spec"]["ports"] if one["port"] == port]
        deployment = find(objects, "Deployment", name)
        (container,) = [one for one in containers(deployment) if one["name"] == target]
        assert f"TCP-LISTEN:{port},fork,reuseaddr" in container["args"]
        (peers,) = [part["to"] for part in policy if {"port": port} in part["ports"]]
        assert {"podSelector": {"matchLabels": service["spec"]["selector"]}} in peers
    (place,) = places(find(objects, "Deployment", "client"))
    patched = inject(place.look(find(objects, "Deployment", "client")), settings("overlays/demo"))
    assert isinstance(patched, Patch) and patched.warnings == ()
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **patched.pod}, VERSION, strict=True)
    assert {"name": "tproxy-egress", "configMap": {"name": "egress-routes"}} in patched.pod["spec"]["volumes"]
