"""What a gateway does with whom, as immutable values: listeners, names, routes, backends. Both dialects end here.

PURE: compiled once when the configuration is read, asked once a connection. A whole ``Table`` is swapped for a new one;
a connection keeps what it was given.

    match by_hello(listener, hello):
        case Passthrough(_, route): ...
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import TypeAlias

from tproxy.core.access_log import Wanted
from tproxy.core.address import Endpoint
from tproxy.core.balance.affinity import Affinity
from tproxy.core.balance.limits import Care
from tproxy.core.decide import MESH_ALPNS, First, Gone, Silence
from tproxy.core.hello import Hello, Malformed, NeedMore, NotTls
from tproxy.core.hostnames import HostTable
from tproxy.core.http.filters import NO_FILTERS, Filters
from tproxy.core.http.routes import HttpTable
from tproxy.core.policy.policy import Policy
from tproxy.core.reason import Deny, Reason

_ACME = ("acme-tls/1",)
_NAMED = 5  # configured names in a refusal: a log line is not a list


class TlsMode(StrEnum):
    """Who ends TLS: the backend, we, or we with the client's certificate demanded or asked for."""

    PASSTHROUGH = "passthrough"
    TERMINATE = "terminate"
    MUTUAL = "mutual"
    OPTIONAL_MUTUAL = "optional_mutual"
    MESH = "istio_mutual"  # with our own SVID, for peers that show theirs


class ProxyProtocol(StrEnum):
    """What a backend is told of the client, before its first byte."""

    NONE = "none"
    V1 = "v1"
    V2 = "v2"


class Balance(StrEnum):
    """How requests are shared among a backend's endpoints."""

    LEAST_REQUEST = "least_request"
    ROUND_ROBIN = "round_robin"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class BackendTls:
    """TLS that we begin towards a backend. Credentials are named as ``gateway.secrets`` names them."""

    mode: str  # SIMPLE, MUTUAL, ISTIO_MUTUAL
    sni: str = ""  # empty: the name that the client asked for
    names: tuple[str, ...] = ()  # one of which the backend's certificate must be for; none: the name that is asked for
    ca: tuple[str, ...] = ()  # none: those that this machine trusts
    crl: str = ""
    secret: str = ""  # with our certificate, for MUTUAL
    host: str = ""  # the destination's, where a client asked for no name
    insecure: bool = False  # the YAML says that nothing is to be verified
    fault: str = ""  # why it cannot be begun: then it is not, and nothing is sent in plaintext instead


@dataclass(frozen=True, slots=True)
class Backend:
    """One destination of a route and its share; with ``fault``, why nobody can be sent there."""

    name: str
    endpoints: tuple[Endpoint, ...]
    weight: int = 1
    tls: BackendTls | None = None
    proxy: ProxyProtocol = ProxyProtocol.NONE
    fault: str = ""
    filters: Filters = NO_FILTERS  # of HTTP
    http2: bool = False  # it speaks HTTP/2, also without TLS
    balance: Balance = Balance.LEAST_REQUEST
    affinity: Affinity | None = None  # goes before balance, for requests that have its key
    care: Care | None = None  # what is bounded and watched, if anything is


@dataclass(frozen=True, slots=True)
class Route:
    """Where a TLS or TCP connection goes; the name is the rule's in its object, ``where`` its file and line."""

    name: str
    backends: tuple[Backend, ...]
    where: str = ""


@dataclass(frozen=True, slots=True)
class ClientCheck:
    """What a client's certificate must be. Hashes are lower-case hexadecimal of SHA-256."""

    ca: tuple[str, ...] = ()  # Secrets or ConfigMaps of which one must have issued it
    crl: str = ""
    names: tuple[str, ...] = ()  # one of which it must be for
    hashes: tuple[str, ...] = ()  # it must be one of these, or its key
    keys: tuple[str, ...] = ()  # one of these
    insecure: bool = False  # who shows none, or one that does not hold, is served all the same


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How we end TLS: the mode, and the Secrets (namespace/name) with certificates, the first for who asks for none."""

    mode: TlsMode
    secrets: tuple[str, ...] = ()
    check: ClientCheck | None = None
    minimum: str = "1.2"
    maximum: str = ""
    ciphers: tuple[str, ...] = ()  # of TLS 1.2 and before, as OpenSSL names them


@dataclass(frozen=True, slots=True)
class Passthrough:
    """The backend ends TLS."""

    server: str
    route: Route
    mesh: bool = False  # for mTLS of the mesh alone, which its protocols tell (ALPN)


@dataclass(frozen=True, slots=True)
class Terminate:
    """We end TLS, and carry requests or bytes; but a TLS-ALPN-01 challenge (RFC 8737) is passed on to its solver."""

    server: str
    tls: ServerTls
    inside: HttpTable | Route
    acme: Route | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """The name is a listener's, and nothing is routed for it: no wider listener may take it instead."""

    server: str
    why: str
    acme: Route | None = None  # it may be waiting for its first certificate


Chain: TypeAlias = Passthrough | Terminate | Closed


@dataclass(frozen=True, slots=True)
class TlsListener:
    """TLS and HTTPS on one port, told apart by the name that the client asks for."""

    port: int
    names: HostTable[Chain]


