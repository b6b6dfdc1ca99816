"""What the injector knows besides the pod: image, identity, resources, and the configuration every sidecar starts from.

>>> Injection.parse({"image": "registry.example/tproxy:1"}, "inject.yaml").image
'registry.example/tproxy:1'
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tproxy import __version__
from tproxy.core.config import Config
from tproxy.core.fields import Fields

INIT, SIDECAR = "tproxy-init", "tproxy-sidecar"  # our containers
NEVER = ("kube-system", "kube-public", "kube-node-lease")  # the cluster must come up without us
PULL = ("Always", "IfNotPresent", "Never")
_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(m|k|Ki|M|Mi|G|Gi|T|Ti)?")
_UNITS = {
    "m": 0.001,
    "": 1,
    "k": 1e3,
    "Ki": 2**10,
    "M": 1e6,
    "Mi": 2**20,
    "G": 1e9,
    "Gi": 2**30,
    "T": 1e12,
    "Ti": 2**40,
}


def parse_quantity(value: object) -> str:
    """A Kubernetes quantity such as 100m, 0.5, 64Mi."""
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise ValueError("expected a quantity such as 100m, 0.5 or 64Mi")
    return value


def size(quantity: str) -> float:
    """A parsed quantity as a number, so that a request can be compared with its limit."""
    found = _QUANTITY.fullmatch(quantity)
    assert found is not None
    return float(found[1]) * _UNITS[found[2] or ""]


@dataclass(frozen=True, slots=True)
class Resources:
    """Requests and limits of the sidecar. Limits, because a namespace with a quota demands them.

    ARCHITECTURE.md: an idle sidecar has 31 MiB, 40 MiB after load with hundreds of connections.
    """

    cpu: str = "50m"
    memory: str = "64Mi"
    cpu_limit: str = "2"
    memory_limit: str = "256Mi"


@dataclass(frozen=True, slots=True)
class Injection:
    """How pods are injected in this cluster."""

    image: str = f"tproxy:{__version__}"
    pull_policy: str = "IfNotPresent"
    native: bool = True  # sidecar containers: on by default since Kubernetes 1.29 (KEP-753)
    config: Mapping[str, Any] = field(default_factory=dict)  # of every sidecar; annotations are laid over it
    secret: str = ""  # with tls.crt, tls.key, ca.crt, instead of config.identity
    audience: str = "istio-ca"  # of the token: what istiod and tproxy control want
    token_seconds: int = 43200  # the kubelet renews it at 80 % of its life
    roots: str = "tproxy-ca-roots"  # ConfigMap with root-cert.pem
    resources: Resources = field(default_factory=Resources)
    namespace: str = "tproxy-system"  # our own
    never: tuple[str, ...] = NEVER
    old_kernels: bool = False  # nodes before Linux 5.17, where SO_MARK needs NET_ADMIN
    key: str = ""  # a secret of this one admission, which HTTP lifecycle hooks must show

    @classmethod
    def parse(cls, data: object, where: str) -> Injection:
        """From the mapping in a YAML file. ConfigError names file, field, value and the nearest valid one."""
        top, base = Fields(data, where), cls()
        token = top.inner("token")
        config = top.inner("config")
        Config.parse(config.data, f"{where}: config")  # here rather than once per pod
        found = cls(
            image=top.text("image", base.image),
            pull_policy=top.choice("imagePullPolicy", base.pull_policy, PULL),
            native=top.flag("native", base.native),
            config=config.data,
            secret=top.text("secret"),
            audience=token.text("audience", base.audience),
            token_seconds=token.integer("seconds", base.token_seconds, 600, 86400 * 365),  # 600: the API's minimum
            roots=top.text("roots", base.roots),
            resources=_resources(top.inner("resources")),
            namespace=top.text("namespace", base.namespace),
            never=(*NEVER, *top.items("neverIn", str)),
            old_kernels=top.flag("oldKernels", False),
        )
        token.finish()
        top.finish()
        return found


def _resources(fields: Fields) -> Resources:
    base = Resources()
    found = Resources(
        cpu=fields.parsed("cpu", parse_quantity, base.cpu),
        memory=fields.parsed("memory", parse_quantity, base.memory),
        cpu_limit=fields.parsed("cpuLimit", parse_quantity, base.cpu_limit),
        memory_limit=fields.parsed("memoryLimit", parse_quantity, base.memory_limit),
    )
    fields.finish()
    return found
