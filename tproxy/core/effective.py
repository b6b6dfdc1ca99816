"""What Kubernetes objects make of a Config, once it is known which workload this is.

An object that applies and cannot be read refuses the whole set: at start the sidecar does not start, later the last
good set keeps serving. Half a set could be more open than either.
"""

from __future__ import annotations

from dataclasses import replace

from tproxy.core import istio_authn
from tproxy.core.authorization import Action, Authorization
from tproxy.core.config import Config, ConfigError
from tproxy.core.identity import SpiffeId
from tproxy.core.istio_policy import Names, authorization
from tproxy.core.settings import Settled


def settle(config: Config, own: SpiffeId | None) -> Config:
    """The Config with the modes and the policy of the objects that apply to our namespace, or that of ``workload``."""
    if not config.manifests or config.settled is not None:
        return config
    namespace = config.workload.namespace or (own.namespace if own else None)
    if not namespace:
        why = f"is missing: {own} does not tell our namespace" if own else "is missing"
        raise ConfigError("configuration", "workload.namespace", why)
    workload = replace(config.workload, namespace=namespace)
    applying = [manifest for manifest in config.manifests if manifest.applies(workload)]
    names = Names(config.trust_domain, config.trust.aliases, tuple(o.trust_domain for o in config.trust.federated))
    policies = [(authorization(each, names), each.dry_run) for each in applying if each.kind == "AuthorizationPolicy"]
    objects, trials = (tuple(each for each, dry in policies if dry is trial) for trial in (False, True))
    modes = istio_authn.effective((each for each in applying if each.kind == "PeerAuthentication"), workload)
    if modes.applying and config.modes_said:
        both = f"stands beside {', '.join(modes.applying)}: one of them only can set the modes"
        raise ConfigError("configuration", config.modes_said, both)
    mode = modes.mode or config.mode
    return replace(
        config,
        policy=replace(config.policy, objects=objects, trials=trials),
        mode=mode,
        port_modes={port: own or mode for port, own in modes.ports.items()} if modes.applying else config.port_modes,
        settled=Settled(namespace, modes.origin, modes.ports_origin, (*modes.remarks, *_audits(objects))),
    )


def _audits(objects: tuple[Authorization, ...]) -> tuple[str, ...]:
    said = "only writes the field audit of records; it denies nobody"
    return tuple(f"AuthorizationPolicy {each.name} {said}" for each in objects if each.action is Action.AUDIT)
