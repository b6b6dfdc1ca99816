"""The trust bundle as a ConfigMap in each namespace whose pods are injected: what sidecars verify the authority with.

Where: namespaces with the label that the webhook is called for, and wherever a ConfigMap of that name is already, so
that pods outlive the label and ``tproxy inject`` works elsewhere. Not everywhere, as istiod does: the rights would be
the same, but we would write where nobody asked us to. Nothing is deleted: a pod may still mount it.

Rights needed: list of namespaces; list, create and patch of configmaps, all three for that one name. RBAC cannot
bound create by name, except where it comes by server-side apply, whose request has the name in its path
(apiserver, handlers/patch.go, createAuthorizerAttributes).
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from tproxy.kube.api_server import APPLY_PATCH, ApiError, Reply, connected, failed, text
from tproxy.kube.where import Kubernetes

KEY = "root-cert.pem"
AT_ONCE = 50  # on one connection, which has five seconds
FIELDS = "?fieldManager=tproxy-control&force=true"


@dataclass(frozen=True, slots=True)
class Published:
    """Namespaces: all that have the bundle now, and those that had it not before."""

    every: frozenset[str]
    written: list[str]


async def publish(where: Kubernetes, name: str, label: str, spared: frozenset[str], bundle: str) -> Published:
    """In all namespaces that need it. ApiError says where it could not be; the others are done then."""
    async with connected(where) as api:
        spaces, maps = "/api/v1/namespaces", "/api/v1/configmaps"
        labelled = await api.listed(spaces, f"labelSelector={quote(label)}", "list of namespaces")
        rule = f"list of configmaps with resourceNames: [{name}]"
        present = await api.listed(maps, f"fieldSelector=metadata.name%3D{name}", rule)
    alive = {text(one, "metadata", "name") for one in labelled if text(one, "status", "phase") != "Terminating"}
    held = {text(one, "metadata", "namespace"): text(one, "data", KEY) for one in present}
    every = (alive | held.keys()) - spared - {""}
    wanted = sorted(space for space in every if held.get(space) != bundle)
    wrong: list[str] = []
    for first in range(0, len(wanted), AT_ONCE):
        wrong += await _write(where, wanted[first : first + AT_ONCE], name, bundle)
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ApiError(f"{wrong[0]}{more}")
    return Published(frozenset(every), wanted)


async def _write(where: Kubernetes, spaces: list[str], name: str, bundle: str) -> list[str]:
    """What went wrong."""
    wrong = []
    async with connected(where) as api:
        for space in spaces:
            meta = {"name": name, "namespace": space}
            document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {KEY: bundle}}
            reply = await api.patch(f"/api/v1/namespaces/{space}/configmaps/{name}{FIELDS}", document, APPLY_PATCH)
            if reply.status not in (200, 201) and not _is_gone(reply):
                rule = f"create and patch of configmaps with resourceNames: [{name}]"
                wrong.append(str(failed(reply, f"writing the ConfigMap {space}/{name}", rule)))
    return wrong


def _is_gone(reply: Reply) -> bool:
    """Whether the namespace was deleted meanwhile."""
    return reply.status == 404 or (
        reply.status == 403 and "because it is being terminated" in text(reply.body, "message")
    )
