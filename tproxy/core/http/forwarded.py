"""Headers that tell backends of clients and clients of us, exactly as Istio's gateway and Envoy Gateway send them.

PURE. What a client says in a header that is ours to set is not passed on; only X-Forwarded-For is appended to. Source:
envoyproxy.io, http_conn_man/headers (use_remote_address, no trusted hops).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from tproxy.core.http.filters import NO_FILTERS, Filters, Flavour, Pairs
from tproxy.core.http.head import Headers, Reply

if TYPE_CHECKING:
    from tproxy.core.address import Endpoint
    from tproxy.core.certificates.subject import PeerCertificate
    from tproxy.core.http.operators import Moment
    from tproxy.core.record import TlsFacts

_ISTIO: Final = Flavour.ISTIO
_OURS: Final = frozenset({"x-forwarded-for", "x-forwarded-proto", "x-request-id", "x-forwarded-client-cert"})


class Link(Protocol):
    """A client's connection, for values that tell of it."""

    source: Endpoint
    carrier: Endpoint | None  # who sent the packets, where a PROXY header names the source
    target: Endpoint
    tls: TlsFacts | None
    own: str  # our SPIFFE id, if we showed it


@dataclass(frozen=True, slots=True)
class Client:
    """Who sent a request: facts of its connection. ``port`` is the listener's, whatever it is bound to."""

    address: str
    scheme: str = "http"
    port: int = 80
    sni: str = ""
    xfcc: str = ""  # what X-Forwarded-Client-Cert says of the client's verified certificate
    peer: PeerCertificate | None = None  # that certificate
    link: Link | None = None


def forwarded(headers: Headers, client: Client, request_id: str) -> Headers:
    """The headers that a backend gets, before a rule's changes."""
    came = ""
    kept: Headers = []
    for pair in headers:
        name = pair[0]
        if name.startswith("x-") and (name in _OURS or name.startswith("x-envoy-")):
            if name == "x-forwarded-for":
                came = f"{came},{pair[1]}" if came else pair[1]
        elif name != "host":
            kept.append(pair)
    kept.append(("x-forwarded-for", f"{came},{client.address}" if came else client.address))
    kept.append(("x-forwarded-proto", client.scheme))
    kept.append(("x-envoy-external-address", client.address))
    kept.append(("x-request-id", request_id))
    if client.xfcc:
        kept.append(("x-forwarded-client-cert", client.xfcc))
    return kept


@dataclass(frozen=True, slots=True)
class Respond:
    """How a backend's answer becomes the client's."""

    flavour: Flavour
    first: Filters = NO_FILTERS
    second: Filters = NO_FILTERS
    cors: Pairs = ()
    moment: Moment | None = None  # where a value has operators

    def __call__(self, reply: Reply, milliseconds: int, endpoint: Endpoint | None = None) -> Reply:
        """The reply as the client gets it; the time is that until the backend's first byte."""
        if reply.status < 200 and reply.status != 101:
            return reply
        headers = reply.headers
        for filters in (self.first, self.second):
            if filters is not NO_FILTERS and filters.response:
                headers = filters.response.applied(headers, self._now(reply, headers, endpoint))
        if self.cors:
            ours = {name for name, _ in self.cors}
            headers = [pair for pair in headers if pair[0] not in ours]
            headers += self.cors
        if self.flavour is _ISTIO:
            headers = [pair for pair in headers if pair[0] not in ("server", "x-envoy-upstream-service-time")]
            headers.append(("x-envoy-upstream-service-time", str(milliseconds)))
            headers.append(("server", "istio-envoy"))
        return Reply(reply.status, headers)

    def _now(self, reply: Reply, headers: Headers, endpoint: Endpoint | None) -> Moment | None:
        moment = self.moment
        return moment and replace(moment, status=reply.status, answer=headers, endpoint=endpoint)
