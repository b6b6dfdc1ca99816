"""Istio's PeerAuthentication: which mode each port has. The narrowest object wins, then the oldest; UNSET inherits.

workload (a selector) over namespace over mesh (the root namespace). Where Istio would end at PERMISSIVE because nothing
says anything, ``inbound.mode`` holds, which is strict unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from tproxy.core.fields import Fields, parse_port
from tproxy.core.policy.manifest import Manifest, Workload
from tproxy.core.settings import Mode

_MODES = {"UNSET": None, "STRICT": Mode.STRICT, "PERMISSIVE": Mode.PERMISSIVE, "DISABLE": Mode.DISABLE}


class _Scope(IntEnum):
    MESH = 0
    NAMESPACE = 1
    WORKLOAD = 2


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    """One object; None is UNSET."""

    title: str
    mode: Mode | None
    ports: dict[int, Mode | None]


@dataclass(frozen=True, slots=True)
class Modes:
    """What objects say: a mode is None where none says anything, a port's where it is the workload's."""

    mode: Mode | None = None
    origin: str = ""  # the object that said it
    ports: dict[int, Mode | None] = field(default_factory=dict)
    ports_origin: str = ""
    applying: tuple[str, ...] = ()  # every object with a say, the narrowest last
    remarks: tuple[str, ...] = ()  # objects without one, and why


def effective(objects: Iterable[Manifest], workload: Workload) -> Modes:
    """Of all PeerAuthentication objects that apply, oldest first. ConfigError names file, object, field and value."""
    chosen: dict[_Scope, PeerAuthentication] = {}
    remarks = []
    for manifest in objects:
        found, scope = _parse(manifest), _scope(manifest, workload)
        if scope is None:
            remarks.append(f"{manifest.title} does nothing: in the root namespace Istio ignores one with a selector")
        elif scope in chosen:
            remarks.append(f"{manifest.title} does nothing: {chosen[scope].title} is older")
        else:
            chosen[scope] = found
    mode, origin = None, ""
    for _, each in sorted(chosen.items()):
        if each.mode is not None:
            mode, origin = each.mode, each.title
    narrow = chosen.get(_Scope.WORKLOAD)
    ports = narrow.ports if narrow else {}
    titles = tuple(each.title for _, each in sorted(chosen.items()))
    return Modes(mode, origin, ports, narrow.title if narrow and ports else "", titles, tuple(remarks))


def _scope(manifest: Manifest, workload: Workload) -> _Scope | None:
    if manifest.namespace == workload.root:
        return None if manifest.selector else _Scope.MESH
    return _Scope.WORKLOAD if manifest.selector else _Scope.NAMESPACE


def _parse(manifest: Manifest) -> PeerAuthentication:
    spec = manifest.fields()
    mode = _mode(spec.inner("mtls"))
    levels = spec.inner("portLevelMtls")
    if spec.raw("portLevelMtls") is not None:
        if not manifest.selector:
            raise spec.error("portLevelMtls", "needs a selector: Istio knows ports of workloads only")
        if not levels.data:
            raise spec.error("portLevelMtls", "is empty; leave it out")
    ports = {_port(levels, key): _mode(levels.inner(key)) for key in levels.data}
    if len(ports) != len(levels.data):
        raise spec.error("portLevelMtls", "a port stands here twice")
    spec.finish()
    return PeerAuthentication(manifest.title, mode, ports)


def _mode(fields: Fields) -> Mode | None:
    mode = _MODES[fields.choice("mode", "UNSET", _MODES)]
    fields.finish()
    return mode


def _port(levels: Fields, key: object) -> int:
    try:
        return parse_port(key)
    except ValueError as error:
        raise levels.error(key, str(error)) from error