@dataclass(frozen=True, slots=True)
class TcpListener:
    """Whatever comes goes one way."""

    port: int
    server: str
    route: Route | None


@dataclass(frozen=True, slots=True)
class UdpListener:
    """Datagrams; what comes from one client's port goes to one endpoint, and answers come back."""

    port: int
    server: str
    route: Route | None


@dataclass(frozen=True, slots=True)
class HttpListener:
    """Plaintext HTTP."""

    port: int
    table: HttpTable


Listener: TypeAlias = TlsListener | TcpListener | HttpListener
Bind: TypeAlias = tuple[str, int]  # address ("" means all) and port


@dataclass(frozen=True, slots=True)
class Table:
    """Everything that a gateway serves."""

    listeners: Mapping[Bind, Listener] = field(default_factory=dict)
    datagrams: Mapping[Bind, UdpListener] = field(default_factory=dict)
    access_log: Wanted | None = None  # None: objects do not say whether they want one
    policies: Mapping[Bind, Policy] = field(default_factory=dict)  # of ports that not everybody may use


def by_hello(listener: TlsListener, first: First) -> Passthrough | Terminate | Deny:
    """What a client's first bytes mean on a TLS port. Whatever is not a whole ClientHello is refused, never guessed."""
    match first:
        case Hello(sni=name, alpn=alpn):
            return (_challenge(listener, name) if alpn == _ACME else None) or _spoken(by_sni(listener, name), alpn)
        case NotTls(why):
            return Deny(Reason.PLAINTEXT, f"plaintext on TLS port {listener.port}: {why}")
        case Malformed(why):
            return Deny(Reason.HELLO_MALFORMED, why)
        case Silence(seconds):
            return Deny(Reason.HELLO_TIMEOUT, f"nothing arrived in {seconds:g} s")
        case NeedMore(have, _):
            return Deny(Reason.HELLO_TIMEOUT, f"only {have} bytes of a ClientHello arrived in time")
        case Gone():
            return Deny(Reason.HELLO_CLOSED, "the client closed before its ClientHello was complete")


def _challenge(listener: TlsListener, name: str | None) -> Passthrough | None:
    """RFC 8737, 3: who validates a name offers this protocol and no other."""
    chain = found[1] if (found := listener.names.find(name)) else None
    if isinstance(chain, Terminate | Closed) and chain.acme is not None:
        return Passthrough(chain.server, chain.acme)
    return None


def _spoken(chain: Passthrough | Terminate | Deny, alpn: tuple[str, ...]) -> Passthrough | Terminate | Deny:
    if isinstance(chain, Passthrough) and chain.mesh and not MESH_ALPNS.intersection(alpn):
        offered = f"the client offers {', '.join(alpn)}" if alpn else "the client offers none"
        why = f"AUTO_PASSTHROUGH takes mTLS of the mesh alone, by its ALPN ({', '.join(sorted(MESH_ALPNS))}); {offered}"
        return Deny(Reason.NO_ROUTE, why, chain.server)
    return chain


def by_sni(listener: TlsListener, name: str | None) -> Passthrough | Terminate | Deny:
    """The chain for a name: exact, longest wildcard, catch-all."""
    found = listener.names.find(name)
    if found is None:
        return Deny(Reason.NO_ROUTE, unmatched(listener, name))
    chain = found[1]
    return Deny(Reason.NO_ROUTE, chain.why, chain.server) if isinstance(chain, Closed) else chain


def by_port(listener: TcpListener) -> Route | Deny:
    """A TCP port has one route."""
    if listener.route is None:
        return Deny(Reason.NO_ROUTE, f"no TCP route is bound to port {listener.port}", listener.server)
    return listener.route


def unmatched(listener: TlsListener, name: str | None) -> str:
    """The sentence that spares an hour: which name came, which are configured, which was meant perhaps."""
    asked = f"SNI {name!r}" if name else "a client without SNI"
    patterns = [pattern for pattern, _ in islice(listener.names.items(), _NAMED)]
    more = len(listener.names) - len(patterns)
    said = f"no server for {asked} on port {listener.port}; configured: {', '.join(patterns) or 'nothing'}"
    return f"{said} and {more} more" if more else said


def nearest(listener: TlsListener, name: str) -> str:
    """The configured name that resembles it most, for people who ask; it looks at all of them."""
    near = difflib.get_close_matches(name, [pattern for pattern, _ in listener.names.items()], 1, 0.7)
    return near[0] if near else ""


def choose(route: Route, draw: float) -> Backend | Deny:
    """One of the backends by weight; ``draw`` is a random number in [0, 1)."""
    total = sum(backend.weight for backend in route.backends)
    if not total:
        return Deny(Reason.NO_BACKEND, "no backend of the route has a weight", route.name)
    at = draw * total
    for backend in route.backends:
        at -= backend.weight
        if at < 0:
            return _usable(backend, route)
    return _usable(route.backends[-1], route)


def _usable(backend: Backend, route: Route) -> Backend | Deny:
    if backend.fault:
        return Deny(Reason.NO_BACKEND, f"{backend.name}: {backend.fault}", route.name)
    if not backend.endpoints:
        return Deny(Reason.NO_BACKEND, f"{backend.name} has no endpoints", route.name)
    return backend
