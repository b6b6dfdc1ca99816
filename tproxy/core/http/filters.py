"""What a rule does with a request besides choosing a backend, as immutable values; both dialects end here.

PURE. Readers make them, once; ``plan`` applies them. Times are seconds, shares are from 0 to 1, header names are
lower case. Sources: Istio's virtual_service.proto; gateway.networking.k8s.io HTTPRouteFilter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from tproxy.core.http.head import Headers
    from tproxy.core.http.operators import Format, Moment
    from tproxy.core.http.routes import Text
    from tproxy.core.routes import Backend

Pairs: TypeAlias = tuple[tuple[str, str], ...]


class Flavour(StrEnum):
    """Whose behaviour a client and a backend see: Istio's gateway or Envoy Gateway's."""

    ISTIO = "istio"
    GATEWAY_API = "gateway_api"


@dataclass(frozen=True, slots=True)
class HeaderChange:
    """Headers that are taken off, then set (whatever was there), then added beside what is there."""

    set: Pairs = ()
    add: Pairs = ()
    remove: tuple[str, ...] = ()
    formats: tuple[tuple[str, Format, bool], ...] = ()  # to be made of the moment; True: added

    def __bool__(self) -> bool:
        return bool(self.set or self.add or self.remove or self.formats)

    def applied(self, headers: Headers, moment: Moment | None = None) -> Headers:
        """Other headers; the order of those that stay is kept."""
        if self.formats and moment is not None:
            return self._made(moment).applied(headers)
        gone = {*self.remove, *(name for name, _ in self.set)}
        kept = [pair for pair in headers if pair[0] not in gone] if gone else list(headers)
        kept += self.set
        kept += self.add
        return kept

    def _made(self, moment: Moment) -> HeaderChange:
        """What has no value is not sent; nor is what a client sent in its place, as Envoy would."""
        found = [(name, form.at(moment), adds) for name, form, adds in self.formats]
        return HeaderChange(
            (*self.set, *((name, value) for name, value, adds in found if value and not adds)),
            (*self.add, *((name, value) for name, value, adds in found if value and adds)),
            (*self.remove, *(name for name, value, adds in found if not value and not adds)),
        )


@dataclass(frozen=True, slots=True)
class FullPath:
    """The whole path becomes this; a query stays unless one stands in it."""

    value: str


@dataclass(frozen=True, slots=True)
class PrefixPath:
    """What the rule's match found at the beginning becomes this."""

    value: str


@dataclass(frozen=True, slots=True)
class RegexPath:
    """Every occurrence is replaced: ``substitute(path)``, made by who reads the configuration (RE2)."""

    pattern: str
    replacement: str
    substitute: Callable[[str], str]


PathChange: TypeAlias = FullPath | PrefixPath | RegexPath


class DerivedPort(StrEnum):
    """Which port a redirect names when it says none itself."""

    KEPT = "kept"  # the one in the request's Host, unless the host changes or it was the old scheme's own (Envoy)
    LISTENER = "listener"  # the listener's
    SCHEME = "scheme"  # the redirect's scheme's own, without one the listener's (Gateway API)


@dataclass(frozen=True, slots=True)
class Redirect:
    """An answer that sends the client elsewhere; what is empty stays as it was."""

    scheme: str = ""
    host: str = ""
    port: int | None = None
    path: PathChange | None = None
    status: int = 301
    derived: DerivedPort = DerivedPort.KEPT


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Host and path as the backend sees them."""

    host: str = ""
    path: PathChange | None = None


@dataclass(frozen=True, slots=True)
class Mirror:
    """Somebody who is sent a copy of a share of the requests, and whose answers nobody reads."""

    backend: Backend
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """For a request until its answer's end, and for one try at a backend; None: for ever."""

    request: float | None = None
    backend: float | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """When a request is tried again: Envoy's words (``connect-failure``, ``5xx``, ...) and status codes."""

    attempts: int  # after the first
    on: frozenset[str] = frozenset()
    codes: frozenset[int] = frozenset()
    per_try: float | None = None
    backoff: float = 0.025
    other_hosts: bool = True  # an endpoint that failed is asked last


@dataclass(frozen=True, slots=True)
class Cors:
    """Which origins' scripts may read the answers; ``*`` means any."""

    origins: tuple[Text, ...] = ()
    methods: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    expose: tuple[str, ...] = ()
    max_age: int | None = None  # seconds
    credentials: bool = False
    forward_unmatched: bool = True  # a preflight of a foreign origin goes to the backend


@dataclass(frozen=True, slots=True)
class Direct:
    """An answer of our own."""

    status: int
    body: bytes = b""
    why: str = "direct_response"


@dataclass(frozen=True, slots=True)
class Fault:
    """Made on purpose: a share of the requests is held up, a share is answered with an error."""

    delay: float = 0.0
    delay_share: float = 0.0
    status: int = 0  # HTTP
    grpc_status: int | None = None
    abort_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Filters:
    """What stands at a rule, or at one of its backends."""

    request: HeaderChange = HeaderChange()
    response: HeaderChange = HeaderChange()
    redirect: Redirect | None = None
    rewrite: Rewrite | None = None
    mirrors: tuple[Mirror, ...] = ()
    cors: Cors | None = None


NO_FILTERS = Filters()
NO_TIMEOUTS = Timeouts()
