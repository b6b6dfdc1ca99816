"""Pods for tests: some to write down, and arbitrary ones."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

UNHURRIED = settings(deadline=None)  # a busy machine is no fault
ALPHABET = "ab/~$()-. ü\n"  # a small one: the whole of Unicode takes seconds to load


def _text(max_size: int) -> st.SearchStrategy[str]:
    return st.text(ALPHABET, max_size=max_size)


NAMES = st.sampled_from(["web", "side", "grpc", "init-db", "cache", "x"])
PORTS = st.one_of(st.integers(1, 65535), st.sampled_from(["http", "nowhere", "9090"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70000) | _text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def pod(*containers: dict[str, Any], annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A pod called shop/web with one container, or with these."""
    meta: dict[str, Any] = {"name": "web", "namespace": "shop"}
    if annotations is not None:
        meta["annotations"] = annotations
    return {"metadata": meta, "spec": {"containers": list(containers) or [{"name": "web"}], **spec}}


def _some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the fields, or none."""
    return st.fixed_dictionaries({}, optional=fields)


HTTP = st.fixed_dictionaries(
    {"port": PORTS},
    optional={
        "path": _text(max_size=6),
        "scheme": st.sampled_from(["HTTP", "HTTPS"]),
        "host": st.sampled_from(["", "10.0.0.1"]),
        "httpHeaders": st.just([{"name": "A", "value": "$(B)"}]),
    },
)
HANDLER = st.one_of(
    st.fixed_dictionaries({"httpGet": HTTP}),
    st.fixed_dictionaries({"tcpSocket": st.fixed_dictionaries({"port": PORTS})}),
    st.fixed_dictionaries({"grpc": st.fixed_dictionaries({"port": st.integers(1, 65535)})}),
    st.just({"exec": {"command": ["true"]}}),
)
PROBE = st.builds(lambda handler, rest: {**handler, **rest}, HANDLER, _some(timeoutSeconds=st.integers(1, 9)))
CAPABILITY = st.sampled_from(["NET_RAW", "ALL", "NET_ADMIN", "CHOWN", "cap_net_raw"])
SECURITY = _some(
    runAsUser=st.sampled_from([0, 1000, 1337]),
    privileged=st.booleans(),
    capabilities=_some(add=st.lists(CAPABILITY, max_size=2), drop=st.lists(CAPABILITY, max_size=2)),
)
CONTAINER = st.fixed_dictionaries(
    {"name": NAMES},
    optional={
        "image": st.just("app:1"),
        "ports": st.lists(
            st.fixed_dictionaries({"containerPort": st.sampled_from([80, 8080, 15020]), "name": st.just("http")}),
            max_size=1,
        ),
        "securityContext": st.none() | SECURITY,
        "livenessProbe": st.none() | PROBE,
        "readinessProbe": PROBE,
        "startupProbe": PROBE,
        "lifecycle": _some(preStop=HANDLER, postStart=HANDLER),
        "restartPolicy": st.just("Always"),
    },
)
CONTAINERS = st.lists(CONTAINER, max_size=3, unique_by=lambda container: container["name"])
ANNOTATIONS = st.fixed_dictionaries(
    {},
    optional={
        "tproxy.dev/mode": st.sampled_from(["strict", "permissive", "disable", "x"]),
        "tproxy.dev/native": st.sampled_from(["true", "false"]),
        "tproxy.dev/rewriteProbes": st.sampled_from(["true", "false"]),
        "tproxy.dev/excludeOutboundPorts": st.sampled_from(["", "53", "53,80"]),
        "traffic.sidecar.istio.io/excludeOutboundPorts": st.just("53"),
        "tproxy.dev/netRaw": st.sampled_from(["true", "web"]),
        "tproxy.dev/secret": st.just("tls"),
        "tproxy.dev/other": st.just("b"),
        "example.com/a~b": _text(max_size=3),
    },
)
PODS = st.fixed_dictionaries(
    {
        "spec": st.builds(
            lambda init, rest: {**rest, "initContainers": init},
            CONTAINERS.map(lambda found: [{**one, "name": "i-" + one["name"]} for one in found]),
            st.fixed_dictionaries(
                {"containers": CONTAINERS},
                optional={
                    "volumes": st.none() | st.just([{"name": "data", "emptyDir": {}}]),
                    "securityContext": _some(runAsUser=st.sampled_from([0, 5]), fsGroup=st.sampled_from([0, 5])),
                    "terminationGracePeriodSeconds": st.integers(0, 60),
                    "restartPolicy": st.sampled_from(["Always", "Never"]),
                    "hostNetwork": st.booleans(),
                },
            ),
        )
    },
    optional={"metadata": _some(name=st.just("web"), annotations=st.none() | ANNOTATIONS)},
)
