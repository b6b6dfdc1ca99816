"""Egress and ingress: facts in, one value out. No I/O, no await; who calls acts on the answer with ``match``.

accept -> original destination -> **decide** -> TLS -> relay -> record
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tproxy.core.address import Endpoint
from tproxy.core.directory import Absent, Entry, Found
from tproxy.core.egress.routes import EgressRule, Unread, choose
from tproxy.core.hello import Hello, Malformed, NeedMore, NotTls
from tproxy.core.identity import IdPattern, SpiffeId
from tproxy.core.policy.conditions import Call
from tproxy.core.policy.policy import Allow
from tproxy.core.reason import Deny, Reason
from tproxy.core.settings import Mixed, Mode, Outside

if TYPE_CHECKING:
    from tproxy.core.config import Config

MESH_ALPN = "istio"  # what our egress offers: a PERMISSIVE Istio peer terminates it (and never istio-peer-exchange)
MESH_ALPNS = frozenset(("istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"))


@dataclass(frozen=True, slots=True)
class Plain:
    """Carry the bytes as they are, because this rule says so."""

    target: Endpoint
    rule: str


@dataclass(frozen=True, slots=True)
class Mtls:
    """Carry them in TLS, to a peer that proves one of these ids (empty: any workload of our trust domain)."""

    target: Endpoint
    expect: tuple[IdPattern, ...]
    rule: str


@dataclass(frozen=True, slots=True)
class Routed:
    """Carry the bytes as they are to one of the rule's routers."""

    target: Endpoint
    by: EgressRule


@dataclass(frozen=True, slots=True)
class Look:
    """A rule asks for the name in the application's ClientHello: look at it, and ask again."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """Answer the caller's ClientHello, require its certificate, then ask the policy."""

    target: Endpoint


