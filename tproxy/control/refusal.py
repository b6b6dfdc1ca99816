"""Why a certificate was refused, as a value: the reason's name, gRPC's code for it, and what to do.

>>> Refused(Why.NO_TOKEN, "there is no authorization").code
<Code.UNAUTHENTICATED: 'UNAUTHENTICATED'>
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """The names of gRPC's status codes that we answer with."""

    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"  # clients come back
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"


class Why(StrEnum):
    """Each refusal's name, as it stands in the log and in the metrics' label."""

    NO_TOKEN = "no_token"
    NOT_A_TOKEN = "not_a_token"
    TOKEN_EXPIRED = "token_expired"
    WRONG_AUDIENCE = "wrong_audience"
    NOT_AUTHENTICATED = "not_authenticated"
    NOT_A_POD = "not_a_pod"
    POD_GONE = "pod_gone"
    REPLAYED = "replayed"
    NO_ADDRESS_YET = "no_address_yet"
    API_SERVER = "api_server"
    JOIN_TOKEN = "join_token"
    JOIN_ADDRESS = "join_address"
    IMPERSONATION = "impersonation"
    BAD_CSR = "bad_csr"
    BAD_KEY = "bad_key"
    SLOW = "slow"
    OVERLOAD = "overload"
    NO_SVID = "no_svid"
    BAD_REQUEST = "bad_request"
    NOT_SYNCED = "not_synced"
    SIGNER = "signer"
    STATE = "state"
    INTERNAL = "internal"


_SAID: dict[Why, tuple[Code, str]] = {
    Why.NO_TOKEN: (Code.UNAUTHENTICATED, "send the metadata 'authorization: Bearer <token>'"),
    Why.NOT_A_TOKEN: (Code.UNAUTHENTICATED, "send a projected service account token or a join token (tproxy ca token)"),
    Why.TOKEN_EXPIRED: (Code.UNAUTHENTICATED, "read the token file anew before each call; the kubelet renews it"),
    Why.WRONG_AUDIENCE: (
        Code.UNAUTHENTICATED,
        "project the token for the CA's audience (serviceAccountToken.audience)",
    ),
    Why.NOT_AUTHENTICATED: (Code.UNAUTHENTICATED, "the token must come from this cluster's API server"),
    Why.NOT_A_POD: (
        Code.PERMISSION_DENIED,
        "use a token projected into the pod: it is bound to the pod, others are not",
    ),
    Why.POD_GONE: (Code.PERMISSION_DENIED, "the pod has ended or was replaced; find out who still uses its token"),
    Why.REPLAYED: (Code.PERMISSION_DENIED, "somebody else holds this pod's token: find the caller's address"),
    Why.NO_ADDRESS_YET: (Code.UNAVAILABLE, "try again in a second"),
    Why.API_SERVER: (Code.UNAVAILABLE, "look at the API server and at the CA's rights (tokenreviews, pods)"),
    Why.JOIN_TOKEN: (Code.UNAUTHENTICATED, "make one with tproxy ca token"),
    Why.JOIN_ADDRESS: (Code.PERMISSION_DENIED, "call from that address, or make a token without --address"),
    Why.IMPERSONATION: (Code.PERMISSION_DENIED, "list the caller in impersonators if it may act for others"),
    Why.BAD_CSR: (Code.INVALID_ARGUMENT, "send one PEM PKCS#10 request, signed with its own key"),
    Why.BAD_KEY: (Code.INVALID_ARGUMENT, "use P-256, P-384, or RSA of 2048 to 4096 bits"),
    Why.SLOW: (Code.DEADLINE_EXCEEDED, "send the whole request at once"),
    Why.OVERLOAD: (Code.RESOURCE_EXHAUSTED, "come back later; callers should spread their renewals"),
    Why.NO_SVID: (Code.PERMISSION_DENIED, "call with an SVID of this trust domain, as sidecars do"),
    Why.BAD_REQUEST: (Code.INVALID_ARGUMENT, "is the caller of another version than we?"),
    Why.NOT_SYNCED: (Code.UNAVAILABLE, "look at the API server and at our rights (list and watch)"),
    Why.SIGNER: (Code.UNAVAILABLE, "give the CA another intermediate (tproxy ca intermediate)"),
    Why.STATE: (Code.UNAVAILABLE, "look at the disk of the CA"),
    Why.INTERNAL: (Code.INTERNAL, "this is a defect of the CA; please report it with the log lines around it"),
}


@dataclass(frozen=True, slots=True)
class Refused:
    """Reason, what was seen in a sentence (never a token), and who it was if that was known."""

    reason: Why
    why: str
    who: str = ""

    @property
    def code(self) -> Code:
        """What the caller gets."""
        return _SAID[self.reason][0]

    @property
    def advice(self) -> str:
        """What to do about it."""
        return _SAID[self.reason][1]
