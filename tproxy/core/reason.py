"""Why a connection was refused or ended, as a value: one list for records, metrics, tests and documentation.

>>> Deny(Reason.POLICY, "no rule allows it").advice
'allow the peer (inbound.rules, AuthorizationPolicy); tproxy policy explain says what came close'
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Each denial's name, as it stands in records and in the label ``reason`` of the metrics."""

    PLAINTEXT = "plaintext"
    HELLO_TIMEOUT = "hello_timeout"
    HELLO_CLOSED = "hello_closed"
    HELLO_MALFORMED = "hello_malformed"
    HANDSHAKE_FAILED = "handshake_failed"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    HANDSHAKE_LIMIT = "handshake_limit"
    NO_CERTIFICATE = "no_certificate"
    PEER_UNTRUSTED = "peer_untrusted"
    PEER_EXPIRED = "peer_expired"
    PEER_NOT_YET_VALID = "peer_not_yet_valid"
    PEER_REVOKED = "peer_revoked"
    PEER_WRONG_USAGE = "peer_wrong_usage"
    PEER_NO_ID = "peer_no_id"
    PEER_MANY_IDS = "peer_many_ids"
    PEER_BAD_ID = "peer_bad_id"
    PEER_IS_CA = "peer_is_ca"
    PEER_FOREIGN = "peer_foreign"
    PEER_UNEXPECTED = "peer_unexpected"
    PEER_NOT_TLS = "peer_not_tls"
    REFUSED_BY_PEER = "refused_by_peer"
    POLICY = "policy"
    POLICIES_AWAY = "policies_away"
    EGRESS_DENIED = "egress_denied"
    DIRECTORY_AWAY = "directory_away"
    OWN_PORT = "own_port"
    OVERLOAD = "overload"
    NO_ROUTE = "no_route"
    NO_BACKEND = "no_backend"
    BACKEND_LIMIT = "backend_limit"
    CLIENT_UNTRUSTED = "client_untrusted"
    BACKEND_UNTRUSTED = "backend_untrusted"
    REFUSED_BY_CLIENT = "refused_by_client"
    NO_CREDENTIALS = "no_credentials"
    NO_ROUTER = "no_router"
    NOT_CARRIED = "not_carried"
    SOURCE_LIMIT = "source_limit"
    PROXY_HEADER = "proxy_header"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECT_FAILED = "connect_failed"
    CUT_BY_DRAIN = "cut_by_drain"
    CUT_BY_EXPIRY = "cut_by_expiry"
    CUT_BY_REVOCATION = "cut_by_revocation"
    CUT_BY_POLICY = "cut_by_policy"
    CUT_BY_TRUST = "cut_by_trust"
    INTERNAL = "internal"


