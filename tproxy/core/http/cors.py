"""Which origins' scripts may read an answer: preflights and what is added to other answers. fetch.spec.whatwg.org.

PURE. As Envoy's filter does it: a preflight is OPTIONS with Origin and Access-Control-Request-Method.
"""

from __future__ import annotations

from tproxy.core.http.facts import Facts
from tproxy.core.http.filters import Cors, Pairs
from tproxy.core.http.head import Headers


def is_preflight(facts: Facts) -> bool:
    """Whether a browser asks what it may do."""
    return facts.method == "OPTIONS" and "origin" in facts.headers and "access-control-request-method" in facts.headers


def allowed(cors: Cors, facts: Facts) -> str | None:
    """What Access-Control-Allow-Origin says, or None for a foreign origin."""
    origin = facts.headers.get("origin")
    return origin if origin and any(text.matches(origin) or text.matches("*") for text in cors.origins) else None


def preflight(cors: Cors, facts: Facts, origin: str) -> Headers:
    """The headers that answer a preflight."""
    found = list(actual(cors, origin))
    methods = _listed(cors.methods, facts.headers.get("access-control-request-method", ""))
    headers = _listed(cors.headers, facts.headers.get("access-control-request-headers", ""))
    found += [(name, value) for name, value in ((_METHODS, methods), (_HEADERS, headers)) if value]
    if cors.max_age is not None:
        found.append(("access-control-max-age", str(cors.max_age)))
    return found


_METHODS, _HEADERS = "access-control-allow-methods", "access-control-allow-headers"


def _listed(given: tuple[str, ...], asked: str) -> str:
    """Any means what is asked for: with credentials an asterisk would be the literal one to browsers."""
    return asked if "*" in given else ",".join(given)


def actual(cors: Cors, origin: str) -> Pairs:
    """The headers that are added to an answer."""
    found = [("access-control-allow-origin", origin)]
    if cors.credentials:
        found.append(("access-control-allow-credentials", "true"))
    if cors.expose:
        found.append(("access-control-expose-headers", ",".join(cors.expose)))
    return tuple(found)
