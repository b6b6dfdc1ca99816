"""Our two containers and their volumes, with exactly the rights that they need.

*Capabilities*, after ``drop: [ALL]``:

| container | capability | why |
|---|---|---|
| tproxy-init | NET_ADMIN | nft rules, ip rules and routes of the pod's network namespace; the process ends |
| tproxy-sidecar | SETUID, SETGID | it starts as root and becomes uid 1337 before it listens (kernel/privileges.py) |
| tproxy-sidecar | NET_RAW | SO_MARK and IP_TRANSPARENT, kept as uid 1337; NET_ADMIN instead before Linux 5.17 |

Neither can be ``runAsNonRoot``: Kubernetes has no ambient capabilities (KEP-2763), so a container that starts as
another user holds none, and file capabilities are void with ``allowPrivilegeEscalation: false``, which is worth more:
the sidecar serves as uid 1337 and can never become anything else. BPF is off: it would need BPF, NET_ADMIN and the
node's /sys/fs/cgroup, for a short cut that is optional.

*Start.* Native (KEP-753, Kubernetes 1.29): the sidecar is an init container with ``restartPolicy: Always``; what stands
behind it, init containers included, starts when its startup probe has passed, and it ends after the application, so
Jobs complete. Before: the first of the ordinary containers, and its postStart hook ``tproxy wait`` holds the others,
because the kubelet starts containers in order and waits for the hook (kubelet ``startContainer``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tproxy.core.config import Config
from tproxy.core.inject.injection import INIT, SIDECAR, Injection, Resources
from tproxy.core.inject.probes import PROBERS
from tproxy.core.inject.wishes import Wishes
from tproxy.core.settings import IstioCa, WorkloadApi

CONFIG = "TPROXY_CONFIG"  # environment: the sidecar's configuration, as YAML; JSON is YAML
SECRET_PATH = "/var/run/secrets/tproxy"
POD_PATH = "/var/run/tproxy/pod"
LABELS = f"{POD_PATH}/labels"  # a file, as the kubelet writes it anew when labels change; an env variable would not
ROUTES_PATH = "/var/run/tproxy/egress"
ROUTES = f"{ROUTES_PATH}/egress.yaml"  # a ConfigMap's key, which the kubelet writes anew when it changes
STEP_ASIDE = 5  # seconds that an ordinary sidecar goes on listening after the pod's end has begun; as Istio's


def literal(text: str) -> str:
    """Kubernetes expands ``$(NAME)`` in env values; ``$$`` is a dollar (API reference, EnvVar)."""
    return text.replace("$", "$$")


def env(name: str, value: Mapping[str, Any]) -> dict[str, str]:
    """An entry of ``env`` that holds JSON."""
    return {"name": name, "value": literal(json.dumps(value))}


def read_env(container: Mapping[str, Any], name: str) -> str:
    """What ``env`` wrote, or nothing."""
    found = (one.get("value") for one in container.get("env") or [] if one.get("name") == name)
    return str(next(found, None) or "").replace("$$", "$")


def _security(add: list[str]) -> dict[str, Any]:
    """Stated in full, because a pod's own securityContext would be inherited."""
    return {
        "runAsUser": 0,
        "runAsGroup": 0,
        "runAsNonRoot": False,
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": add},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _resources(wanted: Resources) -> dict[str, Any]:
    return {
        "requests": {"cpu": wanted.cpu, "memory": wanted.memory},
        "limits": {"cpu": wanted.cpu_limit, "memory": wanted.memory_limit},
    }


def _common(name: str, args: list[str], config: Mapping[str, Any], wish: Wishes, settings: Injection) -> dict[str, Any]:
    return {
        "name": name,
        "image": wish.image or settings.image,
        "imagePullPolicy": settings.pull_policy,
        "args": args,
        "env": [env(CONFIG, config)],
        "resources": _resources(wish.resources),
        "terminationMessagePolicy": "FallbackToLogsOnError",  # kubectl describe then shows what was wrong
    }


def init(config: Mapping[str, Any], wish: Wishes, settings: Injection) -> dict[str, Any]:
    """The rules. Everything behind it is captured."""
    security = _security(["NET_ADMIN"])  # nft, ip rule, ip route
    made = _common(INIT, ["init"], config, wish, settings)
    return {**made, "resources": _resources(settings.resources), "securityContext": security}


def sidecar(
    config: Mapping[str, Any], parsed: Config, probers: Mapping[str, Any], wish: Wishes, settings: Injection
) -> dict[str, Any]:
    """The sidecar, still without what says whether it is native."""
    args = ["sidecar", "--log-format", wish.log_format, *(["-v", "4"] if wish.debug else [])]
    made = _common(SIDECAR, args, config, wish, settings)
    if probers:
        made["env"].append(env(PROBERS, probers))
    mark = "NET_ADMIN" if settings.old_kernels else "NET_RAW"  # SO_MARK, IP_TRANSPARENT
    return {
        **made,
        "ports": [
            {"name": "tproxy-metrics", "containerPort": parsed.ports.metrics, "protocol": "TCP"},
            {"name": "tproxy-ready", "containerPort": parsed.ports.ready, "protocol": "TCP"},
        ],
        "securityContext": _security([mark, "SETGID", "SETUID"]),  # SETGID, SETUID: become uid 1337
        # no liveness probe: a sidecar that is killed cuts connections that it could have carried
        "startupProbe": {**_ready(parsed), "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 120},
        "readinessProbe": {**_ready(parsed), "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 3},
        "volumeMounts": [
            {"name": volume["name"], "mountPath": path, "readOnly": True}
            for volume, path in volumes(parsed, wish, settings)
        ],
    }


def _ready(parsed: Config) -> dict[str, Any]:
    return {"httpGet": {"path": "/healthz/ready", "port": parsed.ports.ready}}


def hold() -> dict[str, Any]:
    """Lifecycle of an ordinary sidecar: the application waits for it, and it for the last callers."""
    return {
        "postStart": {"exec": {"command": ["tproxy", "wait", "--timeout", "120"]}},
        "preStop": {"exec": {"command": ["tproxy", "wait", "--seconds", str(STEP_ASIDE)]}},
    }


def secret_of(wish: Wishes, settings: Injection) -> str:
    """The Secret with the workload's certificate, if that is where it comes from."""
    return settings.secret if wish.secret is None else wish.secret


def volumes(parsed: Config, wish: Wishes, settings: Injection) -> list[tuple[dict[str, Any], str]]:
    """Volumes and where they are mounted: what identity, labels and rules of egress are read from, and nothing else."""
    found = _identity_volumes(parsed, secret_of(wish, settings), settings)
    if parsed.workload.labels_file == LABELS:
        item = {"path": _file(LABELS), "fieldRef": {"fieldPath": "metadata.labels"}}
        found.append(({"name": "tproxy-pod", "downwardAPI": {"items": [item]}}, POD_PATH))
    if wish.egress_routes is not None:
        found.append(({"name": "tproxy-egress", "configMap": {"name": wish.egress_routes}}, ROUTES_PATH))
    return found


def _identity_volumes(parsed: Config, secret: str, settings: Injection) -> list[tuple[dict[str, Any], str]]:
    if secret:  # 0440: the key is for root and the pod's fsGroup, which is the sidecar's
        volume = {"name": "tproxy-secret", "secret": {"secretName": secret, "defaultMode": 0o440}}
        return [(volume, SECRET_PATH)]
    match parsed.identity:
        case IstioCa(token=token, roots=roots):
            claim = {"audience": settings.audience, "expirationSeconds": settings.token_seconds, "path": _file(token)}
            items = [{"key": "root-cert.pem", "path": _file(roots)}]
            sources: list[dict[str, Any]] = [
                {"serviceAccountToken": claim},
                {"configMap": {"name": settings.roots, "items": items}},
            ]
            if _folder(token) == _folder(roots):
                return [({"name": "tproxy-token", "projected": {"sources": sources}}, _folder(token))]
            return [
                ({"name": "tproxy-token", "projected": {"sources": sources[:1]}}, _folder(token)),
                ({"name": "tproxy-roots", **sources[1]}, _folder(roots)),
            ]
        case WorkloadApi(socket=socket) if socket.startswith("unix:"):
            csi = {"driver": "csi.spiffe.io", "readOnly": True}  # github.com/spiffe/spiffe-csi
            path = "/" + socket.removeprefix("unix:").lstrip("/")
            return [({"name": "tproxy-workload-api", "csi": csi}, _folder(path))]
    return []  # files that the image or another webhook brings


def _folder(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _file(path: str) -> str:
    return path.rpartition("/")[2]