ADVICE = {
    Reason.PLAINTEXT: "give the caller a sidecar, or make the port permissive (inbound.ports, PeerAuthentication)",
    Reason.HELLO_TIMEOUT: "the caller sent nothing in time; a strict port expects TLS from the caller's sidecar",
    Reason.HELLO_CLOSED: "the caller left before it sent anything; a port scan or a TCP probe does that",
    Reason.HELLO_MALFORMED: "what arrived is not a TLS ClientHello; look at what the caller really speaks",
    Reason.HANDSHAKE_FAILED: "compare TLS versions and certificates of both sides (tproxy ca show)",
    Reason.HANDSHAKE_TIMEOUT: "the peer stalled in the handshake; look at its load and at the network between",
    Reason.HANDSHAKE_LIMIT: "too many handshakes at once; raise limits.handshakes or find who floods this pod",
    Reason.NO_CERTIFICATE: "the caller speaks TLS without a client certificate; give it one (in the mesh: a sidecar)",
    Reason.PEER_UNTRUSTED: "both sides need certificates from a CA in the other's trust bundle (identity.ca)",
    Reason.PEER_EXPIRED: "renew the peer's certificate, and compare both clocks",
    Reason.PEER_NOT_YET_VALID: "compare both clocks, or wait until the peer's certificate begins",
    Reason.PEER_REVOKED: "the CA has revoked it: issue another if that was a mistake, or find out who holds its key",
    Reason.PEER_WRONG_USAGE: "issue the peer's certificate for client and server use, with digitalSignature",
    Reason.PEER_NO_ID: "issue the peer a certificate with one spiffe:// URI SAN",
    Reason.PEER_MANY_IDS: "issue the peer a certificate with exactly one URI SAN",
    Reason.PEER_BAD_ID: "issue the peer a certificate with a valid SPIFFE id",
    Reason.PEER_IS_CA: "never use a CA's certificate as a workload's; issue a leaf",
    Reason.PEER_FOREIGN: "list the trust domain and its bundle in trust.federated, or in trust.aliases if it is ours",
    Reason.PEER_UNEXPECTED: "the address answers with another identity: correct mesh[].ids, or find out who it is",
    Reason.PEER_NOT_TLS: "the destination has no sidecar: give it one, or say so (mtls: false, directory.mixed: plain)",
    Reason.REFUSED_BY_PEER: "the peer refused us after the handshake; its own record says which rule and why",
    Reason.POLICY: "allow the peer (inbound.rules, AuthorizationPolicy); tproxy policy explain says what came close",
    Reason.POLICIES_AWAY: "tproxy identity says what is missing: an answer of control, or a first set that can be used",
    Reason.EGRESS_DENIED: "give the destination a sidecar, add it to mesh, or set egress: passthrough",
    Reason.DIRECTORY_AWAY: "the directory has never answered: look at directory in /config_dump, and at tproxy control",
    Reason.OWN_PORT: "nothing but the kernel's capture may send connections to the sidecar's own ports",
    Reason.OVERLOAD: "raise limits.connections, or add replicas",
    Reason.NO_ROUTE: "compare the name the client asks for with the configured ones: tproxy gateway explain --sni NAME",
    Reason.NO_BACKEND: "correct the route's backend, or give it endpoints; tproxy gateway check names the line",
    Reason.BACKEND_LIMIT: "the DestinationRule's connectionPool says so: raise it, or give the backend more endpoints",
    Reason.CLIENT_UNTRUSTED: "the listener's tls says whom it trusts: its CA (ca.crt, NAME-cacert), names and hashes",
    Reason.BACKEND_UNTRUSTED: "compare the backend's certificate with its DestinationRule or BackendTLSPolicy",
    Reason.REFUSED_BY_CLIENT: "does the client trust the CA of the certificate it is shown, and is it for the name?",
    Reason.NO_CREDENTIALS: "give the gateway the Secret, with certificate and key; tproxy gateway check names the line",
    Reason.NO_ROUTER: "look at the rule's routers (egressRoutes.routers) and at network policies; see tproxy_router_up",
    Reason.NOT_CARRIED: "the port serves something else there; tproxy gateway explain says what",
    Reason.SOURCE_LIMIT: "one address opens too many connections without a hello; find it, or raise --half-open",
    Reason.PROXY_HEADER: "the load balancer must send PROXY protocol v1 or v2, from an address in --proxy-from",
    Reason.CONNECT_REFUSED: "nothing listens there: is the application running, and not only on 127.0.0.1?",
    Reason.CONNECT_TIMEOUT: "the destination does not answer; look at routes and network policies",
    Reason.CONNECT_FAILED: "the destination cannot be reached; look at routes and network policies",
    Reason.CUT_BY_DRAIN: "the sidecar was told to stop and limits.drain was over; raise it if work needs longer",
    Reason.CUT_BY_EXPIRY: "a certificate of the pair was not renewed within limits.grace; look at its sidecar and CA",
    Reason.CUT_BY_REVOCATION: "the peer's certificate was revoked meanwhile; it needs a new one to come back",
    Reason.CUT_BY_POLICY: "the policy loaded meanwhile no longer allows this pair (inbound, policies, mesh[].ids)",
    Reason.CUT_BY_TRUST: "the peer's chain no longer leads to the bundle: renew the leafs before a root is dropped",
    Reason.INTERNAL: "this is a defect of the sidecar; please report it with the log lines around it",
}


@dataclass(frozen=True, slots=True)
class Deny:
    """A refusal: the reason's name, what was seen in a sentence, and the rule that said no, if one did."""

    reason: Reason
    why: str
    rule: str = ""

    @property
    def advice(self) -> str:
        """What an operator can do about it."""
        return ADVICE[self.reason]
