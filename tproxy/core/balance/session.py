"""A client stays with the endpoint that answered it first: Gateway API's ``sessionPersistence`` (GEP-1619).

PURE. What the client holds is a token of 32 bytes in base64url: a tag, when the session began, when it was last used
(each in seconds, 4 bytes), and a code over these. Tag and code are HMAC-SHA256, cut to 12 bytes, under a key that only
gateways know. The tag is one of the rule, backend and endpoint: no address can be read or computed from it, and it is
looked up among the endpoints that the rule has now. So a token that is forged, old, or another rule's leads nowhere at
all, and its request begins a session of its own.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING

from tproxy.core.address import Endpoint
from tproxy.core.balance.affinity import cookies

if TYPE_CHECKING:
    from tproxy.core.http.filters import Pairs
    from tproxy.core.http.head import Headers
    from tproxy.core.routes import Backend

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+=:@%/-]*")  # what can stand in a cookie's Path (RFC 6265, 4.1.1)
_LITERAL = re.compile(r"[A-Za-z0-9_~!&=:@%/-]*")  # at the beginning of a regular expression
_CUT = 12  # bytes of a tag and of a code
_TRIED = 4  # tokens of one request: who sends more of a name pays no more of our time
Place = tuple[int, Endpoint]  # a backend by its position in the rule, and one of its endpoints


@dataclass(frozen=True, slots=True)
class Known:
    """A session that goes on."""

    backend: int
    endpoint: Endpoint
    began: int  # unix


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """One rule's. Times are seconds; None is for ever."""

    name: str  # of the cookie, or of the header in lower case
    header: bool = False
    absolute: float | None = None
    idle: float | None = None
    permanent: bool = False  # the client keeps the cookie until the session's end
    scope: str = ""  # the rule's name: others do not share its sessions
    key: bytes = field(default=b"", repr=False)
    places: Mapping[bytes, Place] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"the session in {'header' if self.header else 'cookie'} {self.name}"

    def over(self, backends: Iterable[Backend]) -> Mapping[bytes, Place]:
        """The tags of all endpoints that can be reached."""
        return {
            self.tag(backend.name, endpoint): (index, endpoint)
            for index, backend in enumerate(backends)
            if not backend.fault
            for endpoint in backend.endpoints
        }

    def tag(self, backend: str, endpoint: Endpoint) -> bytes:
        """An endpoint's name in tokens."""
        return self._code(b"place", "\0".join((backend, str(endpoint))).encode())

    def _code(self, purpose: bytes, text: bytes) -> bytes:
        return hmac.digest(self.key, b"\0".join((purpose, self.scope.encode(), text)), sha256)[:_CUT]

    def token(self, backend: str, endpoint: Endpoint, began: int, now: int) -> str:
        """What the client is given."""
        said = self.tag(backend, endpoint) + _seconds(began) + _seconds(now)
        return base64.urlsafe_b64encode(said + self._code(b"token", said)).decode().rstrip("=")

    def known(self, headers: Headers, now: float) -> Known | None:
        """The session that a request belongs to, if it has one that goes on."""
        for text in islice(self._sent(headers), _TRIED):
            if _TOKEN.fullmatch(text) and (found := self._read(text, now)) is not None:
                return found
        return None

    def _sent(self, headers: Headers) -> Iterator[str]:
        if not self.header:
            return cookies(headers, self.name)
        return (value for name, value in headers if name == self.name)

    def _read(self, text: str, now: float) -> Known | None:
        raw = base64.urlsafe_b64decode(f"{text}=")
        said, code = raw[:-_CUT], raw[-_CUT:]
        if not hmac.compare_digest(self._code(b"token", said), code):
            return None
        began, seen = int.from_bytes(said[_CUT : _CUT + 4]), int.from_bytes(said[_CUT + 4 :])
        if self.absolute is not None and now - began >= self.absolute:
            return None
        if self.idle is not None and now - seen >= self.idle:
            return None
        place = self.places.get(said[:_CUT])
        return None if place is None else Known(*place, began)


@dataclass(frozen=True, slots=True)
class Tie:
    """One request of a session, known or to begin."""

    session: Session
    backend: str
    known: Known | None
    path: str  # of the rule's match: cookies of other rules have other paths
    secure: bool
    now: float

    def choose(self, left: Sequence[Endpoint], whole: bool) -> Endpoint | None:
        known = self.known
        return known.endpoint if known is not None and (whole or known.endpoint in left) else None

    def told(self, endpoint: Endpoint) -> Pairs:
        """Nothing where the client has it already, and it need not be renewed."""
        session, known = self.session, self.known
        stays = known is not None and known.endpoint == endpoint
        if stays and session.idle is None:
            return ()
        now = int(self.now)
        began = known.began if known is not None and stays else now
        token = session.token(self.backend, endpoint, began, now)
        if session.header:
            return ((session.name, token),)
        return (("set-cookie", f"{session.name}={token}{self._lives(began)}{self._attributes()}"),)

    def _lives(self, began: int) -> str:
        if not self.session.permanent or self.session.absolute is None:
            return ""
        end = int(began + self.session.absolute)
        expires = datetime.fromtimestamp(end, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")  # RFC 9110, 5.6.7
        return f"; Max-Age={end - int(self.now)}; Expires={expires}"

    def _attributes(self) -> str:
        return f"; Path={self.path}; HttpOnly; SameSite=Strict{'; Secure' if self.secure else ''}"


def cookie_path(path: str, expression: bool) -> str:
    """Of a rule that matches this path; of what cannot stand there, and of an expression, the beginning (GEP-1619)."""
    found = (_LITERAL if expression else _PATH).match(path)
    begin = found[0] if found else ""
    if expression or begin != path:
        begin = begin[: begin.rfind("/") + 1]
    return begin.rstrip("/") or "/"


def _seconds(moment: int) -> bytes:
    return (moment & 0xFFFF_FFFF).to_bytes(4)
