"""What Kubernetes objects make of a Config, once it is known which workload this is.

An object that applies and cannot be read refuses the whole set: at start the sidecar does not start, later the last
good set keeps serving. Half a set could be more open than either. Where objects and ``inbound`` both set a mode, the
stricter holds: neither can open what the other closes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tproxy.core.config import Config, ConfigError
from tproxy.core.identity import SpiffeId
from tproxy.core.policy import istio_authn
from tproxy.core.policy.authorization import Action, Authorization
from tproxy.core.policy.istio_authn import Modes
from tproxy.core.policy.istio_policy import Names, authorization
from tproxy.core.policy.manifest import Manifest, Workload, distinct
from tproxy.core.policy.told import Told
from tproxy.core.settings import Mode, Settled

_NONE_YET = "no set of policies from control is in force yet"
_OPENNESS = (Mode.STRICT, Mode.PERMISSIVE, Mode.DISABLE)


def with_set(config: Config, told: Told | None) -> Config:
    """The Config of the files, and the objects that control told beside theirs. ConfigError if they contradict."""
    if not config.follows or told is None:
        return config
    workload = config.workload
    if workload.namespace not in ("", told.namespace):
        why = f"control tells of {told.namespace}, which is our SVID's: policies of another would be missed"
        raise ConfigError("configuration", "workload.namespace", why, workload.namespace)
    return replace(
        config,
        workload=replace(workload, namespace=told.namespace, root=told.root),
        manifests=distinct((*config.manifests, *told.manifests())),
        held=told.version,
    )


def settle(config: Config, own: SpiffeId | None) -> Config:
    """The Config with the modes and the policy of the objects that apply to our namespace, or that of ``workload``."""
    if config.settled is not None:
        return config
    if config.follows and not config.held:
        shut = replace(config.policy, closed=_NONE_YET)
        return replace(config, policy=shut, mode=Mode.STRICT, port_modes={}, settled=Settled("", _NONE_YET))
    if not config.manifests:
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
    made = _moded(config, modes)
    assert made.settled is not None
    remarks = (*modes.remarks, *made.settled.remarks, *_audits(objects))
    return replace(
        made,
        policy=replace(config.policy, objects=objects, trials=trials),
        settled=replace(made.settled, namespace=namespace, remarks=remarks),
    )


def check(manifest: Manifest, names: Names) -> None:
    """Reads an object whole, whoever it is for. ConfigError is what its workload's sidecar would say."""
    if manifest.kind == "AuthorizationPolicy":
        authorization(manifest, names)
    else:
        istio_authn.effective((manifest,), Workload(manifest.namespace, manifest.selector))


def _moded(config: Config, modes: Modes) -> Config:
    """The modes, and which object or field set each."""
    own = config.mode if config.mode_said else None
    mode, origin, opened = _stricter("mode", own, modes.mode, modes.origin)
    remarks = [opened]
    port_modes, origins = dict[int, Mode](), dict[int, str]()
    for port in {**config.port_modes, **modes.ports}:
        said = modes.ports.get(port)
        theirs = (said, modes.ports_origin) if said else (modes.mode, modes.origin)
        found, origins[port], opened = _stricter(f"ports.{port}", config.port_modes.get(port, own), *theirs)
        port_modes[port] = found or config.mode
        remarks.append(opened)
    told = tuple(dict.fromkeys(filter(None, remarks)))
    return replace(config, mode=mode or config.mode, port_modes=port_modes, settled=Settled("", origin, origins, told))


def _stricter(field: str, ours: Mode | None, theirs: Mode | None, title: str) -> tuple[Mode | None, str, str]:
    """Which holds, where it comes from, and what to say if an object does less than it seems."""
    if theirs is None or ours is None:
        return theirs or ours, title if theirs else "", ""
    if _OPENNESS.index(ours) >= _OPENNESS.index(theirs):
        return theirs, title, ""
    said = f"{title} does not open what inbound.{field} closes: {theirs.value} is asked for, {ours.value} holds"
    return ours, f"inbound.{field}", said


def _audits(objects: Iterable[Authorization]) -> tuple[str, ...]:
    said = "only writes the field audit of records; it denies nobody"
    return tuple(f"AuthorizationPolicy {each.name} {said}" for each in objects if each.action is Action.AUDIT)
