"""Envoy's command operators in header values, ``%REQ(x-user?x-id):20%``: parsed when the configuration is read.

PURE. Source: envoyproxy.io, access logging, command operators; what they are for headers was seen of Envoy itself
(tests/test_http_oracle.py). A value is made of parts, texts and functions of the moment; ``%%`` is a percent sign.

>>> parse("no-cache 100%%", "gw"), str(parse("via %PROTOCOL%", "gw"))
('no-cache 100%', 'via %PROTOCOL%')
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias

from tproxy.core.address import Endpoint
from tproxy.core.http.forwarded import Client
from tproxy.core.http.head import Head, Headers

_OPERATOR = re.compile(r"%([A-Z][A-Z0-9_]*)(?:\(([^)]*)\))?(?::([0-9]{1,5}))?%")
_HEADER = re.compile(r":?[A-Za-z0-9!#$&'*+.^_`|~-]+")
_TIME = re.compile(r"%(?:E([1-9*])S|([1-9]?)f|(.?))", re.S)
_STRFTIME = "aAbBCdDeFgGhHIjklmMnpRStTuUVwWxXyYzZ"  # strftime(3)


@dataclass(frozen=True, slots=True)
class Moment:
    """What can be told: a request as it is by then, and in a response's headers what has become of it."""

    head: Head
    client: Client
    began: float  # unix
    cluster: str
    route: str
    endpoint: Endpoint | None = None
    status: int = 0
    answer: Headers = field(default_factory=list)


Part: TypeAlias = "str | Callable[[Moment], str]"


@dataclass(frozen=True, slots=True)
class Format:
    """A value with operators; ``text`` is what stands in the configuration."""

    text: str
    parts: tuple[Part, ...] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.text

    def at(self, moment: Moment) -> str:
        """The value; empty where nothing of it is known."""
        found = "".join([part if isinstance(part, str) else part(moment) for part in self.parts])
        return found.strip(" \t")  # a value has no blanks around it: RFC 9113, 8.2.1


def parse(text: str, hostname: str) -> str | Format:
    """What stands in a rule; without operators it is a text. ValueError names what is not known."""
    parts: list[Part] = []
    at, plain = 0, ""
    while (mark := text.find("%", at)) >= 0:
        plain += text[at:mark]
        if text.startswith("%%", mark):
            plain, at = f"{plain}%", mark + 2
            continue
        found = _OPERATOR.match(text, mark)
        if found is None:
            raise ValueError(f"{text[mark : mark + 30]!r} is no command operator (%NAME(...)%); %% is a percent sign")
        part = _part(found[1], found[2], found[3], hostname)
        if isinstance(part, str):
            plain += part
        else:
            parts += [plain, part] if plain else [part]
            plain = ""
        at = found.end()
    plain += text[at:]
    return Format(text, (*parts, plain) if plain else tuple(parts)) if parts else plain


def _part(name: str, argument: str | None, most: str | None, hostname: str) -> Part:
    if name in ("REQ", "RESP"):
        return _header(name, argument or "", int(most) if most is not None else None)
    if most is not None:
        raise ValueError(f"%{name}% takes no length")
    if name == "START_TIME":
        return _time(argument) if argument else lambda moment: stamp(moment.began)
    if argument is not None and name in _KNOWN | {"HOSTNAME"}:
        raise ValueError(f"%{name}% takes no argument")
    if name == "HOSTNAME":
        return hostname
    if (known := _PLAIN.get(name)) is not None:
        return known
    near = difflib.get_close_matches(name, sorted(_KNOWN | {"HOSTNAME", "REQ", "RESP", "START_TIME"}), 1, 0.0)
    raise ValueError(f"command operator %{name}% is not supported by this gateway; the nearest is %{near[0]}%")


def _header(name: str, argument: str, most: int | None) -> Part:
    """``X`` or ``X?Y``, the second where the first is not there; of several lines the first counts."""
    names = tuple(argument.lower().split("?"))
    if len(names) > 2 or not all(map(_HEADER.fullmatch, names)):
        raise ValueError(f"%{name}({argument})% must name a header, or two with ? between")

    def of(moment: Moment) -> str:
        for wanted in names:
            found = _of_request(moment.head, wanted) if name == "REQ" else _first(moment.answer, wanted)
            if found:
                return found if most is None else found[:most]
        return ""

    return of


def _of_request(head: Head, name: str) -> str:
    match name:
        case ":method":
            return head.method
        case ":path":
            return head.target
        case ":scheme":
            return head.scheme
        case ":authority" | "host":
            return head.authority
    return _first(head.headers, name)