@dataclass(frozen=True, slots=True)
class Silence:
    """The caller sent nothing until the deadline."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Gone:
    """The caller left before it sent enough to tell what it speaks."""


First = Hello | NeedMore | NotTls | Malformed | Silence | Gone
Decided = Plain | Mtls | Routed | Deny


def egress(
    target: Endpoint,
    is_local: bool,
    config: Config,
    found: Found = Absent.UNLISTED,
    source: Endpoint | None = None,
    sni: str | Unread | None = Unread.UNREAD,
) -> Decided | Look:
    """Where the application wanted to go, whether that address is this pod's own, what the directory says of it.

    The mesh goes before rules of egress: what has a peer with an identity is never handed to a router in plaintext.
    """
    if is_local and target.port in config.ports.private:
        return Deny(Reason.OWN_PORT, f"the application called the sidecar's own port {target.port}")
    if is_local:
        return Plain(target, "own address: stays in this pod")
    if isinstance(found, Entry) and found.ids and not _migrating(found, config):
        ids = tuple(IdPattern(config.trust_domain, tuple(path.split("/"))) for path in found.ids)
        return Mtls(target, ids, found.rule)
    rule = config.mesh_rule(target.ip)
    if rule is None or (rule.mtls and not rule.ids and isinstance(found, Entry)):  # who is there is known better
        return _outside(target, config, found, source, sni)
    return Mtls(target, rule.ids, rule.name) if rule.mtls else Plain(target, f"{rule.name}: mtls: false")


def _migrating(found: Entry, config: Config) -> bool:
    """A service that is half in the mesh, and we were told to reach it as before."""
    return found.mixed and config.directory is not None and config.directory.mixed is Mixed.PLAIN


def _outside(
    target: Endpoint, config: Config, found: Found, source: Endpoint | None, sni: str | Unread | None
) -> Plain | Routed | Look | Deny:
    """Neither a mesh rule nor the directory asks for mTLS. While nobody can say what is there, nothing goes there."""
    if found is Absent.UNKNOWN:
        return Deny(Reason.DIRECTORY_AWAY, f"nobody has said yet whether {target} is in the mesh", "directory")
    known = f" ({found.rule})" if isinstance(found, Entry) else ""
    routes = config.egress_routes.naming() if isinstance(found, Entry) else config.egress_routes
    match choose(routes, source, target, sni):
        case EgressRule() as rule:
            return Routed(target, rule)
        case Unread():
            return Look()
        case None if config.egress is Outside.PASSTHROUGH:
            return Plain(target, f"egress: passthrough{known}")
        case None:
            rules = ", and no rule of egressRoutes takes it" if config.egress_routes.rules else ""
            return Deny(Reason.EGRESS_DENIED, f"{target} is not in the mesh{known}{rules}", "egress: deny")


def arrival(target: Endpoint, config: Config) -> Mode | Deny:
    """Before anything is read: the mode of the port, or a refusal for connections that were not captured."""
    if target.port in config.ports.private:
        return Deny(Reason.OWN_PORT, f"the caller addressed the sidecar's own port {target.port}")
    return config.mode_of(target.port)


def ingress(target: Endpoint, mode: Mode, first: First, rule: str = "mode strict") -> Terminate | Plain | Deny:
    """What the first bytes on a strict or permissive port mean; ``rule`` is who says strict."""
    if mode is Mode.DISABLE:
        return Plain(target, f"mode disable on port {target.port}")
    if mode is Mode.PERMISSIVE:
        if isinstance(first, Hello) and MESH_ALPNS.intersection(first.alpn):
            return Terminate(target)
        return Plain(target, f"mode permissive on port {target.port}")
    match first:
        case Hello():
            return Terminate(target)
        case NotTls(why):
            return Deny(Reason.PLAINTEXT, f"plaintext on strict port {target.port}: {why}", rule)
        case Malformed(why):
            return Deny(Reason.HELLO_MALFORMED, why, rule)
        case Silence(seconds):
            return Deny(Reason.HELLO_TIMEOUT, f"nothing arrived in {seconds:g} s", rule)
        case NeedMore(have, _):
            return Deny(Reason.HELLO_TIMEOUT, f"only {have} bytes of a ClientHello arrived in time", rule)
        case Gone():
            return Deny(Reason.HELLO_CLOSED, "the caller closed before its ClientHello was complete", rule)


def expected(peer: SpiffeId, expect: tuple[IdPattern, ...], config: Config, rule: str) -> Allow | Deny:
    """Whether the peer that we dialled is one that may stand at that address."""
    if foreign := _foreign(peer, config):
        return foreign
    compared = _canonical(peer, config)
    if any(pattern.matches(compared) for pattern in expect) or (not expect and _is_ours(compared, config)):
        return Allow(rule)
    wanted = " or ".join(map(str, expect)) or f"any workload of {config.trust_domain}, as no ids are listed"
    return Deny(Reason.PEER_UNEXPECTED, f"expected {wanted}, found {peer}", rule)


def authorize(peer: SpiffeId | None, source: Endpoint, target: Endpoint, config: Config) -> Allow | Deny:
    """Whether a caller may speak to one of our ports. A federated one may only where a rule says so."""
    call = called(peer, source, target, config)
    if peer is None or call.peer is None:
        return config.policy.check(call)
    if foreign := _foreign(peer, config):
        return foreign
    if not _is_ours(call.peer, config) and not config.policy.selects(target.port):
        return Deny(Reason.POLICY, f"{peer} is of a federated trust domain, and no rule selects port {target.port}")
    answer = config.policy.check(call)
    if isinstance(answer, Deny) and call.peer != peer:
        return replace(answer, why=f"{answer.why} (its certificate says {peer})")
    return answer


def called(peer: SpiffeId | None, source: Endpoint, target: Endpoint, config: Config) -> Call:
    """The facts that the policy asks for."""
    return Call(target.port, _canonical(peer, config) if peer else None, source.ip, target.ip, peer)


def _canonical(peer: SpiffeId, config: Config) -> SpiffeId:
    return peer.canonical(config.trust_domain, config.trust.aliases)


def _is_ours(compared: SpiffeId, config: Config) -> bool:
    return compared.trust_domain == config.trust_domain


def _foreign(peer: SpiffeId, config: Config) -> Deny | None:
    """Trust domains are known by name here; whose roots vouch for them, verification has seen to."""
    known = (config.trust_domain, *config.trust.aliases, *(other.trust_domain for other in config.trust.federated))
    if peer.trust_domain in known:
        return None
    return Deny(Reason.PEER_FOREIGN, f"{peer} is of another trust domain than {', '.join(known)}")
