"""The values that a Config is made of: every port, mark, cap and default stands here once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from tproxy.core.address import Network
from tproxy.core.identity import IdPattern


class Mode(StrEnum):
    """What a port accepts: mTLS only; mTLS and plaintext; no TLS of ours at all (the names of PeerAuthentication)."""

    STRICT = "strict"
    PERMISSIVE = "permissive"
    DISABLE = "disable"


@dataclass(frozen=True, slots=True)
class Settled:
    """What Kubernetes objects have decided about the modes, and for which namespace."""

    namespace: str
    mode: str = ""  # what sets the mode: a PeerAuthentication, or inbound.mode where that is stricter
    ports: Mapping[int, str] = field(default_factory=dict)  # and those of single ports
    remarks: tuple[str, ...] = ()  # objects that do less than it seems

    def origin(self, port: int) -> str:
        """Of the mode of a port."""
        return self.ports.get(port, self.mode)


class Outside(StrEnum):
    """What happens to a destination that is not in the mesh."""

    PASSTHROUGH = "passthrough"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the sidecar listens; the numbers are Istio's, which NetworkPolicies and people know."""

    egress: int = 15001
    ingress: int = 15006
    admin: int = 15000  # loopback only
    metrics: int = 15020
    ready: int = 15021

    @property
    def private(self) -> frozenset[int]:
        """Ports that nothing outside the pod may reach."""
        return frozenset((self.admin, self.egress, self.ingress))


@dataclass(frozen=True, slots=True)
class Marks:
    """Bits in the fwmark and the conntrack mark; only this nibble is ours."""

    divert: int = 0x1  # "deliver locally": the policy routing table
    own: int = 0x2  # sent by the sidecar
    outward: int = 0x4  # conntrack only: the sidecar's own flow to the network
    mask: int = 0xF
    table: int = 133  # routing table
    preference: int = 100  # of the ip rule


@dataclass(frozen=True, slots=True)
class MeshRule:
    """Destinations that speak mTLS, and who they must prove to be; no ids means any workload of our trust domain."""

    network: Network
    ids: tuple[IdPattern, ...] = ()
    mtls: bool = True

    @property
    def name(self) -> str:
        """As it stands in records."""
        return f"mesh {self.network}"


@dataclass(frozen=True, slots=True)
class Files:
    """PEM files of the workload's certificate chain, its key and the trust bundle."""

    cert: str
    key: str
    ca: str


class KeyType(StrEnum):
    """Of the keys that we make: P-256, or RSA 2048 for a CA that wants it."""

    ECDSA = "ecdsa"
    RSA = "rsa"


@dataclass(frozen=True, slots=True)
class Bundle:
    """One PEM file of key and chain, as PodCertificateRequest's ``credentialBundlePath``, and the trust bundle."""

    credentials: str
    ca: str


@dataclass(frozen=True, slots=True)
class IstioCa:
    """A CA that speaks Istio's gRPC API: istiod, istio-csr, or ``tproxy control``."""

    address: str  # host:port
    token: str  # file with a bearer token, read anew for each call
    roots: str  # file with the PEM roots that the CA's own certificate must lead to
    server_name: str = ""  # in the CA's certificate; empty: the host of the address
    cluster: str = "Kubernetes"
    ttl: int = 86400  # seconds
    key_type: KeyType = KeyType.ECDSA


@dataclass(frozen=True, slots=True)
class WorkloadApi:
    """A SPIFFE Workload API; of several SVIDs the one with this id or this hint, else the first."""

    socket: str  # unix:///path or tcp://127.0.0.1:port; empty: what SPIFFE_ENDPOINT_SOCKET says
    id: str = ""
    hint: str = ""


Identity: TypeAlias = Files | Bundle | IstioCa | WorkloadApi


@dataclass(frozen=True, slots=True)
class Federated:
    """Another trust domain whose workloads are known here, and the PEM file of its roots if no source brings them."""

    trust_domain: str
    bundle: str = ""


@dataclass(frozen=True, slots=True)
class Trust:
    """Who else is believed: other names of our own trust domain, other trust domains, and who no longer is."""

    aliases: tuple[str, ...] = ()
    federated: tuple[Federated, ...] = ()
    crl: str = ""  # file with PEM CRLs


class Mixed(StrEnum):
    """How a service is reached some of whose pods have no sidecar yet: by mTLS alone, which those refuse; or, while a
    migration lasts, like what is not in the mesh: whoever may add a pod to the service can then have plaintext."""

    MTLS = "mtls"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Directory:
    """Where ``tproxy control`` tells who stands at which address."""

    address: str  # host:port
    server_name: str = ""  # in its certificate; empty: the host of the address
    timeout: float = 10.0  # seconds that readiness waits for the first snapshot
    mixed: Mixed = Mixed.MTLS


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines in seconds, and caps."""

    peek: float = 5.0  # first bytes on a strict port
    silence: float = 0.3  # permissive: a caller that says nothing this long waits for the server to speak first
    handshake: float = 10.0
    connect: float = 10.0
    drain: float = 30.0
    handshakes: int = 512  # half-open at once, each direction
    connections: int = 8192
    grace: float = 3600.0  # a connection is cut this long after the first of its two certificates has expired


class Group(StrEnum):
    """Key exchange of TLS 1.3: a hybrid that a quantum computer does not open, and the classic ones."""

    HYBRID = "X25519MLKEM768"
    P256 = "P-256"
    X25519 = "X25519"
    P384 = "P-384"


class Relay(StrEnum):
    """Who carries bytes: the compiled relay, its twin in Python, or the first of them that is there."""

    AUTO = "auto"
    COMPILED = "compiled"
    PYTHON = "python"


class Sockmap(StrEnum):
    """BPF between the application's socket and ours.

    ``auto``: what the application sends, where that is proven to work; it cannot tell. ``both``: what it receives too,
    for applications that only read(2) and recv(2): on a socket with redirected bytes splice(2), which Go's io.Copy and
    HAProxy use, sees none of them, MSG_WAITALL returns early and SO_RCVLOWAT is not heeded.
    """

    AUTO = "auto"
    BOTH = "both"
    OFF = "off"


class Splicer(StrEnum):
    """How bulk moves between two plain legs: splice(2), or a copy."""

    SPLICE = "splice"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class Fast:
    """Short cuts; each is tested on the running kernel before it is used, and stays off if it fails."""

    relay: Relay = Relay.AUTO
    sockmap: Sockmap = Sockmap.AUTO
    splicer: Splicer = Splicer.SPLICE
    resumption: bool = True  # of TLS sessions, within one generation of credentials