def _first(headers: Headers, name: str) -> str:
    for key, value in headers:
        if key == name:
            return value
    return ""


def stamp(seconds: float) -> str:
    """As START_TIME is written where nothing else is said: 2026-01-31T12:00:00.000Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(form: str) -> Part:
    """strftime(3), and of Envoy %s, %f (nanoseconds), %3f, %E3S."""
    for found in _TIME.finditer(form):
        if found[3] is not None and (not found[3] or found[3] not in f"{_STRFTIME}s%"):
            raise ValueError(f"%START_TIME({form})%: {found[0]!r} is not known")

    def at(moment: Moment) -> str:
        micros = round(moment.began * 1_000_000)
        when = datetime.fromtimestamp(micros // 1_000_000, UTC)
        fraction = f"{micros % 1_000_000:06d}000"

        def one(found: re.Match[str]) -> str:
            if found[1]:
                return f"{when:%S}.{fraction[: int(found[1])] if found[1] != '*' else fraction.rstrip('0') or '0'}"
            if found[2] is not None:
                return fraction[: int(found[2] or 9)]
            return str(micros // 1_000_000) if found[3] == "s" else when.strftime(found[0])

        return _TIME.sub(one, form)

    return at


def _endpoint(endpoint: Endpoint | None) -> str:
    return "" if endpoint is None else str(endpoint)


def _peer(moment: Moment, field_name: str) -> str:
    peer = moment.client.peer
    if peer is None:
        return ""
    value = getattr(peer, field_name)
    return _printable(",".join(value) if isinstance(value, tuple) else value)


def _printable(text: str) -> str:
    """Names in certificates are their issuer's; a header is one line of ASCII."""
    return "".join(char if " " <= char <= "~" else f"\\x{ord(char):02x}" for char in text)


def _tls(moment: Moment, cipher: bool) -> str:
    facts = moment.client.link.tls if moment.client.link is not None else None
    return "" if facts is None else facts.cipher if cipher else facts.version


def _side(moment: Moment, target: bool) -> Endpoint | None:
    link = moment.client.link
    return None if link is None else link.target if target else link.source


def _addresses(name: str, of: Callable[[Moment], Endpoint | None]) -> dict[str, Callable[[Moment], str]]:
    def part(which: str) -> Callable[[Moment], str]:
        def told(moment: Moment) -> str:
            found = of(moment)
            return "" if found is None else str(getattr(found, which))

        return told

    without = {f"{name}_ADDRESS_WITHOUT_PORT": part("ip"), f"{name}_PORT": part("port")}
    return {f"{name}_ADDRESS": lambda moment: _endpoint(of(moment)), **without}


_PLAIN: dict[str, Callable[[Moment], str]] = {
    "PROTOCOL": lambda moment: moment.head.version,
    **_addresses("DOWNSTREAM_REMOTE", lambda moment: _side(moment, False)),
    **_addresses("DOWNSTREAM_LOCAL", lambda moment: _side(moment, True)),
    **_addresses("UPSTREAM_REMOTE", lambda moment: moment.endpoint),
    "UPSTREAM_HOST": lambda moment: _endpoint(moment.endpoint),
    "UPSTREAM_CLUSTER": lambda moment: moment.cluster,
    "ROUTE_NAME": lambda moment: moment.route,
    "RESPONSE_CODE": lambda moment: str(moment.status),
    "REQUESTED_SERVER_NAME": lambda moment: moment.client.sni,
    "STREAM_ID": lambda moment: _first(moment.head.headers, "x-request-id"),
    "DOWNSTREAM_TLS_VERSION": lambda moment: _tls(moment, False),
    "DOWNSTREAM_TLS_CIPHER": lambda moment: _tls(moment, True),
    "DOWNSTREAM_LOCAL_URI_SAN": lambda moment: moment.client.link.own if moment.client.link is not None else "",
    "DOWNSTREAM_PEER_URI_SAN": lambda moment: _peer(moment, "uris"),
    "DOWNSTREAM_PEER_DNS_SAN": lambda moment: _peer(moment, "dns"),
    "DOWNSTREAM_PEER_SUBJECT": lambda moment: _peer(moment, "subject"),
    "DOWNSTREAM_PEER_ISSUER": lambda moment: _peer(moment, "issuer"),
    "DOWNSTREAM_PEER_SERIAL": lambda moment: _peer(moment, "serial"),
    "DOWNSTREAM_PEER_FINGERPRINT_256": lambda moment: _peer(moment, "hash"),
}
_KNOWN = _PLAIN.keys()
